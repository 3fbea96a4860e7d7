"""Rules find what they should and nothing else; every row is accounted for; nothing is left half done."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import slml.quality.clean as clean_module
from slml.contract import (
    Between,
    Column,
    Contract,
    Equals,
    Expression,
    InsideBox,
    Matches,
    NotNull,
    OneOf,
    Ordered,
    ParsesAs,
    SameFormat,
    SameUnit,
    Unique,
)
from slml.errors import ContractError, LedgerError
from slml.quality.audit import audit
from slml.quality.clean import Ledger, clean
from slml.quality.infer import infer
from slml.quality.report import report
from slml.tables.catalog import Catalog, Snapshot
from slml.tables.engine import Engine, open_engine
from slml.workspace import Workspace


@pytest.fixture(scope="module")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One catalog and one engine for all tests here: opening them takes longer than most tests."""
    return Workspace(root=str(tmp_path_factory.mktemp("quality")), project="test")


@pytest.fixture(scope="module")
def shared_catalog(shared_workspace: Workspace) -> Catalog:
    return Catalog(shared_workspace)


@pytest.fixture
def catalog(shared_catalog: Catalog) -> Iterator[Catalog]:
    """Without a table when the test begins."""
    yield shared_catalog
    for name in shared_catalog.tables():
        shared_catalog.drop(name)


@pytest.fixture(scope="module")
def engine(shared_workspace: Workspace) -> Iterator[Engine]:
    with open_engine(shared_workspace) as opened:
        yield opened


def one_column(catalog: Catalog, values: list, type: pa.DataType | None = None) -> Snapshot:
    return catalog.table("t").replace(pa.table({"x": pa.array(values, type)}))


def broken_by(catalog: Catalog, engine: Engine, snapshot: Snapshot, contract: Contract, rule: str) -> list:
    """The stored rows of the quarantine that broke a rule."""
    clean(snapshot, contract, catalog, engine, "kept", "out")
    rows = engine.read(engine.table(catalog.snapshot("out"))).to_pylist()
    return [r for r in rows if rule in r["broken"]]


@pytest.mark.parametrize(
    ("type", "format", "good", "bad"),
    [
        ("float", "", ["1.5", " 2 ", "1e3", "-0"], ["NULL", "n/a", "1,5", "$3", "1_000"]),
        ("int", "", ["1", "2.0", "-7"], ["2.5", "x", "NULL", "1e99", "NaN"]),
        ("bool", "", ["true", "No", "1", "F"], ["2", "maybe"]),
        ("date", "", ["2019-01-12"], ["12/01/2019", "2019-13-01"]),
        ("date", "%m/%d/%Y", ["01/13/2019", "1/2/2019"], ["13/01/2019", "2019-01-13", "02/30/2019"]),
        ("timestamp", "", ["2019-01-12 08:00:00", "2019-01-12T08:00:00"], ["yesterday", "01/12/2019 08:00"]),
        ("timestamp", "%m/%d/%Y %H:%M", ["01/13/2019 23:59"], ["13/01/2019 00:00", "01/13/2019", "NULL"]),
    ],
)
def test_text_reads_as(catalog: Catalog, engine: Engine, type: str, format: str, good: list, bad: list) -> None:
    snapshot = one_column(catalog, [*good, *bad, "", "  ", None])
    contract = Contract(name="t", columns=(Column("x", type, format=format),))
    broken = broken_by(catalog, engine, snapshot, contract, "x: parses as")
    assert sorted(r["x"] for r in broken) == sorted(bad)  # blank text is null, and null is not wrong
    kept = engine.read(engine.table(catalog.snapshot("kept")))["x"]
    assert kept.null_count == 3
    assert len(kept) == len(good) + 3


def test_a_text_of_nan_is_a_missing_float(catalog: Catalog, engine: Engine) -> None:
    """It breaks 'not null' where the column may not be null, and nothing where it may."""
    snapshot = one_column(catalog, ["1.5", "NaN", "nan", " NAN ", "", "NULL"])
    strict = Contract(name="t", columns=(Column("x", "float", nullable=False),))
    found = audit(snapshot, strict, engine)
    assert (found["x: parses as"].count, found["x: not null"].count) == (1, 4)
    loose = Contract(name="t", columns=(Column("x", "float"),))
    assert clean(snapshot, loose, catalog, engine, "kept", "out").by_rule == {"x: parses as": 1}
    kept = engine.read(engine.table(catalog.snapshot("kept")))["x"].to_pylist()
    assert sorted(kept, key=str) == [1.5, None, None, None, None]


