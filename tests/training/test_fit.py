"""Training: it learns, it stops, it is deterministic, and nobody can tell afterwards that it was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch

from slml import contract as c
from slml.errors import TrainingError
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.training.fit import batch_size, fit, predict_batches
from slml.training.loader import Loader
from slml.training.metrics import measure

from support import REPOSITORY
from support.training import made, write_rows

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from support.training import made

from slml.training.fit import fit
model, train, valid = made({folder!r})
fit(model, train, valid, epochs={epochs}, checkpoint={folder!r} + "/checkpoint.pt", checkpoint_steps=3, progress=False)
print("finished")
"""


@pytest.fixture
def folder(tmp_path) -> str:
    write_rows(tmp_path)
    return str(tmp_path)


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    "Whether all weights are equal in every bit."
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_and_keeps_the_best_weights(folder):
    model, train, valid = made(folder)
    before = measure("regression", *predict_batches(model, valid.in_order()))["rmse"]
    history = fit(model, train, valid, epochs=30, learning_rate=4e-3, progress=False)
    after = measure("regression", *predict_batches(model, valid.in_order()))["rmse"]
    assert after == pytest.approx(history.best)
    assert after < 0.4 * before
    assert not model.training
    assert len(history.epochs) == len(history.train) == len(history.valid)


def test_the_same_arguments_give_the_same_weights(folder):
    models = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # whatever the program did before does not matter
        model, train, valid = made(folder)
        fit(model, train, valid, epochs=2, progress=False)
        models.append(model)
    assert same(*models)


class KilledError(Exception):
    "Stands for the end of the process."


@pytest.mark.parametrize("steps", [2, 16, 21, 31])
def test_a_killed_training_goes_on_to_the_same_weights(folder, steps):
    "Killed without a warning, so that only the last regular checkpoint is there."
    uri = f"{folder}/checkpoint.pt"

    class Dying(Loader):
        batches_read = 0

        def iter_epoch(self, epoch, start=0, share=slice):
            for batch in super().iter_epoch(epoch, start, share):
                Dying.batches_read += 1
                if Dying.batches_read > steps:
                    raise KilledError
                yield batch

    model, dying, _ = made(folder, Dying)
    _, _, valid = made(folder)
    with pytest.raises(KilledError):
        fit(model, dying, valid, epochs=3, checkpoint=uri, checkpoint_steps=5, progress=False)
    resumed, train, valid = made(folder)
    fit(resumed, train, valid, epochs=3, checkpoint=uri, checkpoint_steps=5, progress=False)
    undisturbed, train, valid = made(folder)
    fit(undisturbed, train, valid, epochs=3, progress=False)
    assert same(resumed, undisturbed)


def test_sigterm_saves_the_checkpoint_and_ends_the_process(folder):
    script = SCRIPT.format(tests=str(REPOSITORY / "tests"), folder=folder, epochs=100_000)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    checkpoint = Path(folder, "checkpoint.pt")
    try:
        until = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, error
    assert b"finished" not in out
    assert torch.load(checkpoint, weights_only=True)["state"]["steps"] > 0
    assert not list(Path(folder).glob(".*.part"))


def test_ctrl_c_saves_the_last_step_and_goes_on_from_there(folder):
    uri = f"{folder}/checkpoint.pt"

    class Pressed(Loader):
        def iter_epoch(self, epoch, start=0, share=slice):
            for step, batch in enumerate(super().iter_epoch(epoch, start, share)):
                if (epoch, step) == (1, 4):
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

    model, pressed, _ = made(folder, Pressed)
    _, train, valid = made(folder)
    with pytest.raises(KeyboardInterrupt):
        fit(model, pressed, valid, epochs=3, checkpoint=uri, progress=False)
    state = torch.load(uri, weights_only=True)["state"]
    assert (state["epoch"], state["batch"]) == (1, 5)  # the step in which it came was finished
    resumed, undisturbed = made(folder)[0], made(folder)[0]
    fit(resumed, train, valid, epochs=3, checkpoint=uri, progress=False)
    fit(undisturbed, train, valid, epochs=3, progress=False)
    assert same(resumed, undisturbed)


def test_a_finished_training_is_not_repeated(folder):
    uri = f"{folder}/checkpoint.pt"
    model, train, valid = made(folder)
    first = fit(model, train, valid, epochs=2, checkpoint=uri, progress=False)
    again, train, valid = made(folder)
    second = fit(again, train, valid, epochs=2, checkpoint=uri, progress=False)
    assert second.valid == first.valid
    assert second.lasted == first.lasted
    assert same(model, again)


def test_the_checkpoint_of_another_training_is_refused(folder):
    uri = f"{folder}/checkpoint.pt"
    model, train, valid = made(folder)
    fit(model, train, valid, epochs=1, checkpoint=uri, progress=False)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.5"):
        fit(made(folder)[0], train, valid, epochs=1, learning_rate=0.5, checkpoint=uri, progress=False)


def test_a_loss_that_is_no_number_says_where_and_what_to_try(folder):
    model, train, valid = made(folder)
    with pytest.raises(TrainingError, match=r"epoch \d+.*(?s:.*)learning rate a tenth"):
        fit(model, train, valid, epochs=50, learning_rate=1e12, average=0.0, progress=False)


def test_time_is_a_bound(folder):
    model, train, valid = made(folder)
    history = fit(model, train, valid, epochs=10_000, patience=10_000, max_seconds=1.0, progress=False)
    assert history.seconds < 3
    assert "seconds were over" in history.stopped


def test_the_batch_follows_the_rows():
    assert [batch_size(n) for n in (10, 50_000, 200_000, 600_000, 3_000_000)] == [256, 256, 256, 1024, 4096]


def test_california_housing(shared_data):
    "The house's own figure: an RMSE of at most 0.50 after 8 epochs on the 64/16/20 split of seed 0."
    rows = pa.csv.read_csv(shared_data / "california_housing" / "housing.csv")
    rows = rows.set_column(8, "median_house_value", pa.array(rows["median_house_value"].to_numpy() / 1e5))
    text = "ocean_proximity"
    rules = c.Contract(
        name="housing",
        columns=[c.Column(name=name, type="text" if name == text else "float") for name in rows.column_names],
        target="median_house_value",
        task="regression",
        features=[*(c.Numeric(column=name) for name in rows.column_names[:8]), c.Category(column=text)],
    )
    order = np.random.default_rng(0).permutation(rows.num_rows)
    cuts = [round(0.64 * len(order)), round(0.8 * len(order))]
    parts = {}
    for name, indices in zip(("train", "valid", "test"), np.split(order, cuts), strict=True):
        parts[name] = rows.take(pa.array(indices))
    encoder = Encoder.fit(parts["train"], rules)
    sources = {name: InMemory(encoder(part)) for name, part in parts.items()}
    model = build_model(rules, encoder, encoder(parts["train"]))
    fit(model, sources["train"], sources["valid"], epochs=8, learning_rate=2e-3, progress=False)
    assert measure("regression", *predict_batches(model, sources["test"].iter_epoch(0)))["rmse"] <= 0.50


class InMemory:
    "Shuffled batches of encoded rows."

    batch_rows = 256

    def __init__(self, batch):
        self.batch, self.rows = batch, len(batch.target)

    def iter_epoch(self, epoch: int, start: int = 0, share=slice):
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(self.rows))
        for rows in order.split(self.batch_rows)[start:]:
            rows = rows[share(len(rows))]
            yield type(self.batch)({name: x[rows] for name, x in self.batch.inputs.items()}, self.batch.target[rows])
