"""The measures of drift: one list from which everything else is derived, and numbers that agree with other code."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp, wasserstein_distance

from slml.contract import Category, Column, Contract, Numeric, TimeParts
from slml.monitoring import measures
from slml.monitoring.distance import chi_square, jensen_shannon
from slml.monitoring.drift import drift
from slml.monitoring.episodes import build_timeline
from slml.monitoring.limits import LIMITS
from slml.monitoring.measures import MEASURES, Measure, compare_column, ks_distance, scaled_wasserstein
from slml.monitoring.windows import column_schema
from slml.quality.profile import Profile, profile

CONTRACT = Contract(
    name="trips",
    columns=[Column("when", "timestamp"), Column("zone", "text"), Column("miles", "float")],
    time="when",
    features=[TimeParts(column="when"), Category(column="zone"), Numeric(column="miles")],
)


def trips(seed: int, rows: int = 2000) -> pa.Table:
    rng = np.random.default_rng(seed)
    times = 1_793_000_000_000_000 + np.sort(rng.integers(0, 7 * 86_400_000_000, rows))
    zone = rng.choice(["centre", "suburb", "airport"], rows, p=[0.6, 0.3, 0.1])
    return pa.table({"when": pa.array(times, pa.timestamp("us")), "zone": zone, "miles": rng.gamma(2, 1.5, rows)})


@pytest.fixture(scope="module")
def reference() -> Profile:
    return profile(trips(0), CONTRACT)


def test_a_measure_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch, reference: Profile) -> None:
    """A new entry of the list is computed, kept, stored and shown, and nothing else has to be touched."""
    added = Measure("rows of both", lambda pair: float(pair.reference.rows + pair.window.rows), ".0f")
    monkeypatch.setitem(measures.MEASURES, "rows_of_both", added)
    window = trips(1, 500)
    result = drift(reference, window, CONTRACT)
    assert result["miles"]["rows_of_both"] == 2500
    assert result.to_dict()["columns"][0]["rows_of_both"] == 2500
    assert "<th>rows of both</th>" in result._repr_html_()
    assert "<td>2500</td>" in result._repr_html_()
    numbers = build_timeline(reference, window, CONTRACT).table()
    assert {row["rows_of_both"] for row in numbers.to_pylist()} != {None}
    assert column_schema().field("rows_of_both").type == pa.float64()
    stored = pa.Table.from_pylist(result.to_dict()["columns"], column_schema())
    assert stored["rows_of_both"].to_pylist() == [2500] * 3


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_is_finite_and_has_its_value_of_no_drift(name: str, reference: Profile) -> None:
    """The contract of a measure: a number or None for any column, its value of no drift for equal sides."""
    for column in reference.columns.values():
        same = compare_column("any", column, column, LIMITS)[name]
        assert same is None or same == pytest.approx({"p": 1.0}.get(name, 0.0), abs=0.02)
    for rows in (0, 1, 50):
        for column in drift(reference, trips(2, rows), CONTRACT).columns:
            assert column[name] is None or np.isfinite(column[name])
            assert (column.format(name) == "") == (column[name] is None)


def test_the_columns_of_stored_tables_stay() -> None:
    """Tables of earlier versions have these columns, in this order."""
    names = ["psi", "jensen_shannon", "ks", "wasserstein", "p", "nulls", "nulls_before", "new"]
    assert list(MEASURES) == names
    assert column_schema().names == ["since", "until", "version", "column", "kind", *names]


@pytest.mark.parametrize(
    ("reference", "window", "distance"),
    [
        ([47, 31, 34, 44, 28, 38, 41, 11], [2, 15, 14, 43, 45, 0, 24, 41], 0.463061004740216),
        ([6, 39, 5, 23, 40, 15, 17, 13], [35, 12, 49, 22, 23, 25, 29, 27], 0.4058349259475894),
        ([25, 49, 40, 39, 35, 31, 17, 49], [23, 10, 42, 8, 42, 30, 5, 2], 0.3749542685919828),
        ([22, 1, 7, 25, 48, 23, 40, 45], [41, 31, 22, 25, 13, 24, 18, 12], 0.4215595731689774),
    ],
)
def test_the_jensen_shannon_distance_is_what_it_was(reference: list, window: list, distance: float) -> None:
    """The numbers are those of the code that was here before scipy's."""
    assert jensen_shannon(np.array(reference), np.array(window)) == pytest.approx(distance, rel=1e-12)


@pytest.mark.parametrize(
    ("seed", "scale", "shift", "ks", "wasserstein"),
    [
        (1, 1.0, 0.0, 0.03700000000000003, 0.05451211144179884),
        (2, 1.3, 0.0, 0.18749999999999994, 0.4384780109828743),
        (3, 1.0, 4.0, 0.755, 1.5100298222181283),
        (4, 1.6, -2.0, 0.23600000000000004, 0.38031381986879953),
    ],
)
def test_the_distances_of_numbers_are_what_they_were(
    seed: int, scale: float, shift: float, ks: float, wasserstein: float
) -> None:
    """The numbers are those of the code that was here before scipy's; from the rows themselves they are close."""
    rng = np.random.default_rng(seed)
    before = rng.gamma(2, 1.5, 2000)
    after = rng.gamma(2, 1.5, 500) * scale + shift
    columns = [profile(pa.table({"miles": v}), CONTRACT).columns["miles"] for v in (before, after)]
    assert ks_distance(*columns) == pytest.approx(ks, rel=1e-12)
    assert scaled_wasserstein(*columns) == pytest.approx(wasserstein, rel=1e-12)
    width = np.subtract(*np.quantile(before, [0.75, 0.25]))
    assert ks_distance(*columns) == pytest.approx(ks_2samp(before, after).statistic, abs=0.01)
    assert scaled_wasserstein(*columns) == pytest.approx(wasserstein_distance(before, after) / width, abs=0.01)


def test_corrected_p_values_are_what_they_were() -> None:
    """The numbers are those of the code that was here before scipy's."""
    p = [
        1.6405376129749335e-06, 0.007122455123254228, 0.3314200347438314, 0.008073027970180852, 0.050462801323351396,
        5.207237617943342e-08, 0.5718856488539299, 0.0036851673126174853, 0.019162622376327, 0.6822439514262513,
        0.1324878358847584, 0.6079688446491265,
    ]  # fmt: skip
    corrected = [
        9.843225677849601e-06, 0.019375267128434046, 0.4418933796584419, 0.019375267128434046, 0.08650765941145953,
        6.24868514153201e-07, 0.6632387396172289, 0.014740669250469941, 0.038325244752654, 0.6822439514262513,
        0.1987317538271376, 0.6632387396172289,
    ]  # fmt: skip
    assert np.allclose(false_discovery_control(p), corrected, rtol=1e-12)


def test_the_chi_square_test_agrees_with_scipy() -> None:
    counts = np.array([[600, 350, 50], [60, 32, 8]])
    assert chi_square(*counts) == pytest.approx(chi2_contingency(counts, correction=False).pvalue, rel=1e-9)
