"""The profile of a table: what merges into what, from any engine, at what cost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slml.contract import Category, Column, Contract
from slml.errors import ContractError
from slml.quality.bins import MOST_BINS, MOST_CATEGORIES
from slml.quality.profile import Profile, merge_profiles, profile, profile_snapshot
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.workspace import Workspace

from support import green

CONTRACT = Contract(
    name="t",
    columns=[
        Column(name="x", type="float"),
        Column(name="n", type="int"),
        Column(name="word", type="text"),
        Column(name="when", type="timestamp"),
        Column(name="who", type="text", personal=True),
    ],
    features=[Category(column="n")],
)


def table(seed: int, rows: int) -> pa.Table:
    """Numbers of every size and sign, codes, words and times, with some nulls."""
    rng = np.random.default_rng(seed)
    gone = rng.random(rows) < 0.1
    return pa.table(
        {
            "x": pa.array(rng.normal(0, 1, rows) * 10 ** rng.uniform(-3, 6, rows), mask=gone),
            "n": pa.array(rng.geometric(0.05, rows), mask=gone),
            "word": pa.array(rng.choice(["a", "b", "ü"], rows), mask=gone),
            "when": pa.array(rng.integers(0, 2_000_000_000, rows) * 1_000_000, pa.timestamp("us"), mask=gone),
            "who": rng.choice(["Ann", "Bob"], rows),
        }
    )


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 5000), at=st.floats(0, 1), seed=st.integers(0, 5))
def test_the_profile_of_two_parts_is_their_merged_profile(rows: int, at: float, seed: int) -> None:
    whole = table(seed, rows)
    cut = int(rows * at)
    parts = [profile(whole[:cut], CONTRACT), profile(whole[cut:], CONTRACT)]
    assert merge_profiles(parts) == merge_profiles(parts[::-1]) == profile(whole, CONTRACT)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(width=64), min_size=1, max_size=200))
def test_numbers_of_every_kind_are_counted_and_stored(values: list[float]) -> None:
    found = profile(pa.table({"x": pa.array(values, pa.float64())}), CONTRACT)
    column = found.columns["x"]
    finite = [v for v in values if np.isfinite(v)]
    assert (column.count, column.nulls) == (len(finite), len(values) - len(finite))
    assert Profile.from_json(found.to_json()) == found
    if finite:
        assert (column.low, column.high) == (min(finite), max(finite))
        exact = np.quantile(finite, [0.1, 0.5, 0.9], method="inverted_cdf")
        near = np.abs(column.quantile([0.1, 0.5, 0.9]) - exact) <= column.bins.error * np.abs(exact) + 1e-300
        assert near.all()


def test_quantiles_stay_within_the_stated_error_and_the_profile_small() -> None:
    values = table(1, 300_000)["x"]
    found = profile(pa.table({"x": values}), CONTRACT)
    column, shares = found.columns["x"], np.array([0.01, 0.25, 0.5, 0.75, 0.99])
    exact = np.quantile(values.drop_null().to_numpy(), shares, method="inverted_cdf")
    assert (np.abs(column.quantile(shares) - exact) <= column.bins.error * np.abs(exact)).all()
    assert len(column.bins.codes) <= MOST_BINS
    assert len(found.to_json()) < 40_000


def test_the_json_is_plain_and_holds_no_person() -> None:
    plain = json.loads(profile(table(0, 1000), CONTRACT).to_json())
    assert plain["columns"]["when"]["min"][:2] in ("19", "20")
    assert set(plain["columns"]["x"]["quantiles"]) == {"0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99"}
    assert plain["columns"]["word"]["categories"].keys() == {"a", "b", "ü"}
    assert sum(plain["columns"]["when"]["hours"]) == plain["columns"]["when"]["count"]
    assert "Ann" not in json.dumps(plain)


def test_from_a_snapshot_by_an_engine_as_from_memory(workspace: Workspace) -> None:
    rows = table(3, 5000)
    snapshot = Catalog(workspace).table("t").append(rows)
    with open_engine(workspace) as engine:
        found = profile_snapshot(snapshot, CONTRACT, engine)
    assert found.columns == profile(rows, CONTRACT).columns


def test_categories_beyond_the_counters_are_bounded_merged_or_not() -> None:
    rng = np.random.default_rng(0)
    words = pa.table({"word": [str(n) for n in np.concatenate([rng.integers(0, 50_000, 60_000), np.full(3000, -1)])]})
    parts = [profile(words[i : i + 21_000], CONTRACT) for i in range(0, 63_000, 21_000)]
    for found in (profile(words, CONTRACT), merge_profiles(parts)):
        column = found.columns["word"]
        assert len(column.categories) <= MOST_CATEGORIES
        assert column.error <= 63_000 / MOST_CATEGORIES
        assert 3000 - column.error <= column.categories["-1"] <= 3000


def test_real_months_merge(shared_data: Path) -> None:
    months = [green.month(shared_data, name) for name in ("2023-01", "2023-02")]
    both = profile(pa.concat_tables(months), green.CONTRACT)
    assert merge_profiles(profile(m, green.CONTRACT) for m in months) == both


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2}', '{"format": 1, "rows": "x"}', "\x00"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="no profile"):
        Profile.from_json(text)


def test_reading_a_profile_loads_nothing_heavy() -> None:
    code = "import sys, slml.quality.profile; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert not {"torch", "mlflow", "pandas", "duckdb", "ibis", "scipy"} & set(done.stdout.split())
