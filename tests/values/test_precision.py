"""Large magnitudes keep their digits, categories their values, and wide tables go through."""

import math
import struct

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import slml
from slml.contract import Category, Column, Contract, Distance, Numeric
from slml.features.encoder import MISSING, UNKNOWN, Encoder, ModelInput, number_scale
from slml.features.features import fit_features
from slml.models.model import build_model
from slml.registry.bundle import open_session, run_session
from slml.registry.export import CORNERS, predict_torch, to_onnx, with_edges
from slml.serving.predictor import Encoding, category_codes, centred_input, encoders
from slml.training.estimators import SlmlRegressor
from slml.workspace import Workspace

LARGE = 5.4e9


def table_of(x: np.ndarray, y: np.ndarray, kind: str = "float") -> tuple[pa.Table, Contract]:
    columns = [Column(name="x", type=kind), Column(name="y", type="float")]
    contract = Contract(name="t", columns=columns, target="y", task="regression", features=[Numeric("x")])
    return pa.table({"x": x, "y": y}), contract


def test_a_large_feature_and_a_large_target_are_learned_as_scikit_learn_does():
    random = np.random.default_rng(0)
    x = LARGE + random.uniform(0, 1000, 1500)
    y = LARGE + (x - LARGE) + random.normal(0, 10, 1500)
    inputs, learn, test = pd.DataFrame({"x": x}), slice(0, 1200), slice(1200, None)
    model = SlmlRegressor(network="linear", epochs=60, learning_rate=0.03).fit(inputs[learn], y[learn])
    exact = make_pipeline(StandardScaler(), LinearRegression()).fit(inputs[learn], y[learn])
    rmse, best = (math.sqrt(np.mean((m.predict(inputs[test]) - y[test]) ** 2)) for m in (model, exact))
    assert rmse < 1.1 * best, (rmse, best)  # in float32 the target alone is off by up to 256


@pytest.mark.parametrize("kind", ["float", "int"])
def test_onnx_predicts_what_torch_predicts_to_the_digit_that_matters(kind):
    x = LARGE + np.arange(1000.0)
    table, contract = table_of(x.astype(np.int64) if kind == "int" else x, 3 * (x - LARGE) + LARGE, kind)
    encoder = Encoder.fit(table, contract)
    model = build_model(contract, encoder, encoder(table), width=16, depth=1).eval()
    expected = predict_torch(model, encoder, table)
    tensors = {name: torch.from_numpy(values) for name, values in encoder.arrays(table).items()}
    got = run_session(open_session(to_onnx(model, tensors)), encoder, table)
    assert expected.dtype == got.dtype == np.float64
    assert np.abs(expected - got).max() < 1e-4 * model.settings.scale
    assert len(np.unique(encoder.arrays(table)["x"])) == 1000
    assert (encoder(table).target.numpy() == 3 * (x - LARGE) + LARGE).all()


def test_trees_get_the_column_in_its_unit_and_with_its_digits():
    table, contract = table_of(LARGE + np.arange(500.0), np.arange(500.0))
    encoder = Encoder.fit(table, contract)
    frame = fit_features(contract, encoder, encoder(table)).derived_frame(encoder(table).inputs)
    assert np.abs(frame["x"].to_numpy() - table["x"].to_numpy()).max() < 1e-3


def test_ordinary_columns_and_degrees_stay_as_they_are():
    for values in ([2014, 2019, 2023], [0.5, 3.25, 40.0], [1.0, 1.0, 1.0], [None, None], [True, False, None]):
        assert number_scale(pa.chunked_array([values])) == (0.0, 1.0)
    points = pa.table({n: 38.9 + 1e-4 * np.arange(50.0) for n in "abcd"} | {"y": np.arange(50.0)})
    contract = Contract(
        name="t",
        columns=[Column(name=n, type="float") for n in "abcdy"],
        target="y",
        task="regression",
        features=[Numeric("a"), Distance("a", "b", "c", "d")],
    )
    assert all((i.offset, i.scale) == (0.0, 1.0) for i in Encoder.fit(points, contract).inputs)


@pytest.mark.parametrize("factor", [1e-40, 1e-25, 1e35, 1e300])
def test_any_unit_may_be_used(factor):
    column = pa.chunked_array([factor * np.linspace(1, 2, 101)])
    offset, scale = number_scale(column)
    values = ModelInput(name="x", column="x", kind="number", offset=offset, scale=scale)(column)
    assert len(np.unique(values)) == 101
    assert np.ptp(values) > 0.1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=20)
    | st.lists(st.floats(allow_infinity=False, allow_nan=False), min_size=3, max_size=20)
    | st.lists(st.integers(1_718_000_000_000, 1_718_000_100_000), min_size=3, max_size=20)
)
def test_a_request_and_a_table_are_encoded_alike(values):
    kind = "int" if isinstance(values[0], int) else "float"
    column = pa.chunked_array([values])
    offset, scale = number_scale(column)
    expected = ModelInput(name="x", column="x", kind="number", offset=offset, scale=scale)(column)
    read = centred_input(offset, scale)
    got = np.array([struct.unpack("f", struct.pack("f", read(value)))[0] for value in values], np.float32)
    exact = kind == "float" or max(abs(value - offset) for value in values) < 2**53
    assert np.array_equal(got, expected, equal_nan=True) if exact else np.allclose(got, expected, equal_nan=True)


