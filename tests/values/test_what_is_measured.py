"""What a test part cannot measure is named, refused by the gate, and told before the training where it can be."""

import numpy as np
import pytest

from slml.contract import Column, Contract, Numeric
from slml.errors import RegistryError, TrainingError
from slml.explore.evaluation import evaluation_notes
from slml.explore.training import fit_encoder
from slml.registry.gate import check_measured
from slml.sampling.split import SHARES, Part, Split
from slml.training.metrics import measure, uneven_note, unmeasured_metrics


def test_a_test_part_of_one_class_measures_nothing() -> None:
    target, prediction = np.zeros(600), np.full(600, 0.001)
    metrics = measure("binary", target, prediction)
    assert metrics["accuracy"] == 1
    assert list(unmeasured_metrics("binary", target, ["honest", "fraud"])) == ["error of class 'fraud'", "auc"]
    with pytest.raises(RegistryError, match="auc was not measured"):
        check_measured("binary", metrics)
    check_measured("binary", measure("binary", [0, 1], [0.1, 0.9]))
    single = measure("multiclass", [1, 1], [[0.1, 0.8, 0.1]] * 2)
    with pytest.raises(RegistryError, match="auc was not measured"):
        check_measured("multiclass", single)


def test_log_loss_and_auc_lead() -> None:
    assert list(measure("binary", [0, 1], [0.1, 0.9]))[:2] == ["log_loss", "auc"]
    assert list(measure("multiclass", [0, 1, 2], np.eye(3)))[:2] == ["log_loss", "auc"]
    assert "99.8% of the test rows are of class 'no'" in uneven_note("binary", np.arange(600) == 3, ["no", "yes"])


def test_the_auc_of_many_classes_is_the_mean_of_one_against_all() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    target, prediction = random.integers(0, 4, 300), random.dirichlet(np.ones(4), 300).round(2)
    prediction /= prediction.sum(1, keepdims=True)
    expected = roc_auc_score(target, prediction, multi_class="ovr", average="macro")
    assert measure("multiclass", target, prediction)["auc"] == pytest.approx(expected)


def test_a_linear_baseline_far_ahead_is_a_sign() -> None:
    target = np.array([1.0, 2.0, 3.0])
    others = {"constant": {"rmse": 16.0}, "linear": {"rmse": 0.66}, "hist_gradient_boosting": {"rmse": 4.3}}
    (note,) = evaluation_notes("regression", target, (), {"rmse": 0.7}, others)
    assert "far ahead: rmse 0.66, against 4.3 of hist gradient boosting" in note
    assert "total" in note.todo
    assert evaluation_notes("regression", target, (), {"rmse": 3.0}, others | {"linear": {"rmse": 3.5}}) == ()


def test_a_class_that_training_lacks_is_told_before_it() -> None:
    contract = Contract(
        name="t", columns=[Column("x", "float"), Column("kind", "text")], target="kind", task="binary",
        features=[Numeric("x")],
    )  # fmt: skip
    parts = Split(
        snapshot="t@1", seed=0, parts=dict.fromkeys(SHARES, Part()), rows=dict.fromkeys(SHARES, 50), total=150,
        class_column="kind",
        classes={"a": {"train": 50, "valid": 0, "test": 40}, "b": {"train": 0, "valid": 50, "test": 10}},
    )  # fmt: skip
    with pytest.raises(TrainingError, match="no row of class 'b' of 'kind', which test and valid have"):
        fit_encoder(None, contract, parts)