def test_a_stored_nan_is_a_missing_whole_number(catalog: Catalog, engine: Engine) -> None:
    snapshot = one_column(catalog, [1.0, float("nan"), 2.5])
    ledger = clean(snapshot, Contract(name="t", columns=(Column("x", "int"),)), catalog, engine, "kept", "out")
    assert ledger.by_rule == {"x: parses as": 1}


def trips(catalog: Catalog) -> Snapshot:
    rows = [
        #  id, fare,    zip,     low, high, lat,   lon,    miles, straight
        (1, "9.5", "20001", 1, 2, 38.9, -77.0, 2.0, 1.5),
        (2, "-3", "20001", 1, 1, 38.9, -77.0, 2.0, 1.5),
        (3, "10", "2DA", 3, 2, 38.9, -77.0, 2.0, 1.5),
        (4, "10", "20002", 1, 2, -77.0, 38.9, 2.0, 1.5),
        (5, "10", "20002", 1, 2, 38.9, -77.0, 3.2, 1.5),
        (6, None, None, None, None, None, None, None, None),
        (7, "10", "20009", 1, 2, 38.9, -77.0, 2.0, 0.0),
        (7, "10", "20009", 1, 2, 38.9, -77.0, 2.0, 0.0),
    ]
    names = ("id", "fare", "zip", "low", "high", "lat", "lon", "miles", "straight")
    return catalog.table("trips").replace(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))))


CONTRACT = Contract(
    name="trips",
    columns=(
        Column("id", "int"), Column("fare", "float"), Column("zip", "text"),
        Column("low", "int"), Column("high", "int"),
        *(Column(n, "float") for n in ("lat", "lon", "miles", "straight")),
    ),
    key=("id",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "ids"),
    [
        (NotNull("fare"), [6]),
        (Between("fare", 3.25, 100, reason="tariff"), [2]),
        (Between("fare", high=9.5, reason="both bounds belong to it"), [3, 4, 5, 7, 7]),
        (OneOf("zip", ("20001", "20002", "20009")), [3]),
        (Matches("zip", r"\d{5}"), [3]),
        (SameFormat("zip", r"\d"), [1, 2, 3, 4, 5, 7, 7]),  # the whole text must match
        (Unique(("id",)), [7]),
        (InsideBox("lat", "lon", south=38.7, north=39.1, west=-77.3, east=-76.8), [4]),
        (Ordered("low", "high"), [3]),
        (Expression("fare > 0 OR zip IS NULL"), [2]),
        (Expression("NOT (fare < 0) AND abs(lat) BETWEEN 30 AND 50"), [2, 4]),
        (Expression("CASE WHEN zip LIKE '2000%' THEN fare >= 9.5 ELSE true END"), [2]),
        (Expression("coalesce(low, 0) % 2 = 1 AND zip NOT IN ('2DA')"), [3, 6]),
        (SameUnit("miles", "straight", low=1.0, high=2.0), [5]),  # nothing divided by zero is no violation
        (Equals("fare", "tariffs", on="zip", reference_column="price"), [2, 3, 7, 7]),
    ],
)
def test_each_rule_finds_its_rows(catalog: Catalog, engine: Engine, rule, ids: list[int]) -> None:
    contract, snapshot = CONTRACT.replace(rules=(rule,)), trips(catalog)
    tariffs = pa.table({"zip": ["20001", "20002"], "price": [9.5, 10.0]})
    references = {"tariffs": engine.table(catalog.table("tariffs").replace(tariffs))}
    found = audit(snapshot, contract, engine, references)
    ledger = clean(snapshot, contract, catalog, engine, "kept", "out", references)
    out = engine.read(engine.table(catalog.snapshot("out"))).to_pylist()
    assert sorted(r["id"] for r in out) == ids
    assert found[rule.name].count == ledger.by_rule[rule.name] == ledger.quarantined == len(ids)
    assert found.rows == 8
    assert found.clean_rows == ledger.kept == 8 - len(ids)
    assert set(found[rule.name].examples["id"]) <= set(ids)


