"""Models: one graph from raw inputs to the target's unit, and a file that holds nothing but text and tensors."""

import pytest
import torch

from slml.contract import Contract
from slml.errors import StorageError
from slml.features.encoder import Batch, Encoder
from slml.models.model import build_model, load_model, save_model

from support.tasks import TARGETS, contract_of, rows_of_tasks


@pytest.fixture(params=TARGETS)
def made(request) -> tuple[Encoder, Batch, Contract]:
    "Encoder, encoded rows and contract of each task."
    rules = contract_of(request.param)
    encoder = Encoder.fit(rows_of_tasks(), rules)
    return encoder, encoder(rows_of_tasks()), rules


def test_a_stored_model_is_the_same(made, tmp_path):
    encoder, batch, rules = made
    model = build_model(rules, encoder, batch, width=16).eval()
    save_model(model, str(tmp_path / "model.pt"))
    again = load_model(str(tmp_path / "model.pt"))
    assert torch.equal(again(batch.inputs), model(batch.inputs))
    assert again.settings == model.settings


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_no_model_is_refused_and_runs_no_code(tmp_path):
    for content in (b"", b"text", b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(StorageError, match="holds no model"):
            load_model(str(tmp_path / "model.pt"))
    assert not (tmp_path / "ran").exists()
