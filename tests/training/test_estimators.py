"""slml as scikit-learn estimators: its checks, its tools, and tables of numbers, texts, categories and times."""

import datetime as dt
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from slml.errors import TrainingError, UsageError
from slml.models.model import load_model, save_model
from slml.models.networks import NETWORKS
from slml.training.estimators import SlmlClassifier, SlmlRegressor, column_table, table_contract

from support.tasks import rows_of_tasks

QUICK = {"epochs": 3, "width": 16, "depth": 1}


@parametrize_with_checks([SlmlRegressor(), SlmlClassifier()])
def test_the_checks_of_scikit_learn(estimator, check):
    "All of them: none is expected to fail."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checks' own data
        check(estimator)


@pytest.fixture(scope="module")
def trips() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "miles": rng.gamma(2.0, 2.0, 400),
            "company": rng.choice(["green", "yellow", None], 400),
            "zone": pd.Categorical(rng.integers(1, 5, 400)),
            "rate": pd.Categorical(rng.choice([0.5, 1.0], 400)),
            "shared": rng.random(400) < 0.5,
            "riders": pd.array(rng.integers(1, 5, 400), "Int64"),
            "day": [dt.date(2025, 1, 1) + dt.timedelta(days=int(n)) for n in rng.integers(0, 365, 400)],
            "pickup": pd.date_range("2025-01-01", periods=400, freq="h", tz="America/New_York"),
            "wait": pd.to_timedelta(rng.integers(0, 900, 400), unit="s"),
            "nothing": None,
        }
    )
    frame.loc[::7, ["miles", "riders", "day", "pickup", "wait", "zone"]] = None
    return frame


@pytest.fixture(scope="module")
def fare(trips: pd.DataFrame) -> pd.Series:
    return 3 + 2.5 * trips["miles"].fillna(4.0) + 5 * (trips["company"] == "green")


def test_each_kind_of_column_makes_its_feature(trips, fare):
    model = SlmlRegressor(**QUICK).fit(trips, fare)
    kinds = {feature.column: feature.kind for feature in model.contract_.features}
    assert kinds == {
        **dict.fromkeys(["miles", "shared", "riders", "wait", "nothing"], "numeric"),
        **dict.fromkeys(["company", "zone", "rate"], "category"),
        **dict.fromkeys(["day", "pickup"], "time_parts"),
    }
    assert model.predict(trips).shape == (400,)
    assert model.feature_names_in_.tolist() == list(trips.columns)


def test_it_learns_from_all_of_them(trips, fare):
    assert cross_val_score(SlmlRegressor(), trips, fare, cv=2).min() > 0.9
    classes = np.where(fare > fare.median(), "high", "low")
    assert cross_val_score(SlmlClassifier(), trips, classes, cv=2).min() > 0.9


@pytest.mark.parametrize(
    ("labels", "stored"),
    [
        ([1, 3, 20], ("1", "3", "20")),
        (["a", "b", "é"], ("a", "b", "é")),
        ([False, True], ("false", "true")),
        ([2.0, 10.0], ("2", "10")),
    ],
    ids=["int", "text", "bool", "float"],
)
def test_classes_keep_their_names_and_order(labels, stored):
    rng = np.random.default_rng(0)
    index = rng.integers(0, len(labels), 200)
    y, X = np.array(labels)[index], index[:, None] + rng.normal(0, 0.05, (200, 1))
    model = SlmlClassifier(width=16).fit(X, y)
    assert model.classes_.tolist() == labels
    assert model.encoder_.target.classes == stored
    assert model.score(X, y) > 0.95
    assert (model.predict(X) == model.classes_[model.predict_proba(X).argmax(1)]).all()


def test_two_pairs_of_coordinates_make_a_distance():
    frame = rows_of_tasks().to_pandas()[["lat", "lon", "to_lat", "to_lon"]]
    contract = SlmlRegressor(**QUICK).fit(frame, frame["lat"] * 2).contract_
    assert [f.kind for f in contract.features] == ["numeric"] * 4 + ["distance"]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_serves(network, trips, fare):
    model = SlmlRegressor(network=network, **QUICK).fit(trips, fare)
    assert type(model.model_.network) is NETWORKS[network]
    assert np.isfinite(model.predict(trips)).all()


def test_a_row_has_the_same_prediction_alone_and_among_others(trips, fare):
    model = SlmlRegressor(**QUICK).fit(trips, fare)
    together = model.predict(pd.concat([trips, trips, trips], ignore_index=True))
    for rows in (slice(0, 1), slice(7, 50), slice(390, 400)):
        assert (model.predict(trips[rows]) == together[rows]).all()


