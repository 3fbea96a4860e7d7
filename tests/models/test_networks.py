"""Each network under the same contract: every task, every device, ONNX, seeds, tuning; and one list that names them."""

import ast
import json
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from slml.errors import UsageError
from slml.features.encoder import Batch, Encoder
from slml.models.model import Model, build_model, load_model, save_model
from slml.models.networks import NETWORKS, NetworkSettings
from slml.registry.export import to_onnx
from slml.training.tuning import default_parameters, search_space

from support import REPOSITORY
from support.tasks import TARGETS, contract_of, rows_of_tasks

TASKS = list(TARGETS)
SIZES = {"width": 16, "depth": 1}


def encoded(task: str) -> tuple[Encoder, Batch]:
    encoder = Encoder.fit(rows_of_tasks(), contract_of(task))
    return encoder, encoder(rows_of_tasks())


def built(network: str, task: str, seed: int = 0) -> tuple[Model, Batch]:
    encoder, batch = encoded(task)
    return build_model(contract_of(task), encoder, batch, network=network, seed=seed, **SIZES).eval(), batch


@pytest.fixture(params=NETWORKS)
def network(request) -> str:
    return request.param


@pytest.fixture(params=TASKS)
def task(request) -> str:
    return request.param


def test_predictions_have_the_unit_of_the_target(network, task):
    model, batch = built(network, task)
    out = model(batch.inputs)
    assert out.isfinite().all()
    if task == "regression":
        assert out.shape == (400,)
        assert 900 < out.mean() < 1100
    else:
        assert out.shape == (400, len(model.settings.classes))
        torch.testing.assert_close(out.sum(1), torch.ones(400))


def test_a_few_steps_lower_the_loss(network, task):
    model, batch = built(network, task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(*batch)
        assert loss.shape == ()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in model.parameters()), "a weight that nothing depends on"


def test_it_runs_on_another_device(network, task):
    "On `meta` nothing is computed, but a tensor that is made on the CPU in between is an error, as on a GPU."
    model, batch = built(network, task)
    model.to("meta").train()
    inputs = {name: values.to("meta") for name, values in batch.inputs.items()}
    assert model(inputs).device.type == "meta"
    model.loss(inputs, batch.target.to("meta")).backward()
    assert all(p.grad.device.type == "meta" for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_agrees(network, task):
    import onnxruntime

    model, batch = built(network, task)
    with torch.no_grad():  # some steps from where it began: a linear model begins at zero
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        expected = model(batch.inputs).numpy()
    session = onnxruntime.InferenceSession(to_onnx(model, {n: v[:5] for n, v in batch.inputs.items()}))
    (out,) = session.run(None, {node.name: batch.inputs[node.name].numpy() for node in session.get_inputs()})
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_first_weights_and_nothing_else(network, task):
    state = torch.random.get_rng_state()
    first, second, third = (built(network, task, seed)[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if NETWORKS[network].sizes:  # a linear model begins at zero, whatever the seed
        assert any(not torch.equal(first[name], third[name]) for name in first)


def test_a_stored_model_has_its_network(network, tmp_path):
    model, batch = built(network, "multiclass")
    save_model(model, str(tmp_path / "model.pt"))
    again = load_model(str(tmp_path / "model.pt"))
    assert type(again.network) is NETWORKS[network]
    assert torch.equal(again(batch.inputs), model(batch.inputs))


def test_tuning_tries_the_sizes_of_the_network(network):
    "The defaults lie inside what is tried, and both ends make a network."
    tried = search_space(network, 1e-3)
    assert set(tried) == {"learning_rate", "weight_decay", *NETWORKS[network].sizes}

    class Few:
        rows, batch_rows = 1_000, 256

    encoder, batch = encoded("regression")
    for name, values in tried.items():
        assert values.low <= default_parameters(Few)[name] <= values.high
    for end in ("low", "high"):
        sizes = {name: getattr(tried[name], end) for name in NETWORKS[network].sizes}
        assert (
            build_model(contract_of("regression"), encoder, batch, network=network, **sizes)(batch.inputs)
            .isfinite()
            .all()
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda name: built(name, "regression"),
        lambda name: NetworkSettings(kind=name),
        lambda name: search_space(name, 1e-3),
    ],
    ids=["build", "settings", "space"],
)
def test_an_unknown_name_is_refused_with_the_nearest(network, call):
    with pytest.raises(UsageError, match=f"did you mean '{network}'") as error:
        call(f"{network}x")
    assert f"one of {', '.join(NETWORKS)}" in str(error.value)


class Bilinear(nn.Module):
    "A network that slml does not have."

    sizes: ClassVar = {"width": range(2, 9, 2)}
    embeds_numbers: ClassVar = False

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.left, self.right = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.output = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.left(x) * self.right(x))


def test_one_line_adds_a_network(monkeypatch, task):
    monkeypatch.setitem(NETWORKS, "bilinear", Bilinear)
    test_predictions_have_the_unit_of_the_target("bilinear", task)
    test_a_few_steps_lower_the_loss("bilinear", task)
    assert set(search_space("bilinear", 1e-3)) == {"learning_rate", "weight_decay", "width"}
    with pytest.raises(UsageError, match="one of mlp, linear, bilinear"):
        search_space("trilinear_network", 1e-3)


def names_together(tree: ast.AST) -> list[int]:
    "Lines where two networks stand in one literal, or one is compared with: a second list, or an `if`."
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            parts = node.elts
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key]
        elif isinstance(node, (ast.Compare, ast.MatchValue)):
            compared = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            lines += [node.lineno] * bool(set(NETWORKS) & {value for value in compared if isinstance(value, str)})
            continue
        else:
            continue
        values = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
        lines += [node.lineno] * (len(values & set(NETWORKS)) > 1)
    return lines


def test_there_is_no_other_list_of_networks():
    "Neither in code nor in a comment or docstring of the package and the jobs."
    home = REPOSITORY / "slml/models/networks.py"
    both = re.compile(rf"\b({'|'.join(NETWORKS)})\b(,? (or|and) |, |/|\|)\b({'|'.join(NETWORKS)})\b")
    code = {path: path.read_text() for path in (REPOSITORY / "slml").rglob("*.py") if path != home}
    for path in (REPOSITORY / "nbs/jobs").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert len(code) > 50
    for path, text in code.items():
        assert not both.search(text), f"{path} names the networks: {both.search(text)[0]}"
        assert not names_together(ast.parse(text)), f"{path} has a list of networks of its own"
    assert names_together(ast.parse("kind: Literal['mlp', 'linear']")) == [1]
    assert names_together(ast.parse("0 if network == 'linear' else 8")) == [1]
