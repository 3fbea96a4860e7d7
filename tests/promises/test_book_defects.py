"""Three mistakes that a published pipeline made with this data, each of which has to be loud here.

It mixed up day and month and lost most of its rows, it read its own output back in as input, and one of its bounds was
a typing mistake. None of the three made an error there.
"""

from pathlib import Path

import pytest

from slml.contract import Between, ParsesAs
from slml.errors import ContractError, UsageError
from slml.quality.audit import audit
from slml.quality.clean import clean
from slml.tables.catalog import Catalog, Snapshot
from slml.tables.engine import Engine, open_engine
from slml.tables.ingest import IngestReport, ingest_files
from slml.taxi import contract, generate
from slml.workspace import Workspace

RIGHT, WRONG = "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M"
TIMES = ("ORIGINDATETIME_TR", "DESTINATIONDATETIME_TR")


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A month of synthetic trips with dates in both orders among its dirt."""
    return generate(tmp_path_factory.mktemp("month") / "raw", 4000, seed=11, dirt=0.05).files[0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace for all that only read what is stored; each test that writes names a table of its own."""
    return Workspace(root=str(tmp_path_factory.mktemp("workspace") / "root"), project="test")


@pytest.fixture(scope="module")
def engine(workspace: Workspace):
    with open_engine(workspace) as engine:
        yield engine


@pytest.fixture(scope="module")
def as_text(month: str, workspace: Workspace) -> IngestReport:
    """The month stored without any types declared."""
    return ingest_files(month, "trips", workspace)


@pytest.fixture(scope="module")
def snapshot(as_text: IngestReport, workspace: Workspace) -> Snapshot:
    return Catalog(workspace).snapshot(as_text.snapshot)


@pytest.fixture(scope="module")
def misread(month: str, workspace: Workspace) -> IngestReport:
    """The month stored with its times declared day first."""
    return ingest_files(month, "misread", workspace, types=dict.fromkeys(TIMES, f"timestamp {WRONG}"))


def with_format(format: str):
    """The taxi contract that reads its times in another order."""
    columns = [c.model_copy(update={"format": format}) if c.name in TIMES else c for c in contract().columns]
    return contract().replace(columns=tuple(columns))


# Day and month


def test_mixed_dates_are_reported_and_not_guessed(as_text: IngestReport) -> None:
    assert as_text.types["ORIGINDATETIME_TR"] == "text"
    note = next(note for note in as_text.notes if note.startswith("ORIGINDATETIME_TR"))
    assert "day first" in note
    assert "month first" in note


def test_a_wrong_format_at_ingest_loses_no_row_in_silence(misread: IngestReport, workspace: Workspace) -> None:
    """Declared day first, most of the month does not parse: the rows are in the rejects, counted, with a reason."""
    assert misread.rows == 4000 == misread.stored + misread.rejected
    assert misread.rejected > 0.5 * misread.rows  # every day from the 13th on
    rejects = Catalog(workspace).snapshot(misread.rejects)
    assert rejects.rows == misread.rejected
    assert f"{misread.rejected:,} rejected" in str(misread)


def test_a_wrong_format_at_ingest_is_named_as_such(misread: IngestReport) -> None:
    assert any("month first" in note or RIGHT in note for note in misread.notes), misread.notes


def test_what_a_wrong_format_let_through_is_found(misread: IngestReport, workspace: Workspace, engine: Engine) -> None:
    """The days up to the 12th did parse, as other months: the contract keeps none of them, and the audit says so."""
    findings = audit(Catalog(workspace).snapshot(misread.snapshot), contract(), engine)
    assert (
        findings["ORIGINDATETIME_TR: between"].share > 0.8
    )  # all but the third of March, and what was right by chance
    assert any(note.startswith("'ORIGINDATETIME_TR: between'") for note in findings.notes), findings.notes
    assert any(note.startswith("Only") for note in findings.notes), findings.notes


def test_a_wrong_format_in_the_contract_is_named_as_such(snapshot: Snapshot, engine: Engine) -> None:
    findings = audit(snapshot, with_format(WRONG), engine)
    assert findings["ORIGINDATETIME_TR: parses as"].share > 0.5
    assert any("day and month are probably mixed up" in note for note in findings.notes), findings.notes


def test_a_wrong_format_keeps_its_rows_in_quarantine(snapshot: Snapshot, workspace: Workspace, engine: Engine) -> None:
    ledger = clean(snapshot, with_format(WRONG), Catalog(workspace), engine, "kept_wrong", "quarantine_wrong")
    assert ledger.rows_in == 4000 == ledger.kept + ledger.quarantined
    assert ledger.by_rule["ORIGINDATETIME_TR: parses as"] > 2000
    # A day up to the 12th does parse, into another month: the window of the month finds those.
    assert ledger.by_rule["ORIGINDATETIME_TR: between"] > 1000
    assert ledger.notes


# Its own output


def test_own_output_is_not_read_back(snapshot: Snapshot, workspace: Workspace, engine: Engine) -> None:
    catalog = Catalog(workspace)
    clean(snapshot, contract(), catalog, engine, "kept", "quarantine")
    before = catalog.snapshot("trips")
    folder, kept_folder = str(Path(snapshot.files[0]).parent), catalog.table("kept").location
    for source in (*snapshot.files, folder, f"{kept_folder}/**/*.parquet"):
        with pytest.raises(UsageError):
            ingest_files(source.removeprefix("file://"), "trips", workspace)
    assert catalog.snapshot("trips").id == before.id


def test_the_same_file_is_not_taken_twice(month: str, as_text: IngestReport, workspace: Workspace) -> None:
    again = ingest_files(month, "trips", workspace)
    assert again.stored == 0
    assert len(again.skipped) == 1
    assert Catalog(workspace).snapshot("trips").rows == as_text.stored


# A bound from a typing mistake


def test_a_bound_needs_a_reason() -> None:
    with pytest.raises(ContractError, match="reason"):
        Between("FAREAMOUNT", 3.25, 25)
    with pytest.raises(ContractError, match="reason"):
        Between("FAREAMOUNT", 3.25, 25, reason="  ")


def test_an_impossible_bound_is_refused() -> None:
    with pytest.raises(ContractError, match="low is above high"):
        Between("FAREAMOUNT", 325, 250, reason="the tariff, with the point forgotten")


@pytest.mark.parametrize(("low", "high"), [(3.25, 12.5), (32.5, 250)], ids=["half is lost", "a point is moved"])
def test_a_mistyped_bound_is_noticed(low: float, high: float, snapshot: Snapshot, engine: Engine) -> None:
    """The bound looks plausible to the eye, but it breaks far more rows than a rule should."""
    mistyped = Between("FAREAMOUNT", low, high, reason="the tariff of the meter")
    rules = tuple(mistyped if r.name == mistyped.name else r for r in contract().rules)
    findings = audit(snapshot, contract().replace(rules=rules), engine)
    note = next(note for note in findings.notes if note.startswith("'FAREAMOUNT: between'"))
    assert "the tariff of the meter" in note  # so that a reader can compare the bound with its reason


def test_right_bounds_raise_no_suspicion(snapshot: Snapshot, engine: Engine) -> None:
    assert not any("between" in note for note in audit(snapshot, contract(), engine).notes)


def test_a_stored_format_is_part_of_the_rule() -> None:
    """The order of day and month stands in the contract, where a reader sees it."""
    types = dict.fromkeys(contract().names, "text")
    rules = {rule.name: rule for rule in contract().all_rules(types)}
    rule = rules["ORIGINDATETIME_TR: parses as"]
    assert isinstance(rule, ParsesAs)
    assert rule.format == RIGHT