def test_it_works_in_the_tools_of_scikit_learn(trips, fare):
    quick = SlmlRegressor(**QUICK)
    scaled = ColumnTransformer([("miles", StandardScaler(), ["miles"])], remainder="passthrough")
    piped = make_pipeline(scaled.set_output(transform="pandas"), quick)
    assert cross_val_predict(piped, trips, fare, cv=2).shape == (400,)
    search = GridSearchCV(quick, {"network": list(NETWORKS), "width": [8, 16]}, cv=2).fit(trips, fare)
    assert search.best_estimator_.model_.settings.network.kind == search.best_params_["network"]
    again = clone(search.best_estimator_)
    assert again.get_params() == search.best_estimator_.get_params()
    assert not hasattr(again, "model_")


def test_the_same_seed_gives_the_same_model_and_another_seed_another(trips, fare):
    first, second, third = (SlmlRegressor(seed=seed, **QUICK).fit(trips, fare).predict(trips) for seed in (0, 0, 1))
    assert (first == second).all()
    assert (first != third).any()
    assert (pickle.loads(pickle.dumps(SlmlRegressor(**QUICK).fit(trips, fare))).predict(trips) == first).all()


def test_its_model_is_one_of_slml(trips, fare, tmp_path):
    model = SlmlRegressor(**QUICK).fit(trips, fare)
    save_model(model.model_, str(tmp_path / "model.pt"))
    batch = model.encoder_(column_table(trips).append_column("target", [fare.to_numpy()]))
    np.testing.assert_allclose(
        load_model(str(tmp_path / "model.pt"))(batch.inputs).detach(), model.predict(trips), rtol=1e-5
    )


def test_what_was_passed_is_not_changed(trips, fare):
    before, target = trips.copy(), fare.copy()
    SlmlRegressor(**QUICK).fit(trips, fare).predict(trips)
    pd.testing.assert_frame_equal(trips, before)
    pd.testing.assert_series_equal(fare, target)


def test_time_and_epochs_are_bounds(trips, fare):
    assert len(SlmlRegressor(epochs=2).fit(trips, fare).history_.epochs) == 2
    assert SlmlRegressor(epochs=10_000, patience=10_000, max_seconds=0.5).fit(trips, fare).history_.seconds < 5


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"network": "lineer"}, UsageError, "did you mean 'linear'"),
        ({"validation_share": 0.0}, UsageError, "between 0 and 1"),
        ({"validation_share": 1.0}, UsageError, "between 0 and 1"),
        ({"epochs": 0}, UsageError, "epochs = 0"),
        ({"batch_rows": -1}, UsageError, "at least one row"),
    ],
    ids=["network", "no validation", "validation only", "epochs", "batch"],
)
def test_a_wrong_parameter_is_refused(change, error, says, trips, fare):
    with pytest.raises(error, match=says):
        SlmlRegressor(**{**QUICK, **change}).fit(trips, fare)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.assign(miles=np.inf), ValueError, "infinity"),
        (lambda t: t.assign(miles=[[1]] * len(t)), TrainingError, "'miles' is list"),
        (lambda t: t.assign(miles=[1, "x"] * (len(t) // 2)), TrainingError, "no type"),
        (lambda t: t[["miles", "miles"]], ValueError, "unique column names"),
        (lambda t: t[[]], ValueError, "columns"),
        (lambda t: t[:1], ValueError, "n_samples=1"),
        (lambda t: t[:-1], ValueError, "inconsistent numbers of samples"),
    ],
    ids=["infinity", "lists", "mixed", "one name twice", "no column", "one row", "other rows than y"],
)
def test_a_table_that_cannot_be_learned_is_refused(change, error, says, trips, fare):
    frame = change(trips)
    target = fare[:1] if len(frame) == 1 else fare
    with pytest.raises(error, match=says):
        SlmlRegressor(**QUICK).fit(frame, target)


def test_a_table_that_does_not_fit_is_refused(trips, fare):
    with pytest.raises(NotFittedError):
        SlmlRegressor().predict(trips)
    model = SlmlRegressor(**QUICK).fit(trips, fare)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(trips.drop(columns="miles"))
    with pytest.raises(TrainingError, match="'miles' cannot be read as a number"):
        model.predict(trips.assign(miles="far"))


def test_the_contract_names_the_target_apart_from_the_columns(trips, fare):
    named = trips.rename(columns={"miles": "target"})
    assert SlmlRegressor(**QUICK).fit(named, fare).contract_.target == "target_"
    table = column_table(trips).append_column("fare", [fare.to_numpy()])
    assert table_contract(table, "fare", "regression").target == "fare"