def test_typed_values_are_compared_not_texts(catalog: Catalog, engine: Engine) -> None:
    snapshot = one_column(catalog, ["9", "10", "100"])
    contract = Contract(name="t", columns=(Column("x", "float"),), rules=(Between("x", 9.5, 50, reason="made up"),))
    assert [r["x"] for r in broken_by(catalog, engine, snapshot, contract, "x: between")] == ["100", "9"]


def test_a_row_is_quarantined_once_with_all_its_reasons(catalog: Catalog, engine: Engine) -> None:
    contract = CONTRACT.replace(
        rules=(Between("fare", 0, 9, reason="r"), Matches("zip", r"\d{5}"), Ordered("low", "high"))
    )
    ledger = clean(trips(catalog), contract, catalog, engine, "kept", "out")
    assert ledger.by_reason["fare: between + zip: matches + low, high: ordered"] == 1
    assert sum(ledger.by_reason.values()) == ledger.quarantined < sum(ledger.by_rule.values())


def test_a_rule_named_like_two_others_is_counted_apart(catalog: Catalog, engine: Engine) -> None:
    snapshot = catalog.table("fees").replace(pa.table({"a": [1, 9, 9, 1, 8], "b": [1, 1, 9, 9, 8]}))
    rules = (Between("a", 0, 5, name="a", reason="r"), Between("b", 0, 5, name="b", reason="r"),
             Expression("a + b < 18", name="a + b"))  # fmt: skip
    contract = Contract(name="fees", columns=(Column("a", "int"), Column("b", "int")), rules=rules)
    ledger = clean(snapshot, contract, catalog, engine, "kept", "out")
    assert ledger.by_rule == {f.name: f.count for f in audit(snapshot, contract, engine).findings}
    assert ledger.by_rule == {"a": 3, "b": 3, "a + b": 1}
    assert ledger.by_reason == {"a": 1, "a + b": 1, "a + b + a + b": 1, "b": 1}  # only a text for people


