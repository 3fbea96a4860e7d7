"""Several processes train as one does: the same weights, one checkpoint, one end."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fit import folder as folder
from test_fit import made

from slml.sampling.split import Part
from slml.training.distributed import Group, joined
from slml.training.fit import fit, predict
from slml.training.loader import Loader, take

TOLERANCE = 1e-5  # relative, between one process and two: float32 numbers added up in another order
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
HEAD = """
import os, signal, sys, time
from dataclasses import asdict
sys.path.insert(0, {tests!r})
from test_distributed import *

folder, rank = {folder!r}, int(os.environ["RANK"])


def keep(name, model, train, valid, **settings):
    history = fit(model, train, valid, **settings)
    torch.save({{"history": asdict(history), "weights": model.state_dict()}}, f"{{folder}}/{{name}}-{{rank}}.pt")


"""


def same(one: dict, two: dict) -> bool:
    "Whether all weights are equal in every bit."
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def trained(
    folder: str,
    batch_rows: int = 128,
    dropout: float = 0.0,
) -> tuple:
    "Model and loaders of test_fit, with another batch and dropout."
    model, train, valid = made(folder)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model, Loader([f"{folder}/train.parquet"], Part(), train.source.encode, batch_rows), valid


def start(folder: str, body: str) -> subprocess.Popen:
    "A program on two ranks."
    script = Path(folder, "program.py")
    script.write_text(HEAD.format(tests=str(Path(__file__).parent), folder=folder) + body)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    "What it printed, once it has ended."
    try:
        return process.communicate(timeout=60)[0]
    finally:
        process.kill()


def results(folder: str, name: str) -> list:
    "What both ranks kept under a name."
    return [torch.load(f"{folder}/{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    "Wait for something that a process does."
    end = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert condition(), finish(process)


def test_two_ranks_train_as_one_does(folder):
    """Batches of 128 (the last one of 80), of 99, and of 1,999, whose last row only one of the two can have.

    Without dropout the only difference is the order in which numbers are added up. One more training goes on from
    a checkpoint that a process alone has written.
    """
    settings = {"epochs": 5, "learning_rate": 3e-3, "progress": False}
    alone = {}
    for rows in (128, 99, 1999):
        model, train, valid = trained(folder, rows)
        alone[rows] = (model, fit(model, train, valid, **settings))
    half = {**settings, "epochs": 2, "checkpoint": f"{folder}/alone.pt"}
    fit(*trained(folder, 128), **half)
    body = f"""
for rows in (128, 99, 1999):
    keep(rows, *trained(folder, rows), **{settings})
keep("resumed", *trained(folder, 128), checkpoint=folder + "/alone.pt", **{settings})
keep("random", *trained(folder, 128, dropout=0.2), **{settings})
"""
    process = start(folder, body)
    assert not process.wait(60), finish(process)
    for name, (model, history) in {**alone, "resumed": alone[128]}.items():
        first, second = results(folder, name)
        assert same(first["weights"], second["weights"])
        assert first["history"] == second["history"]
        assert first["history"]["valid"] == pytest.approx(history.valid, rel=TOLERANCE)
        assert first["history"]["train"] == pytest.approx(history.train, rel=TOLERANCE)
        expected = predict(model, valid.in_order())[1]
        model.load_state_dict(first["weights"])
        difference = np.abs(predict(model, valid.in_order())[1] - expected).max()
        assert difference <= TOLERANCE * np.abs(expected).max()
    first, second = results(folder, "random")
    model, train, valid = trained(folder, 128, dropout=0.2)
    assert same(first["weights"], second["weights"])
    assert first["history"]["valid"][-1] == pytest.approx(fit(model, train, valid, **settings).valid[-1], rel=0.15)


def test_sigterm_to_torchrun_saves_and_the_training_goes_on_to_the_same_weights(folder):
    "With dropout. Each rank names another file: the second one must not be there."
    body = """