def test_an_encoder_without_offsets_still_opens():
    inputs = '[{"name":"x","column":"x","kind":"number","vocabulary":[]}]'
    old = f'{{"inputs":{inputs},"target":{{"column":"y","task":"regression"}}}}'
    encoder = Encoder.model_validate_json(old)
    assert encoder.arrays(pa.table({"x": [1.5]}))["x"].tolist() == [1.5]
    (read,) = encoders(msgspec.json.decode(old, type=Encoding), {"x": "float"})
    assert read(1.5) == 1.5


def stores(values: int, rows: int) -> tuple[pa.Table, Contract]:
    names = [f"S{n % values:05}" for n in range(rows)]
    columns = [Column(name="store", type="text"), Column(name="y", type="float")]
    contract = Contract(name="t", columns=columns, target="y", task="regression", features=[Category("store")])
    return pa.table({"store": names, "y": np.arange(float(rows))}), contract


@pytest.mark.parametrize("values", [900, 50_000])
def test_every_value_of_a_category_has_a_code_and_an_unknown_one_another(values):
    table, contract = stores(values, 2 * values)
    encoder = Encoder.fit(table, contract)
    codes = encoder.arrays(table)["store"]
    assert len(np.unique(codes)) == values
    assert codes.min() > MISSING
    encoding = msgspec.json.decode(encoder.model_dump_json(), type=Encoding)
    by_value = category_codes(encoding.inputs[0].vocabulary, "text")
    assert [by_value[name] for name in table["store"].to_pylist()[:values]] == codes[:values].tolist()
    assert by_value["S99999x"] == UNKNOWN
    assert encoder.arrays(pa.table({"store": ["S99999x", None]}))["store"].tolist() == [UNKNOWN, MISSING]


def test_nine_hundred_shops_are_learned():
    random = np.random.default_rng(0)
    effect, shop = random.normal(0, 2, 900), random.integers(0, 900, 12_000)
    frame = pd.DataFrame({"store": [f"S{n:03}" for n in shop]})
    y = effect[shop] + random.normal(0, 0.3, len(shop))
    model = SlmlRegressor(epochs=12, batch_rows=256, width=64).fit(frame[:10_000], y[:10_000])
    assert math.sqrt(np.mean((model.predict(frame[10_000:]) - y[10_000:]) ** 2)) < 0.6  # guessing: 2


def test_infer_takes_a_category_of_many_values_that_repeat(tmp_path):
    workspace = Workspace(root=str(tmp_path))
    table, _ = stores(2_000, 10_000)
    contract = slml.infer(slml.ingest(table, "shops", workspace=workspace), target="y", workspace=workspace)
    assert Category("store") in contract.features
    assert any("'store'" in note and "2,000 values" in note for note in contract.notes)


def test_odd_values_of_a_wide_table_share_rows_and_none_is_left_out():
    wide = pa.table({f"x{n}": [1.0, 2.0] for n in range(3_000)})
    more = {name: [3.5] * CORNERS for name in wide.column_names}
    rows = with_edges(wide, more=more)
    assert rows.num_rows < 200
    assert all({-9.0, 12.0, 0.0, 3.5, None} <= set(rows[name].to_pylist()) for name in wide.column_names)


@pytest.mark.slow
def test_a_table_of_three_hundred_columns_becomes_a_registered_model(tmp_path, monkeypatch):
    wide_model(tmp_path, 300)


def wide_model(folder, columns):
    workspace = Workspace(root=str(folder))
    random = np.random.default_rng(0)
    numbers = {f"x{n}": random.normal(size=400) for n in range(columns)}
    table = pa.table(numbers | {"y": 3 * numbers["x0"] + random.normal(0, 0.1, 400)})
    snapshot = slml.ingest(table, "wide", workspace=workspace)
    contract = slml.infer(snapshot, target="y", workspace=workspace)
    assert slml.audit(snapshot, contract, workspace=workspace).clean_rows == 400
    ledger = slml.clean(snapshot, contract, workspace=workspace)
    model = slml.train(ledger, contract, network="linear", max_seconds=5, workspace=workspace)
    assert model.register("wide", beats=()).number == 1