def test_a_changed_contract_changes_the_kept_table(
    catalog: Catalog, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = catalog.table("t").replace(pa.table({"id": [1, 2], "fare": ["9.5", "3"], "note": ["a", "b"]}))
    first = Contract(name="t", columns=(Column("id", "int"), Column("fare", "float")))
    second = Contract(name="t", columns=(Column("note", "text"), Column("fare", "text")))
    before = clean(snapshot, first, catalog, engine, "kept", "out")
    after = clean(snapshot, second, catalog, engine, "kept", "out")
    rows = engine.read(engine.table(catalog.snapshot("kept"))).drop(["row_hash"]).to_pylist()
    assert sorted(rows, key=str) == [{"note": "a", "fare": "9.5"}, {"note": "b", "fare": "3"}]
    earlier = engine.read(engine.table(catalog.snapshot(before.kept_snapshot)))
    assert earlier.schema.names == ["id", "fare", "row_hash"]
    assert sorted(earlier["fare"].to_pylist()) == [3.0, 9.5]
    # What fails after the change brings the columns before it back.
    monkeypatch.setattr(clean_module, "_ledger", lambda *_: (_ for _ in ()).throw(LedgerError("it does not balance")))
    with pytest.raises(LedgerError):
        clean(snapshot, first, catalog, engine, "kept", "out")
    assert catalog.snapshot("kept").ref == after.kept_snapshot
    assert engine.read(engine.table(catalog.snapshot("kept"))).schema.names == ["note", "fare", "row_hash"]


def test_the_order_of_rows_and_files_changes_nothing(catalog: Catalog, engine: Engine) -> None:
    """Of the rows of one key the same one is kept, and the kept table is the same to the last row."""
    data = pa.table({"id": [1, 1, 1, 2, 3], "fare": ["3", "1", "2", "5", "x"]})
    contract = Contract(
        name="t", columns=(Column("id", "int"), Column("fare", "float")), key=("id",), rules=(Unique(("id",)),)
    )
    kept, out = [], []
    for turn, cuts in enumerate([[5], [2, 3], [1, 1, 3]]):
        table, at = catalog.table(f"t{turn}"), 0
        rows = data if turn == 0 else data.take(pa.array([4, 2, 0, 3, 1] if turn == 1 else [1, 3, 0, 4, 2]))
        for cut in cuts:
            table.append(rows.slice(at, cut))
            at += cut
        clean(table.snapshot(), contract, catalog, engine, f"kept{turn}", f"out{turn}")
        kept.append(engine.read(engine.table(catalog.snapshot(f"kept{turn}"))).to_pylist())
        out.append(engine.read(engine.table(catalog.snapshot(f"out{turn}"))).to_pylist())
    assert kept[0] == kept[1] == kept[2]
    assert out[0] == out[1] == out[2]
    assert sorted(r["id"] for r in kept[0]) == [1, 2]
    assert [r["row_hash"] for r in kept[0]] == sorted(r["row_hash"] for r in kept[0])


def test_a_bound_from_a_typing_mistake_is_called_out(catalog: Catalog, engine: Engine) -> None:
    """One digit is missing, a good part of the table is lost, and everybody is told which rule it was."""
    snapshot = one_column(catalog, [float(v) for v in range(4, 104)])
    contract = Contract(
        name="t", columns=(Column("x", "float"),), rules=(Between("x", 3.25, 20, reason="at most 200"),)
    )
    ledger = clean(snapshot, contract, catalog, engine, "kept", "out")
    for notes in (audit(snapshot, contract, engine).notes, ledger.notes):
        assert any("'x: between' breaks 83.0% of the rows" in n and "at most 200" in n for n in notes)
    assert (ledger.kept, ledger.quarantined) == (17, 83)
    assert "83.0%" in report(audit(snapshot, contract, engine), ledger, contract)


def test_mixed_up_day_and_month_is_called_out(catalog: Catalog, engine: Engine) -> None:
    """Day-first dates read month-first: 60 % do not parse, and the rest are other days."""
    snapshot = one_column(catalog, [f"{day:02d}/06/2019 08:00" for day in range(1, 31)])
    contract = Contract(name="t", columns=(Column("x", "timestamp", format="%m/%d/%Y %H:%M"),))
    found = audit(snapshot, contract, engine)
    assert found["x: parses as"].count == 18
    assert any("day and month are probably mixed up" in n and "%d/%m/%Y %H:%M" in n for n in found.notes)
    assert any("breaks 60.0%" in n for n in found.notes)
    right = contract.replace(columns=(Column("x", "timestamp", format="%d/%m/%Y %H:%M"),))
    assert (audit(snapshot, right, engine).clean_rows, audit(snapshot, right, engine).notes) == (30, ())


def test_an_explicit_format_wins(catalog: Catalog, engine: Engine) -> None:
    snapshot = one_column(catalog, ["13/06/2019", "06/13/2019"])
    contract = Contract(name="t", columns=(Column("x", "date"),), rules=(ParsesAs("x", "date", "%d/%m/%Y"),))
    clean(snapshot, contract, catalog, engine, "kept", "out")
    assert str(engine.read(engine.table(catalog.snapshot("kept")))["x"][0]) == "2019-06-13"


def test_a_ledger_that_does_not_balance_is_refused() -> None:
    with pytest.raises(LedgerError, match="does not balance"):
        Ledger(snapshot="t@1", rows_in=3, kept=1, quarantined=1, by_rule={}, by_reason={"r": 1}, letters={},
               kept_snapshot="", quarantine_snapshot="")  # fmt: skip


def test_rows_lost_on_the_way_undo_everything(catalog: Catalog, engine: Engine, monkeypatch) -> None:
    """An engine that drops a row is found out by the tables' own metadata, and both tables go back."""
    snapshot = trips(catalog)
    first = clean(snapshot, CONTRACT.replace(rules=(NotNull("fare"),)), catalog, engine, "kept", "out")
    whole = engine.batches

    def losing(expr, rows: int = 131_072) -> pa.RecordBatchReader:
        return whole(expr.limit(2) if "row_hash" in expr.columns else expr, rows)

    monkeypatch.setattr(engine, "batches", losing)
    for kept, out in (("kept", "out"), ("new_kept", "new_out")):
        with pytest.raises(LedgerError, match="does not balance"):
            clean(snapshot, CONTRACT, catalog, engine, kept, out)
    assert catalog.snapshot("kept").ref == first.kept_snapshot
    assert catalog.snapshot("out").ref == first.quarantine_snapshot
    assert not {"new_kept", "new_out"} & set(catalog.tables())


@pytest.mark.parametrize(
    ("contract", "told"),
    [
        (Contract(name="t", columns=(Column("fares", "float"),)), "did you mean 'fare'"),
        (Contract(name="t", columns=(Column("lat", "date"),)), "cannot be read as date"),
        (CONTRACT.replace(rules=(Expression("fare > 'a'"),)), "cannot be computed"),
        (CONTRACT.replace(rules=(Expression("fare > ("),)), "not an SQL expression"),
        (CONTRACT.replace(rules=(Expression("fare > mils"),)), "did you mean 'miles'"),
        (CONTRACT.replace(rules=(Expression("fare + 1"),)), "not true or false"),
        (CONTRACT.replace(rules=(Expression("sha256(zip) = fare"),)), "not known"),
        (CONTRACT.replace(rules=(Between("zip", 1, 2, reason="r"),)), "does not compare"),
        (CONTRACT.replace(rules=(Equals("fare", "tariffs", on="zip"),)), "needs the reference table"),
    ],
)
def test_a_contract_that_does_not_fit_is_one_clear_error(
    catalog: Catalog, engine: Engine, contract: Contract, told: str
) -> None:
    snapshot = trips(catalog)
    with pytest.raises(ContractError, match=told):
        audit(snapshot, contract, engine)
    with pytest.raises(ContractError, match=told):
        clean(snapshot, contract, catalog, engine, "kept", "out")
    assert not {"kept", "out"} & set(catalog.tables())


def test_columns_beyond_the_contract_are_told(catalog: Catalog, engine: Engine) -> None:
    found = audit(trips(catalog), Contract(name="t", columns=(Column("id", "int"),)), engine)
    assert found.notes[0].startswith("8 column(s) are not in the contract")


def test_real_trips_are_accounted_for(catalog: Catalog, engine: Engine, shared_data: Path) -> None:
    import pyarrow.parquet as pq

    data = pq.read_table(shared_data / "nyc_green" / "green_tripdata_2023-01.parquet")
    snapshot = catalog.table("green").append(data)
    rules = (
        Expression("fare_amount > 0", name="fare is paid"),
        Expression("trip_distance > 0", name="distance is not zero"),
        Ordered("lpep_pickup_datetime", "lpep_dropoff_datetime"),
    )
    proposed = infer(snapshot, engine, target="fare_amount")
    ledger = clean(snapshot, proposed.replace(rules=(*proposed.rules, *rules)), catalog, engine, "kept", "out")
    assert ledger.rows_in == 68_211 == ledger.kept + ledger.quarantined
    assert ledger.by_rule["distance is not zero"] == sum(d == 0 for d in data["trip_distance"].to_pylist()) == 3_350
    assert ledger.by_rule["fare is paid"] == sum(f <= 0 for f in data["fare_amount"].to_pylist())


def test_a_computed_column_is_kept_checked_and_never_a_key(catalog: Catalog, engine: Engine) -> None:
    stored = catalog.table("timed").append(
        pa.table(
            {
                "id": [1, 2, 3],
                "start": ["2023-01-01 10:00:00"] * 3,
                "end": ["2023-01-01 10:05:00", "2023-01-01 09:00:00", None],
            }
        )
    )
    contract = Contract(
        name="timed",
        columns=(
            Column("id", "int"),
            Column("start", "timestamp"),
            Column("end", "timestamp"),
            Column("seconds", "float", unit="s", sql='epoch("end") - epoch(start)', nullable=False),
        ),
        key=("id",),
        target="seconds",
        rules=(Between("seconds", 0, 86_400, reason="a trip ends after it began, on the same day"),),
    )
    assert audit(stored, contract, engine)["seconds: between"].count == 1
    ledger = clean(stored, contract, catalog, engine, kept="timed_kept", quarantine="timed_out")
    assert ledger.by_rule["seconds: between"] == ledger.by_rule["seconds: not null"] == 1
    kept = engine.read(engine.table(catalog.snapshot(ledger.kept_snapshot))).to_pylist()
    assert [(row["id"], row["seconds"]) for row in kept] == [(1, 300.0)]
    assert "seconds" not in catalog.snapshot(ledger.quarantine_snapshot).schema.names
    with pytest.raises(ContractError, match="cannot be a key"):
        contract.replace(key=("seconds",))
