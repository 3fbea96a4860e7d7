"""Encoder and features: what training and the service must agree on, and what bad input must say."""

import datetime as dt
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slml import contract as c
from slml.errors import TrainingError
from slml.features.encoder import MISSING, NO_TIME, UNKNOWN, Encoder
from slml.features.features import Features, FeatureSettings, fit_features
from slml.features.modules import CalendarParts, GreatCircle, Quantile, Standardize, bins, calendar

TYPES = {
    "y": "float",
    "n": "int",
    "k": "text",
    "t": "timestamp",
    "la": "float",
    "lo": "float",
    "tla": "float",
    "tlo": "float",
}


def table(rows: int = 500, holes: float = 0.1, seed: int = 0) -> pa.Table:
    "Rows of every kind of input, some of them missing."
    rng = np.random.default_rng(seed)

    def column(values, kind=None):
        return pa.array(values, kind, mask=rng.random(rows) < holes)

    place = {name: column(middle + rng.normal(0, 0.05, rows)) for name, middle in [("la", 38.9), ("lo", -77.0)]}
    place |= {f"t{name}": column(middle + rng.normal(0, 0.05, rows)) for name, middle in [("la", 38.9), ("lo", -77.0)]}
    return pa.table(
        {
            "y": rng.normal(size=rows),
            "n": column(rng.integers(0, 9, rows)),
            "k": column(np.array(["a", "b", "c"])[rng.integers(0, 3, rows)]),
            "t": column(rng.integers(0, 2**31, rows) * 10**6, pa.timestamp("us")),
            **place,
        }
    )


@pytest.fixture(scope="module")
def contract() -> c.Contract:
    return c.Contract(
        name="all",
        columns=[c.Column(name=name, type=kind) for name, kind in TYPES.items()],
        target="y",
        task="regression",
        features=[
            c.Numeric(column="n"),
            c.Category(column="k"),
            c.Category(column="n"),
            c.TimeParts(column="t"),
            c.Distance(latitude="la", longitude="lo", to_latitude="tla", to_longitude="tlo"),
        ],
    )


def test_encoder_does_not_depend_on_row_order_or_chunks(contract):
    rows = table()
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    pieces = pa.concat_tables([shuffled[:100], shuffled[100:]])
    assert Encoder.fit(rows, contract) == Encoder.fit(shuffled, contract) == Encoder.fit(pieces, contract)


