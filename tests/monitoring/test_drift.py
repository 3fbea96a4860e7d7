"""Drift, performance and diagnosis where the input is bad, and what they promise where it is not."""

import json
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from slml.contract import Between, Category, Column, Contract, Numeric, TimeParts
from slml.errors import ContractError, TrainingError, UsageError
from slml.monitoring.diagnosis import ACTIONS, diagnose_window
from slml.monitoring.drift import drift
from slml.monitoring.episodes import build_timeline
from slml.monitoring.findings import SORTS
from slml.monitoring.limits import Limits
from slml.monitoring.performance import ExpectedError, errors, join_labels, performance
from slml.monitoring.report import report_page
from slml.quality.profile import Profile, profile

CONTRACT = Contract(
    name="trips",
    columns=[
        Column(name="when", type="timestamp"),
        Column(name="zone", type="text"),
        Column(name="miles", type="float"),
        Column(name="fare", type="float"),
    ],
    time="when",
    target="fare",
    task="regression",
    rules=[Between("miles", low=0, high=100, reason="the city is 60 miles across")],
    features=[TimeParts(column="when"), Category(column="zone"), Numeric(column="miles")],
)


def trips(seed: int = 0, days: int = 5, start: str = "2026-11-02") -> pa.Table:
    """A thousand trips a day, with what a model says of them."""
    rng, n = np.random.default_rng(seed), 1000 * days
    begin = int(datetime.fromisoformat(start + "+00:00").timestamp() * 1e6)
    miles = rng.gamma(2, 1.5, n)
    return pa.table(
        {
            "when": pa.array(np.sort(begin + rng.integers(0, days * 86_400_000_000, n)), pa.timestamp("us")),
            "zone": rng.choice(["centre", "suburb", "airport"], n, p=[0.6, 0.3, 0.1]),
            "miles": miles,
            "fare": 3 + 2.2 * miles + rng.normal(0, 1, n),
            "_prediction": 3 + 2.2 * miles,
        }
    )


@pytest.fixture(scope="module")
def reference() -> Profile:
    return profile(trips(0, 28, "2026-10-05"), CONTRACT)


@pytest.fixture(scope="module")
def expected() -> ExpectedError:
    tested = trips(0, 28, "2026-10-05")
    return ExpectedError.fit(*errors("regression", tested["fare"], tested["_prediction"]))


def put(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, [values])


@pytest.mark.parametrize("rows", [0, 1, 49])
def test_too_few_rows_are_told_and_alarm_nobody(reference: Profile, expected: ExpectedError, rows: int) -> None:
    few = trips(1)[:rows]
    found = diagnose_window(reference, few, CONTRACT, expected, trips(2))
    assert found.action == "nothing"
    assert [f.kind for f in found.drift.findings] == ["too few"]
    assert build_timeline(reference, few, CONTRACT, expected).action == "nothing"
    assert json.dumps(found.to_dict())


def test_a_column_of_nulls_is_a_fault_of_the_feed(reference: Profile) -> None:
    empty = put(trips(1), "miles", pa.nulls(5000, pa.float64()))
    found = diagnose_window(reference, empty, CONTRACT)
    assert (found.action, found.columns[0]) == ("fix the feed", "miles")
    assert str(found.drift.findings[0]) == "miles: 100.0% nulls, were 0.0%"


def test_a_column_that_was_null_in_training_and_is_not_any_more() -> None:
    known = profile(put(trips(0), "miles", pa.nulls(5000, pa.float64())), CONTRACT)
    assert [f.kind for f in drift(known, trips(1), CONTRACT).alarming] == ["nulls"]


def test_a_profile_of_another_contract_is_refused(reference: Profile) -> None:
    with pytest.raises(ContractError, match="another contract"):
        drift(reference, trips(1), CONTRACT.replace(name="rides"))


@pytest.mark.parametrize(
    ("change", "kind", "action"),
    [
        (lambda t: t.drop_columns(["miles"]), "lost", "fix the feed"),
        (lambda t: put(t, "miles", pa.array(["far"] * len(t))), "unreadable", "fix the feed"),
        (lambda t: put(t, "miles", t["miles"].cast(pa.string()).combine_chunks()), "retyped", "nothing"),
        (lambda t: put(t, "miles", t["miles"].cast(pa.float32()).combine_chunks()), "retyped", "nothing"),
        (lambda t: t.append_column("tip", t["fare"]), "new column", "nothing"),
        (lambda t: put(t, "when", pa.array([str(m) for m in t["when"].to_pylist()])), "retyped", "nothing"),
    ],
)
def test_changes_of_the_schema(reference: Profile, change: object, kind: str, action: str) -> None:
    found = diagnose_window(reference, change(trips(1)).drop_columns(["fare"]), CONTRACT)
    assert [f.kind for f in found.drift.findings] == [kind]
    assert found.action == action


