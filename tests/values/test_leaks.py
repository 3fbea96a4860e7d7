"""A leak is exact but for rounding; noise, however little, makes an honest feature."""

import numpy as np
import pyarrow as pa
import pytest

from slml.contract import Column
from slml.quality.leaks import find_leaks

ROWS = 1500
RANDOM = np.random.default_rng(7)
PRICE = RANDOM.lognormal(8, 1, ROWS).round(2)
AREA = RANDOM.uniform(20, 200, ROWS).round(1)
FEW = RANDOM.integers(0, 100, ROWS).astype(float)


def leaks(columns: dict, target: np.ndarray) -> tuple[set[str], tuple[str, ...]]:
    table = pa.table({**columns, "y": target})
    return find_leaks(table, [Column(n, "float") for n in table.column_names], "y", "regression")


@pytest.mark.parametrize(
    ("leak", "how"),
    [
        (np.log(PRICE).round(6), "its logarithm"),
        (np.log10(PRICE + 1).round(5), "its"),
        ((PRICE / 1.0837).round(2), "its multiple"),
        (-PRICE, "its multiple"),
        (np.argsort(np.argsort(PRICE)), "its order"),
        (np.sqrt(PRICE), "its order"),
        ((PRICE / 50).round(), "its"),
        (np.where(RANDOM.random(ROWS) < 0.2, np.nan, PRICE), "its multiple"),
        (np.where(RANDOM.random(ROWS) < 0.3, AREA, PRICE), "exact in"),
    ],
)
def test_one_column_gives_the_target_away(leak: np.ndarray, how: str) -> None:
    names, notes = leaks({"area": AREA, "leak": leak}, PRICE)
    assert names == {"leak"}
    assert "'leak' alone gives 'y' away" in notes[0]
    assert how in notes[0]
    assert "Numeric('leak')" in notes[0], "how to keep it"


def test_a_logarithm_as_the_target() -> None:
    names, notes = leaks({"area": AREA, "price": PRICE}, np.log(PRICE))
    assert names == {"price"}
    assert "its exponential" in notes[0]


@pytest.mark.parametrize("noise", [0.5, 0.1, 0.03])
@pytest.mark.parametrize("weights", [(50, 20, -10), (1, 1, 1), (42.385, 17.19, 3.3)])
def test_an_honest_linear_table_keeps_its_features(noise: float, weights: tuple[float, ...]) -> None:
    x = RANDOM.normal(0, 1, (ROWS, 3)).round(4)
    y = (x @ weights + RANDOM.normal(0, noise, ROWS)).round(4)
    assert leaks({"x1": x[:, 0], "x2": x[:, 1], "x3": x[:, 2]}, y)[0] == set()


def test_a_formula_without_noise_keeps_its_features() -> None:
    x = RANDOM.normal(0, 1, (ROWS, 3))
    names, notes = leaks({"x1": x[:, 0], "x2": x[:, 1], "x3": x[:, 2]}, x @ [42.38550486, 17.1942, 3.14159265])
    assert names == set()
    assert "weighted sum of x1, x2, x3" in notes[0]


@pytest.mark.parametrize("noise", [0.05, 1, 20])
def test_whole_numbers_with_a_little_noise_are_honest(noise: float) -> None:
    assert leaks({"x": FEW, "area": AREA}, 3 * FEW + RANDOM.normal(0, noise, ROWS))[0] == set()
    assert leaks({"x": FEW, "area": AREA}, (FEW + RANDOM.normal(0, max(noise, 1), ROWS)).round())[0] == set()


@pytest.mark.parametrize(
    "surcharges", [(0.3, 0.8, 2.5), (0, 0.5, 1, 2.75, 3.3, 5), (0,), (4.5,), (0, 10)], ids=lambda s: str(len(s))
)
def test_a_total_with_one_of_a_few_surcharges(surcharges: tuple[float, ...]) -> None:
    fare, tip = RANDOM.uniform(3, 60, (2, ROWS)).round(2)
    tolls = RANDOM.choice([0, 6.12], ROWS, p=[0.8, 0.2])
    columns = {"miles": AREA, "tip": tip, "tolls": tolls}
    columns["total"] = (fare + tip + tolls + RANDOM.choice(surcharges, ROWS)).round(2)
    names, notes = leaks(columns, fare)
    assert {"total", "tip"} <= names
    assert "miles" not in names
    assert "tip + tolls + total together give 'y' away" in notes[0]


def test_a_sum_among_many_columns() -> None:
    others = {f"c{i}": RANDOM.normal(0, 10, ROWS).round(2) for i in range(60)}
    a, b = RANDOM.gamma(2, 20, (2, ROWS)).round(2)
    assert leaks({**others, "a": a, "b": b}, (a + b).round(2))[0] == {"a", "b"}
    assert leaks({**others, "a": a, "b": b}, (a + b + RANDOM.normal(0, 1, ROWS)).round(2))[0] == set()


def test_extremes_are_no_fault() -> None:
    odd = {"inf": np.where(AREA > 100, np.inf, AREA), "minus": np.where(AREA > 100, -np.inf, AREA)}
    odd |= {"huge": np.where(AREA > 199, 1e308, -1e308), "tiny": np.full(ROWS, 5e-324), "gap": np.full(ROWS, np.nan)}
    assert leaks(odd, PRICE)[0] == set()
    assert leaks({"area": AREA}, np.where(AREA > 150, 1e308, PRICE))[0] == set()
    assert leaks({"area": AREA}, np.where(AREA > 150, np.inf, PRICE))[0] == set()