def test_batches_encode_as_the_whole_table_does(contract):
    rows = table()
    encoder = Encoder.fit(rows, contract)
    whole = encoder.arrays(rows)
    parts = [encoder.arrays(batch) for batch in rows.to_batches(max_chunksize=77)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_unknown_and_missing_values_have_codes(contract):
    encoder = Encoder.fit(table(), contract)
    strange = table().slice(0, 2).set_column(2, "k", pa.array(["never seen", None]))
    assert encoder.arrays(strange)["k"].tolist() == [UNKNOWN, MISSING]


def test_a_stored_encoder_is_the_same(contract):
    encoder = Encoder.fit(table(), contract)
    assert Encoder.model_validate_json(encoder.model_dump_json()) == encoder


def test_the_encoder_needs_no_torch():
    code = "import sys, slml.features.encoder; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop_columns(["n"]), "no column 'n'"),
        (lambda t: t.set_column(1, "n", pa.array(["x"] * t.num_rows)), "cannot be read as a number"),
        (lambda t: t.set_column(3, "t", pa.array([1.5] * t.num_rows)), "cannot be read as a timestamp"),
        (lambda t: t.set_column(0, "y", pa.nulls(t.num_rows, pa.float64())), "cannot be learned"),
        (lambda t: t.set_column(0, "y", pa.array([float("inf")] * t.num_rows)), "cannot be learned"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(contract, change, says):
    encoder = Encoder.fit(table(), contract)
    with pytest.raises(TrainingError, match=says):
        encoder(change(table()))


@pytest.mark.parametrize(
    ("task", "values", "says"),
    [
        ("regression", [1.0] * 4, "1 different values"),
        ("regression", [None] * 4, "0 different values"),
        ("binary", [1, 2, 3, 1], "exactly two values"),
        ("multiclass", ["a"] * 4, "at least two"),
    ],
)
def test_a_target_with_nothing_to_learn_is_refused(task, values, says):
    rows = pa.table({"y": values, "n": [1, 2, 3, 4]})
    contract = c.Contract(
        name="bad", columns=[c.Column(name="y", type="float"), c.Column(name="n", type="int")], target="y", task=task,
        features=[c.Numeric(column="n")],
    )  # fmt: skip
    with pytest.raises(TrainingError, match=says):
        Encoder.fit(rows, contract)


@settings(max_examples=200, deadline=None)
@given(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)))
def test_the_calendar_is_that_of_python(moment):
    seconds = int((moment.replace(microsecond=0) - dt.datetime(1970, 1, 1)).total_seconds())
    parts = CalendarParts("t")({"t": torch.tensor([seconds])})[0]
    assert parts[1] == moment.weekday()
    assert parts[2] == moment.timetuple().tm_yday - 1
    assert abs(parts[0] - (moment.hour + moment.minute / 60 + moment.second / 3600)) < 1e-5
    assert calendar(torch.tensor([seconds // 86_400])) == moment.timetuple().tm_yday - 1


def test_short_distances_are_exact_in_float32():
    "Where the textbook formulas lose everything: a walk of eleven metres to the north-east."
    points = {"a": 38.9, "b": -77.0, "c": 38.9 + 7e-5, "d": -77.0 + 9e-5}
    tensors = {name: torch.tensor([value], dtype=torch.float32) for name, value in points.items()}
    km, east, north, *_ = GreatCircle("a", "b", "c", "d")(tensors)[0].tolist()
    exact = {name: np.float64(t.item()) for name, t in tensors.items()}  # what float32 can say about the points
    dy = np.deg2rad(exact["c"] - exact["a"])
    dx = np.deg2rad(exact["d"] - exact["b"]) * np.cos(np.deg2rad(38.9))
    assert km == pytest.approx(6371.0088 * np.hypot(dx, dy), rel=1e-4)
    assert (east, north) == (
        pytest.approx(dx / np.hypot(dx, dy), rel=1e-3),
        pytest.approx(dy / np.hypot(dx, dy), rel=1e-3),
    )


@pytest.mark.parametrize(
    "column", [[5.0] * 50, [0.0, 1.0] * 25, [float("nan")] * 50, [float("nan"), 2.0] * 25, [1e30, -1e30] * 25]
)
def test_odd_columns_can_be_fitted(column):
    x = torch.tensor(column)[:, None]
    for scaler in (Standardize.fit(x), Quantile.fit(x)):
        out = scaler(x)
        assert (out.isnan() == x.isnan()).all()
        assert out[~out.isnan()].isfinite().all()
        assert scaler(torch.tensor([[1e35], [-1e35], [0.0]])).isfinite().all()
    edges = bins(x, 8)[0]
    assert len(edges) >= 2
    assert (edges.diff() > 0).all()


@pytest.mark.parametrize("embedding", [0, 8])
def test_features_have_no_holes_and_come_back_from_json(contract, embedding):
    rows = table()
    encoder = Encoder.fit(rows, contract)
    batch = encoder(rows)
    features = fit_features(contract, encoder, batch, embedding)
    out = features(batch.inputs)
    assert out.shape == (500, features.width)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    again = Features(FeatureSettings.model_validate_json(features.settings.model_dump_json()))
    again.load_state_dict(features.state_dict())
    assert torch.equal(again(batch.inputs), out)


def test_a_row_gives_the_same_alone_and_in_company(contract):
    rows = table()
    encoder = Encoder.fit(rows, contract)
    features = fit_features(contract, encoder, encoder(rows))
    alone = features(encoder(rows.slice(7, 1)).inputs)
    torch.testing.assert_close(alone[0], features(encoder(rows).inputs)[7], rtol=1e-6, atol=1e-6)


def test_the_baselines_see_what_the_network_sees(contract):
    rows = table()
    encoder = Encoder.fit(rows, contract)
    batch = encoder(rows)
    frame = fit_features(contract, encoder, batch).derived_frame(batch.inputs)
    assert frame.shape == (500, 1 + 10 + 5 + 2)
    assert frame["t_hour"].isna().sum() == (batch.inputs["t"] == NO_TIME).sum()
    pickup = rows["t"].to_pandas()
    known = pickup.notna().to_numpy()
    hours = (pickup - pickup.dt.normalize()).dt.total_seconds() / 3600
    np.testing.assert_allclose(frame["t_hour"][known], hours[known], atol=1e-4)
    assert isinstance(frame["k (code)"].dtype, pd.CategoricalDtype)


def test_a_number_reaches_the_network_beside_its_curve(contract):
    "A curve over quantiles knows a value by its rank only; what costs so much a mile needs the value itself."
    rows = table(holes=0.0)
    encoder = Encoder.fit(rows, contract)
    features = fit_features(contract, encoder, encoder(rows))
    values = torch.tensor(rows["n"].to_numpy(), dtype=torch.float32)
    expected = (values - values.mean()) / values.std(correction=0)
    torch.testing.assert_close(features(encoder(rows).inputs)[:, 0], expected, rtol=1e-3, atol=1e-3)