fit(*trained(folder, dropout=0.2), epochs=10**6, patience=10**6, checkpoint=f"{folder}/killed-{rank}.pt")
"""
    process = start(folder, body)
    checkpoint = Path(folder, "killed-0.pt")
    until(checkpoint.exists, process)
    process.terminate()
    printed = finish(process)
    assert process.returncode, printed
    state = torch.load(checkpoint, weights_only=True)["state"]
    assert not Path(folder, "killed-1.pt").exists()
    assert not list(Path(folder).glob(".*.part"))
    shutil.copy(checkpoint, Path(folder, "again.pt"))
    shutil.copy(checkpoint, Path(folder, "alone.pt"))
    settings = {"epochs": state["epoch"] + 2, "patience": 10**6, "progress": False}
    body = f"""
keep("resumed", *trained(folder, dropout=0.2), checkpoint=folder + "/again.pt", **{settings})
keep("undisturbed", *trained(folder, dropout=0.2), **{settings})
"""
    process = start(folder, body)
    assert not process.wait(60), finish(process)
    assert same(results(folder, "resumed")[0]["weights"], results(folder, "undisturbed")[1]["weights"])
    history = fit(*trained(folder, dropout=0.2), checkpoint=f"{folder}/alone.pt", **settings)
    expected = results(folder, "undisturbed")[0]["history"]["valid"]
    assert history.valid[: state["epoch"]] == expected[: state["epoch"]]
    assert history.valid[-1] == pytest.approx(expected[-1], rel=0.15)


@pytest.mark.parametrize(
    ("failure", "message", "place"),
    [
        ("raise ValueError('a bad row')", "came: process 1: ValueError: a bad row", (1, 0)),
        ("os._exit(9)", "Another process of this training has ended", (1, 0)),
        ("os.kill(os.getpid(), signal.SIGTERM)", "exit 143", (1, 4)),
    ],
)
def test_a_rank_that_ends_does_not_leave_the_other_waiting(folder, failure, message, place):
    "The second one ends in the fourth step of the second epoch; what it says is known to the first within seconds."
    body = f"""
class Failing(Loader):
    def iter_epoch(self, epoch, start=0, share=slice):
        for step, batch in enumerate(super().iter_epoch(epoch, start, share)):
            if (epoch, step, rank) == (1, 3, 1):
                print("ends at", time.time())
                {failure}
            yield batch


model, train, valid = trained(folder)
train.__class__ = Failing
try:
    fit(model, train, valid, epochs=10**6, checkpoint=folder + "/checkpoint.pt", progress=False)
except BaseException as error:
    if rank == 0:
        Path(folder, "seen").write_text(f"{{time.time()}} exit {{getattr(error, 'code', '')}} {{error}}")
    raise
"""
    process = start(folder, body)
    printed = finish(process)
    assert process.returncode, printed
    moment, seen = Path(folder, "seen").read_text().split(" ", 1)
    assert message in seen
    assert float(moment) - float(printed.split("ends at ")[1].split()[0]) < 5
    state = torch.load(f"{folder}/checkpoint.pt", weights_only=True)["state"]
    assert (state["epoch"], state["batch"]) == place


def test_ranks_that_train_something_else_are_told(folder):
    process = start(folder, "fit(*trained(folder), seed=rank, progress=False)")
    printed = finish(process)
    assert process.returncode
    assert "are not at the same training" in printed
    assert "seed 0 (was: seed 1)" in printed


def test_a_process_alone_needs_no_group():
    with joined({}) as group:
        assert (type(group), group.rank, group.size) == (Group, 0, 1)
    with joined({"WORLD_SIZE": "1", "RANK": "0"}) as group:
        assert type(group) is Group


def test_a_share_without_rows_is_predicted_too(folder):
    "A rank can be left without rows of a small validation part."
    model, _, valid = trained(folder)
    target, prediction = predict(model, (take(batch, slice(0)) for batch in valid.in_order()))
    assert target.shape == prediction.shape == (0,)
