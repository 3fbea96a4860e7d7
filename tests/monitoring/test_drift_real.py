"""A model of New York's taxi fares, watched for a month: quiet, dearer, and with faults planted into it."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from slml.monitoring.drift import drift
from slml.monitoring.episodes import Timeline, build_timeline, learn_limits
from slml.monitoring.limits import LIMITS
from slml.monitoring.report import report_page
from slml.quality.profile import Profile, profile

from support import green

pytestmark = pytest.mark.slow
BEGINS = datetime(2023, 2, 15)  # when the planted faults do


@pytest.fixture(scope="module")
def january(shared_data: Path) -> pa.Table:
    return green.month(shared_data, "2023-01")


@pytest.fixture(scope="module")
def february(shared_data: Path) -> pa.Table:
    return green.month(shared_data, "2023-02")


@pytest.fixture(scope="module")
def model(january: pa.Table) -> green.FareModel:
    return green.FareModel(january)


@pytest.fixture(scope="module")
def reference(january: pa.Table, model: green.FareModel) -> Profile:
    """What the bundle holds, read back from its JSON."""
    return Profile.from_json(profile(model.serve(january), green.CONTRACT).to_json())


def watched(reference: Profile, model: green.FareModel, january: pa.Table, table: pa.Table) -> Timeline:
    return build_timeline(reference, model.serve(table), green.CONTRACT, model.expected, january)


def test_the_next_month_raises_no_alarm(
    reference: Profile, model: green.FareModel, january: pa.Table, february: pa.Table
) -> None:
    seen = watched(reference, model, january, february)
    assert (seen.action, seen.episodes) == ("nothing", ())
    assert len(seen.windows) == 28
    assert {w.diagnosis.action for w in seen.windows} == {"nothing"}
    assert "Nothing" in report_page(seen, "green@1")


@pytest.mark.parametrize("name", ["2022-01", "2022-02"])
def test_fares_that_rose_are_concept_drift_once_labels_come(
    shared_data: Path, name: str, reference: Profile, model: green.FareModel, january: pa.Table
) -> None:
    """Fares rose in December 2022: a model of 2023 is off by some dollars before, and the inputs look the same."""
    table = green.month(shared_data, name)
    seen = watched(reference, model, january, table)
    assert seen.action == "retrain"
    assert "concept drift" in seen.kinds
    assert not {"covariate drift", "data-quality fault", "schema change"} & {*seen.kinds, *seen.overall.kinds}
    assert seen.overall.performance is not None
    assert 1.5 < seen.overall.performance.bias.mean < 5
    (episode,) = [e for e in seen.episodes if e.kind == "error"]
    assert (f"{episode.first:%Y-%m-%d}", episode.ongoing) == (f"{name}-01", True)
    unlabelled = watched(reference, model, january, table.drop_columns(["fare_amount"]))
    assert unlabelled.overall.action == "nothing"
    assert not [e for e in unlabelled.episodes if e.ongoing]


@pytest.mark.parametrize("fault", green.FAULTS)
def test_each_planted_fault_is_found_named_and_dated(
    fault: str, reference: Profile, model: green.FareModel, january: pa.Table, february: pa.Table
) -> None:
    plant, columns = green.FAULTS[fault]
    table = plant(february, green.since(february, BEGINS))
    seen = watched(reference, model, january, table.drop_columns(["fare_amount"]))
    assert seen.action == "fix the feed"
    faults = {e.column: e for e in seen.episodes if e.kind == fault}
    assert set(faults) == columns, seen
    assert {e.first for e in faults.values()} == {BEGINS}
    assert all(e.ongoing for e in faults.values())
    assert all(e.first >= BEGINS for e in seen.episodes), seen
    assert {w.diagnosis.action for w in seen.windows if w.start < BEGINS} == {"nothing"}


def test_a_fault_is_dated_to_the_hour(reference: Profile, february: pa.Table) -> None:
    begins = datetime(2023, 2, 15, 13)
    three = february.filter(pc.is_in(pc.day(february["lpep_pickup_datetime"]), pa.array([14, 15, 16])))
    renamed = green.renamed(three, green.since(three, begins)).drop_columns(["fare_amount"])
    seen = build_timeline(reference, renamed, green.CONTRACT, every="hour")
    assert [(e.column, e.kind, e.first) for e in seen.episodes if e.ongoing] == [("payment_type", "renamed", begins)]


def windows(table: pa.Table, many: int, rows: int) -> Iterator[pa.Table]:
    """Stretches of a table that begin at equal distances."""
    for start in np.linspace(0, len(table) - rows, many).astype(int):
        yield table[start : start + rows]


def test_two_hundred_untouched_windows_raise_two_alarms_at_most(
    shared_data: Path, reference: Profile, january: pa.Table, february: pa.Table
) -> None:
    """Also for a pair of months from the year before, and with learned limits.

    It is no blind trial: limits were adjusted with a look at both pairs."""
    before, after = (green.month(shared_data, name) for name in ("2022-01", "2022-02"))
    for known, first, table in ((reference, january, february), (profile(before, green.CONTRACT), before, after)):
        every = [w for rows in (1_000, 2_500, 5_000, 10_000) for w in windows(table, 50, rows)]
        assert len(every) == 200
        seen = [profile(window, green.CONTRACT) for window in every]
        for limits in (LIMITS, learn_limits(LIMITS, known, first, green.CONTRACT)):
            found = [drift(known, window, green.CONTRACT, limits).alarming for window in seen]
            assert sum(map(bool, found)) <= 2, [list(map(str, f)) for f in found if f]


def test_a_month_that_is_stored_otherwise_is_noted_and_read(shared_data: Path, reference: Profile) -> None:
    """2023-02 has whole numbers where 2023-01 has floats; both are what the contract says once they are read."""
    names = [c.name for c in green.CONTRACT.columns if c.name != "minutes"]
    first, second = (
        pq.read_table(shared_data / "nyc_green" / f"green_tripdata_2023-0{n}.parquet", columns=names) for n in (1, 2)
    )
    contract = green.CONTRACT.replace(
        columns=[c for c in green.CONTRACT.columns if c.name != "minutes"],
        features=[f for f in green.CONTRACT.features if "minutes" not in f.columns],
        rules=[r for r in green.CONTRACT.rules if "minutes" not in r.columns],
    )
    known = profile(first, contract)
    assert known.columns["RatecodeID"].categories.keys() >= {"1", "5"}  # and not 1.0
    found = drift(known, profile(second, contract), contract)
    assert not found.alarming
    assert {f.column for f in found.findings if f.kind == "retyped"} >= {"RatecodeID", "PULocationID", "payment_type"}
