"""Models: one graph from raw inputs to the target's unit, the same in torch, in a file and in ONNX Runtime."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from slml import contract as c
from slml.errors import StorageError
from slml.features.encoder import Batch, Encoder
from slml.models.model import build, load, save

TASKS = {"regression": "y", "binary": "yes", "multiclass": "letter"}


def table(rows: int = 400) -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return pa.table(
        {
            "x": pa.array(x, mask=rng.random(rows) < 0.1),
            "k": np.array(["a", "b"])[rng.integers(0, 2, rows)],
            "t": pa.array(rng.integers(0, 2**31, rows) * 10**6, pa.timestamp("us")),
            "y": 1000 + 50 * x,
            "yes": x > 0,
            "letter": np.array(["p", "q", "r"])[np.digitize(x, [-0.5, 0.5])],
        }
    )


def contract(task: str) -> c.Contract:
    types = {"x": "float", "k": "text", "t": "timestamp", "y": "float", "yes": "bool", "letter": "text"}
    return c.Contract(
        name="small",
        columns=[c.Column(name=name, type=kind) for name, kind in types.items()],
        target=TASKS[task],
        task=task,
        features=[c.Numeric(column="x"), c.Category(column="k"), c.TimeParts(column="t")],
    )


@pytest.fixture(params=TASKS)
def made(request) -> tuple[Encoder, Batch, c.Contract]:
    "Encoder, encoded rows and contract of each task."
    rules = contract(request.param)
    encoder = Encoder.fit(table(), rules)
    return encoder, encoder(table()), rules


@pytest.mark.parametrize("network", ["mlp", "linear"])
def test_predictions_have_the_unit_of_the_target(made, network):
    encoder, batch, rules = made
    out = build(rules, encoder, batch, network=network).eval()(batch.inputs)
    if rules.task == "regression":
        assert out.shape == (400,)
        assert 900 < out.mean() < 1100
    else:
        assert out.shape == (400, len(encoder.target.classes))
        torch.testing.assert_close(out.sum(1), torch.ones(400))


def test_a_stored_model_is_the_same(made, tmp_path):
    encoder, batch, rules = made
    model = build(rules, encoder, batch, width=16).eval()
    save(model, str(tmp_path / "model.pt"))
    again = load(str(tmp_path / "model.pt"))
    assert torch.equal(again(batch.inputs), model(batch.inputs))
    assert again.settings == model.settings


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_no_model_is_refused_and_runs_no_code(tmp_path):
    for content in (b"", b"text", b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(StorageError, match="holds no model"):
            load(str(tmp_path / "model.pt"))
    assert not (tmp_path / "ran").exists()


def test_the_seed_decides_the_first_weights_and_nothing_else(made):
    encoder, batch, rules = made
    state = torch.random.get_rng_state()
    one, two, other = (build(rules, encoder, batch, width=8, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


class Named(torch.nn.Module):
    "The model with its inputs in a row instead of by name."

    def __init__(self, model: torch.nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, tensors, strict=True)))


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_agrees(tmp_path):
    import onnxruntime

    rules = contract("regression")
    encoder = Encoder.fit(table(), rules)
    batch = encoder(table())
    model = build(rules, encoder, batch, width=16).eval()
    flat, rows = Named(model, list(batch.inputs)), torch.export.Dim("rows")
    few = tuple(values[:5] for values in batch.inputs.values())
    shapes = (tuple({0: rows} for _ in few),)
    program = torch.onnx.export(flat, few, None, dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    fed = zip(session.get_inputs(), batch.inputs.values(), strict=True)
    (out,) = session.run(None, {place.name: values.numpy() for place, values in fed})
    expected = flat(*batch.inputs.values()).detach().numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-6)
