"""Figures that can be checked by hand, refusals, and baselines that take whatever a table holds."""

import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from slml.errors import TrainingError, UsageError
from slml.training.baselines import baselines
from slml.training.metrics import headline, measure, plot_against_target, range_names, slice_labels, slice_metrics

KEYS = ["constant", "linear", "hist_gradient_boosting"]


def test_regression_by_hand() -> None:
    measured = measure("regression", np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 8]))
    assert measured == {"rmse": 2.0, "mae": 1.0, "median_ae": 0.0, "bias": 1.0, "r2": pytest.approx(1 - 16 / 5)}


def test_classes_by_hand() -> None:
    measured = measure("binary", [1, 0, 1, 0], [0.9, 0.2, 0.4, 0.6])
    assert measured["accuracy"] == measured["error"] == 0.5
    assert measured["auc"] == 0.75
    assert measured["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.4]).mean())
    assert measured["brier"] == pytest.approx(np.mean([0.01, 0.04, 0.36, 0.36]))
    measured = measure("multiclass", [0, 1, 2], [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["log_loss"] == pytest.approx(-np.log([0.8, 0.5, 0.2]).mean())
    assert measured["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_both_shapes_of_a_binary_prediction_mean_the_same() -> None:
    one = np.array([0.9, 0.2, 0.4, 0.6])
    assert measure("binary", [1, 0, 1, 0], one) == measure("binary", [1, 0, 1, 0], np.stack([1 - one, one], 1))
    assert measure("binary", [1, 0, 1, 0], one) == measure("binary", np.array([True, False, True, False]), one[:, None])


def test_every_metric_is_a_plain_number_and_nothing_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task, target, prediction in (
            ("regression", [1.0], [2.0]),
            ("binary", [1, 1], [0.5, 0.6]),
            ("multiclass", [0, 0], np.eye(3)[:2]),
            ("binary", [0, 1], np.array([0.1, 0.7], np.float32)),
            ("multiclass", [0, 2], np.float32([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])),
        ):
            measured = measure(task, target, prediction)
            assert headline(task) in measured
            assert all(type(value) is float and np.isfinite(value) for value in measured.values()), measured


@pytest.mark.parametrize(
    ("task", "target", "prediction"),
    [
        ("regression", [], []),
        ("regression", [1.0, 2.0], [1.0]),
        ("regression", [1.0, 2.0], [1.0, np.nan]),
        ("regression", [1.0, np.inf], [1.0, 1.0]),
        ("binary", [0, 1], [0.5, np.nan]),
        ("binary", [0, 2], [0.5, 0.5]),
        ("multiclass", [0, 3], np.eye(3)[:2]),
    ],
)
def test_what_cannot_be_measured(task: str, target: list, prediction: list) -> None:
    for call in (measure, plot_against_target):
        with pytest.raises(TrainingError, match="expected:"):
            call(task, target, prediction)


def test_an_unknown_task() -> None:
    with pytest.raises(UsageError, match="did you mean 'multiclass'"):
        measure("multi-class", [0], [[1.0]])


def test_slices_cover_every_row_and_show_the_bad_corner() -> None:
    random = np.random.default_rng(0)
    slices = pd.Series(random.choice(["day", "night", None], 1_000), name="when", index=range(5, 1_005))
    target = random.normal(size=1_000)
    measured = slice_metrics("regression", target, target + 3.0 * (slices == "night").to_numpy(), slices)
    assert measured.index.tolist() == ["day", "night", "missing"]
    assert measured.index.name == "when"
    assert measured.rows.sum() == 1_000
    assert measured.rmse.tolist() == pytest.approx([0, 3, 0])
    assert (
        slice_metrics("binary", (target > 0).astype(int), np.full(1_000, 0.5), slices)["error"].between(0.3, 0.7).all()
    )


@pytest.mark.parametrize(
    ("values", "slices"),
    [
        (pd.Series([0] * 90 + [1, 2, 3]), 4),  # most of them equal: fewer ranges than asked for
        (pd.Series(np.arange(100.0)), 4),
        (pd.Series([1.0, 2.0, None] * 5), 3),
        (pd.Series(pd.date_range("2023-01-01", periods=50, tz="UTC")), 4),
        (pd.Series(list("abcdefgh")), 4),
        (pd.Series(list("abcdefgh"), dtype="category"), 4),
        (pd.Series([True, False, True]), 2),
        (pd.Series([None, None]), 1),
    ],
)
def test_slices_of_any_column(values: pd.Series, slices: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = slice_labels(values, 4)
    assert not labels.isna().any()
    assert 1 <= labels.nunique() <= slices


@pytest.mark.parametrize(
    ("edges", "names"),
    [
        ([30.198999999999998, 48.287, 199.8], ["[30.2, 48.3]", "(48.3, 200]"]),
        ([0.0, 4.0, 23.0], ["[0, 4]", "(4, 23]"]),
        ([2003, 2011, 2023], ["[2003, 2011]", "(2011, 2023]"]),  # no whole number is rounded
        ([-1.5e-6, 2.5e-6], ["[-1.5e-06, 2.5e-06]"]),
        ([999.7, 1234567.8], ["[999.7, 1234568]"]),
        ([7.0, 7.00001, 7.00002], ["[7, 7.00001]", "(7.00001, 7.00002]"]),
        ([1.0, 1 + 2**-52], ["[1, 1.0000000000000002]"]),
        (pd.to_datetime(["2023-01-01", "2023-02-01"]), ["[2023-01-01, 2023-02-01]"]),
        (pd.to_datetime(["2023-01-01 08:00", "2023-01-01 09:30"]), ["[2023-01-01 08:00, 2023-01-01 09:30]"]),
    ],
)
def test_the_names_of_ranges_are_short_and_differ(edges: Sequence[float], names: list[str]) -> None:
    assert range_names(edges) == names


def test_slices_are_named_after_rounded_edges() -> None:
    values = pd.Series(np.random.default_rng(0).uniform(30, 200, 1_000), name="area")
    names = slice_metrics("regression", values, values, values).index
    assert names.is_unique
    assert len(names) == 8
    assert max(map(len, names)) <= len("(76.5, 98.1]")


def test_plots_of_every_task() -> None:
    random = np.random.default_rng(0)
    axes = [
        plot_against_target("regression", random.normal(size=50), random.normal(size=50)),
        plot_against_target("regression", np.zeros(5), np.zeros(5)),
        plot_against_target("binary", random.integers(0, 2, 50), random.random(50)),
        plot_against_target("multiclass", [0, 1, 2], np.eye(3)),
    ]
    assert [ax.get_xlabel() for ax in axes] == [
        "truth",
        "truth",
        "predicted probability of class 1",
        "predicted class",
    ]
    plt.close("all")


@pytest.fixture(scope="module")
def mixed() -> pd.DataFrame:
    """Every kind of column that a cleaned table turns into."""
    random = np.random.default_rng(0)
    size = 600
    return pd.DataFrame(
        {
            "number": random.normal(size=size),
            "gaps": pd.Series(random.normal(size=size)).mask(random.random(size) < 0.2),
            "wild": np.where(random.random(size) < 0.01, np.inf, 1.0),
            "whole": pd.array([*random.integers(0, 5, size - 1).tolist(), None], dtype="Int64"),
            "flag": random.random(size) < 0.5,
            "maybe": pd.array([*([True, False] * (size // 2 - 1)), None, True], dtype="boolean"),
            "text": random.choice(["a", "b", None], size),
            "category": pd.Categorical(random.choice(["x", "y"], size)),
            "many": [f"street {n}" for n in range(size)],
            "time": pd.Series(pd.date_range("2023-01-01", periods=size, freq="h")).mask(random.random(size) < 0.1),
            "zoned": pd.date_range("2023-01-01", periods=size, freq="h", tz="UTC"),
            "day": [None, *[date(2023, 1, 1 + n % 28) for n in range(size - 1)]],
            "empty": [None] * size,
        }
    )


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_baselines_take_any_column_and_are_the_same_every_time(mixed: pd.DataFrame, task: str) -> None:
    signal = mixed.number + 2.0 * mixed.flag
    target = signal if task == "regression" else (signal > 0).astype(int) + (task == "multiclass") * (signal > 1.5)
    train, test = (mixed[:450], target[:450]), (mixed[450:], target[450:])
    before = mixed.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = baselines(task, train, test, seed=1)
    assert list(measured) == KEYS == list(measured.seconds)
    assert measured == baselines(task, train, test, seed=1)
    assert measured["linear"][headline(task)] < 0.7 * measured["constant"][headline(task)]
    assert measured["hist_gradient_boosting"][headline(task)] < 0.7 * measured["constant"][headline(task)]
    pd.testing.assert_frame_equal(mixed, before)
    assert "linear" in measured._repr_html_()


def test_baselines_meet_categories_and_classes_that_training_lacks() -> None:
    train = pd.DataFrame({"word": list("ab") * 50})
    test = pd.DataFrame({"word": ["a", "z", None]})
    measured = baselines("multiclass", (train, np.array([0, 1] * 50)), (test, np.array([0, 2, 1])))
    assert measured["linear"]["accuracy"] < 1
    assert np.isfinite(measured["constant"]["log_loss"])


def test_baselines_learn_a_class_of_one_row() -> None:
    train = pd.DataFrame({"x": np.arange(60.0)})
    target = np.array([0] * 30 + [1] * 29 + [2])
    measured = baselines("multiclass", (train, target), (train, target))
    assert measured["hist_gradient_boosting"]["accuracy"] > 0.9


def test_thinning_out_is_announced_by_its_parameter_only() -> None:
    train = pd.DataFrame({"x": np.arange(1_000.0)})
    target = train.x.to_numpy() * 2
    all_rows = baselines("regression", (train, target), (train, target))
    some = baselines("regression", (train, target), (train, target), max_rows=100)
    assert all_rows["constant"]["bias"] == pytest.approx(0, abs=1e-9)
    assert some["constant"]["bias"] != pytest.approx(0, abs=1e-9)


def test_nothing_to_learn() -> None:
    train = pd.DataFrame({"x": np.arange(20.0)})
    for target in (np.full(20, 3.25), np.full(20, np.nan), np.array([np.nan, *range(19)])):
        with pytest.raises(TrainingError, match=r"same value|not a finite number"):
            baselines("regression", (train, target), (train, np.arange(20.0)))
    with pytest.raises(UsageError, match="no task"):
        baselines("rank", (train, np.arange(20.0)), (train, np.arange(20.0)))


def test_california(shared_data: Path) -> None:
    """What others reach on this split: the mean 1.140, ridge 0.702, the trees 0.4505; the rows differ by the draw."""
    table = pd.read_csv(shared_data / "california_housing" / "housing.csv")
    target = table.pop("median_house_value").to_numpy() / 1e5
    rows = np.random.default_rng(0).permutation(len(table))
    test, train = rows[: len(rows) // 5], rows[len(rows) * 36 // 100 :]
    measured = baselines("regression", (table.iloc[train], target[train]), (table.iloc[test], target[test]))
    assert measured["constant"]["rmse"] == pytest.approx(1.14, abs=0.05)
    assert measured["linear"]["rmse"] == pytest.approx(0.70, abs=0.05)
    assert measured["hist_gradient_boosting"]["rmse"] < 0.48