def test_broken_rules_are_found_unless_they_always_were(reference: Profile) -> None:
    miles = np.where(np.arange(5000) % 20, trips(1)["miles"].to_numpy(), 500.0)
    far = put(trips(1), "miles", pa.array(miles))
    assert [f.kind for f in drift(reference, far, CONTRACT).alarming] == ["rule"]
    usual = drift(reference, far, CONTRACT, usual={"miles: between": 0.05})
    assert "rule" not in {f.kind for f in usual.alarming}


def test_a_big_sample_does_not_make_everything_significant(reference: Profile) -> None:
    """Half a million rows with a step that is certain, and too small for anybody to care."""
    rng = np.random.default_rng(0)
    known, seen = (pa.table({"miles": rng.gamma(2, scale, 500_000)}) for scale in (1.5, 1.52))
    found = drift(profile(known, CONTRACT), profile(seen, CONTRACT), CONTRACT, Limits(design_effect=1))
    assert found["miles"]["p"] < 1e-6
    assert not found.alarming


def test_small_windows_do_not_alarm_by_chance(reference: Profile) -> None:
    calm = trips(7, 20)
    for rows in (60, 200, 1000):
        windows = [calm[i : i + rows] for i in range(0, 20_000 - rows, 1000)]
        alarms = [drift(reference, profile(w, CONTRACT), CONTRACT).alarming for w in windows]
        assert not any(alarms), rows


def test_rows_are_placed_by_their_time_and_none_is_lost(reference: Profile, expected: ExpectedError) -> None:
    """Clocks that go back, logs that are cut off in the middle of a day, rows without a time, in any order."""
    table = trips(1, 6)
    when = table["when"].to_pylist()
    for i in range(300):
        when[i] = None
    for i in range(4000, 4100):
        when[i] -= timedelta(hours=20)
    odd = put(table, "when", pa.array(when, pa.timestamp("us")))[:5400]
    shuffled = odd.take(np.random.default_rng(0).permutation(len(odd)))
    seen = build_timeline(reference, shuffled, CONTRACT, expected)
    assert seen.undated == 300
    assert sum(w.rows for w in seen.windows) == 5100
    assert [w.start for w in seen.windows] == sorted(w.start for w in seen.windows)
    assert not [e for e in seen.episodes if e.kind not in ("hours", "nulls")]
    assert "300 rows have no time" in str(seen)
    assert report_page(seen, "trips@1").startswith("<!DOCTYPE html>")


def test_a_table_without_a_time_is_refused(reference: Profile) -> None:
    with pytest.raises(ContractError, match="no time 'when'"):
        build_timeline(reference, trips(1).drop_columns(["when"]), CONTRACT)
    with pytest.raises(UsageError, match="fortnight"):
        build_timeline(reference, trips(1), CONTRACT, every="fortnight")


def test_labels_that_come_twice_or_for_rows_never_served() -> None:
    served = pa.table({"_request": ["a", "b", "c", None], "_row": [0, 0, 0, 0], "_prediction": [1.0, 2.0, 3.0, 4.0]})
    labels = pa.table(
        {
            "_request": ["a", "a", "a", "b", "z", "c", None],
            "_row": pa.array([0, 0, 0, 0, 0, 0, 0], pa.int32()),
            "fare": [9.0, 1.0, 1.5, 2.0, 7.0, None, 4.0],
        }
    )
    found = join_labels(served, labels, ["_request", "_row"], "fare")
    assert dict(zip(found.table["_request"].to_pylist(), found.table["fare"].to_pylist(), strict=True)) == {
        "a": 1.5,
        "b": 2.0,
    }
    assert (found.served, found.waiting, found.twice, found.contradicting, found.empty) == (4, 2, 2, 1, 1)
    assert found.unknown == 2  # z, and the label that names no row
    with pytest.raises(ContractError, match="no column 'fare'"):
        join_labels(served, labels.drop_columns(["fare"]), ["_request", "_row"], "fare")


def test_predictions_that_are_none_are_left_out_and_labels_that_do_not_fit_are_refused(expected: ExpectedError) -> None:
    table = trips(1)
    gone = put(table, "_prediction", pa.nulls(5000, pa.float64()))
    assert performance(gone, expected, "regression", "fare").rows == 0
    with pytest.raises(TrainingError, match="no column 'fair'"):
        performance(table, expected, "regression", "fair")
    chances = put(table, "_prediction", pa.array([[0.1, 0.2, 0.7]] * 5000))
    with pytest.raises(TrainingError, match="Chances and classes"):
        performance(put(chances, "fare", pa.array(["a", "b"] * 2500)), expected, "binary", "fare")


def test_every_kind_of_finding_leads_to_an_action(reference: Profile) -> None:
    assert set(SORTS.values()) == {"schema", "fault", "moved", "note"}
    assert ACTIONS[0] == "nothing"
