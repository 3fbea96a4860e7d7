"""Bounds that a person would accept, and the values that look wrong named with count and example."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from slml.contract import Between, Contract
from slml.quality.bounds import LARGEST, bounds_of, fences, odd_negatives, stand_ins
from slml.quality.clean import clean
from slml.quality.infer import infer
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.workspace import Workspace

ROWS = 1000
RANDOM = np.random.default_rng(3)
FEE = RANDOM.gamma(2, 10, ROWS).round(2)


def test_what_is_never_negative_gets_a_low_bound_of_zero() -> None:
    assert fences(FEE)[0] == 0
    assert fences(-FEE)[1] == 0
    assert fences(FEE - 30)[0] < -30
    assert fences(np.where(RANDOM.random(ROWS) < 0.9, 0, FEE))[0] == 0


def test_at_most_a_few_rows_are_outside() -> None:
    for values in (RANDOM.normal(0, 1, 20_000), RANDOM.lognormal(0, 2, 20_000), RANDOM.pareto(1.2, 20_000)):
        low, high = fences(values)
        assert ((values < low) | (values > high)).mean() <= 0.002


@pytest.mark.parametrize("extreme", [1e308, -1e308, np.inf, -np.inf, 5e-324, LARGEST])
def test_extremes_end_in_bounds_and_not_in_an_error(extreme: float) -> None:
    for values in (np.append(FEE, extreme), np.full(ROWS, extreme), np.append(np.full(ROWS, extreme), -extreme)):
        with np.errstate(invalid="raise", divide="raise"):
            bounds, _ = bounds_of("x", values)
        assert bounds is None or (np.isfinite(bounds).all() and bounds[0] <= bounds[1])
        assert not np.isinf(extreme) or bounds is not None


@pytest.mark.parametrize("value", [-999, -9999, 9999, 99999, -99])
def test_stand_ins_are_named(value: int) -> None:
    values = np.where(np.arange(ROWS) % 50 == 0, value, FEE.round())
    assert stand_ins(values) == {value: 20}
    bounds, notes = bounds_of("x", values)
    assert bounds[0] <= value <= bounds[1], "a value of many rows costs none"
    assert (notes[0].column, notes[0].occurrences, notes[0].example) == ("x", 20, f"{value}")
    assert f"null {value}" in notes[0].todo


def test_honest_nines_are_no_stand_ins() -> None:
    assert stand_ins(np.arange(20_000.0)) == {}
    assert stand_ins(np.where(RANDOM.random(ROWS) < 0.1, 99, RANDOM.uniform(0, 100, ROWS))) == {}


def test_negative_counts() -> None:
    rooms = RANDOM.integers(1, 9, ROWS).astype(float)
    rooms[5] = -3
    _, notes = bounds_of("rooms", rooms, quantity=False)
    assert notes[0].startswith("'rooms' is negative in 1 of 1,000 rows looked at, such as -3")
    assert len(odd_negatives(np.append(FEE, -12.0))) == 1
    assert not len(odd_negatives(RANDOM.normal(0, 1, ROWS)))
    assert not len(odd_negatives(RANDOM.normal(5, 2, ROWS)))


def test_infinities_and_extremes_from_the_file_to_the_kept_rows(tmp_path: Path) -> None:
    workspace = Workspace(root=str(tmp_path), project="test", cores=2)
    ratio, area = FEE.copy(), RANDOM.uniform(30, 200, ROWS).round(1)
    ratio[:9], ratio[9:12] = np.inf, -np.inf
    area[20], area[21], area[22] = 1e308, -1e308, 5e-324
    y = 3 * area.clip(0, 200) + RANDOM.normal(0, 5, ROWS)
    y[30:33] = np.inf
    table = pa.table({"ratio": ratio, "area": area, "rooms": RANDOM.integers(1, 6, ROWS), "y": y})
    snapshot = Catalog(workspace).table("t").append(table)
    with open_engine(workspace) as engine:
        contract = infer(snapshot, engine, target="y")
        ledger = clean(snapshot, contract, Catalog(workspace), engine)
        kept = engine.read(engine.table(Catalog(workspace).snapshot(ledger.kept_snapshot)))
    assert Contract.from_json(contract.to_json()) == contract
    bounds = {rule.column: (rule.low, rule.high) for rule in contract.rules if isinstance(rule, Between)}
    assert bounds.keys() == {"ratio", "area", "y"}
    assert np.isfinite(kept["ratio"].to_numpy()).all()
    assert ledger.quarantined == 12 + 2 + 3
    noted = {(note.column, note.occurrences) for note in contract.notes if getattr(note, "column", "")}
    assert {("ratio", 12), ("y", 3)} <= noted
