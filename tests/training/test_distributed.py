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

from slml.sampling.split import Part
from slml.training.distributed import Group, join_group
from slml.training.fit import fit, predict_batches
from slml.training.loader import Loader, take

from support import REPOSITORY
from support.training import made, write_rows

TOLERANCE = 1e-5  # relative, between one process and two: float32 numbers added up in another order
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
SETTINGS = {"epochs": 3, "learning_rate": 3e-3, "patience": 10**6, "progress": False}
HEAD = """
import os, signal, sys
from dataclasses import asdict
sys.path[:0] = [{tests!r}, {tests!r} + "/training"]
from test_distributed import *

folder, rank = {folder!r}, int(os.environ["RANK"])


def keep(name, *data, **more):
    history = fit(*data, **SETTINGS | more)
    torch.save({{"history": asdict(history), "weights": data[0].state_dict()}}, f"{{folder}}/{{name}}-{{rank}}.pt")


class Failing(Loader):
    "Calls `fail` in the fourth step of the second epoch, in the second process."

    def iter_epoch(self, epoch, start=0, share=slice):
        for step, batch in enumerate(super().iter_epoch(epoch, start, share)):
            if (epoch, step, rank) == (1, 3, 1):
                fail()
            yield batch


def failing(name):
    model, train, valid = trained(folder)
    train.__class__ = Failing
    try:
        fit(model, train, valid, **SETTINGS, checkpoint=f"{{folder}}/{{name}}.pt")
    except BaseException as error:
        Path(folder, f"{{name}}-{{rank}}.txt").write_text(f"{{type(error).__name__}} {{error}}")


"""
# Batches of 128 (the last one of 80), of 99, and of 1,999, whose last row only one of the two can have.
TOGETHER = """
for rows in (128, 99, 1999):
    keep(rows, *trained(folder, rows))
keep("from one", *trained(folder), checkpoint=folder + "/one.pt")
more = {"epochs": torch.load(folder + "/killed.pt", weights_only=True)["state"]["epoch"] + 2}
keep("resumed", *trained(folder, dropout=0.2), checkpoint=folder + "/resumed.pt", **more)
keep("undisturbed", *trained(folder, dropout=0.2), **more)

def fail():
    raise ValueError("a bad row")

failing("error")
fail = lambda: os.kill(os.getpid(), signal.SIGTERM)
failing("asked")
try:
    fit(*trained(folder), seed=rank)
except Exception as error:
    Path(folder, f"other-{rank}.txt").write_text(str(error))
"""
KILLED = """
settings = SETTINGS | {"epochs": 10**6, "progress": True}
fit(*trained(folder, dropout=0.2), **settings, checkpoint=f"{folder}/checkpoint-{rank}.pt")
"""
GONE = """
fail = lambda: os._exit(9)
failing("gone")
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
    script.write_text(HEAD.format(tests=str(REPOSITORY / "tests"), folder=folder) + body)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    "What it printed, once it has ended."
    try:
        return process.communicate(timeout=120)[0]
    finally:
        process.kill()


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    "Wait for something that a process does."
    end = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert condition(), finish(process)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    "Where one process began a training, and torchrun was asked to stop in the middle of another."
    folder = tmp_path_factory.mktemp("ranks")
    write_rows(folder)
    fit(*trained(str(folder)), **SETTINGS | {"epochs": 2}, checkpoint=f"{folder}/one.pt")
    process = start(str(folder), KILLED)
    until(Path(folder, "checkpoint-0.pt").exists, process)
    process.terminate()
    printed = finish(process)
    assert process.returncode, printed
    for name in ("killed", "resumed", "resumed alone"):
        shutil.copy(folder / "checkpoint-0.pt", folder / f"{name}.pt")
    return str(folder)


@pytest.fixture(scope="module")
def together(folder) -> str:
    "Where two processes have done all of TOGETHER."
    process = start(folder, TOGETHER)
    printed = finish(process)
    assert process.returncode == 0, printed
    return folder


def results(folder: str, name: object) -> list:
    "What both processes kept under a name."
    return [torch.load(f"{folder}/{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def messages_of(folder: str, name: str) -> list[str]:
    "What both processes failed with."
    return [Path(folder, f"{name}-{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.parametrize(("name", "rows"), [(128, 128), (99, 99), (1999, 1999), ("from one", 128)])
def test_two_ranks_train_as_one_does(together, name, rows):
    "Without dropout the only difference is the order in which numbers are added up."
    first, second = results(together, name)
    assert same(first["weights"], second["weights"])
    assert first["history"] == second["history"]
    model, train, valid = trained(together, rows)
    history = fit(model, train, valid, **SETTINGS)
    assert first["history"]["valid"] == pytest.approx(history.valid, rel=TOLERANCE)
    assert first["history"]["train"] == pytest.approx(history.train, rel=TOLERANCE)
    expected = predict_batches(model, valid.in_order())[1]
    model.load_state_dict(first["weights"])
    assert np.abs(predict_batches(model, valid.in_order())[1] - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_sigterm_to_torchrun_saves_and_the_training_goes_on_to_the_same_weights(together):
    "With dropout. Each rank had a file of its own to write: the second one must not be there."
    assert not Path(together, "checkpoint-1.pt").exists()
    assert not list(Path(together).glob(".*.part"))
    resumed, undisturbed = results(together, "resumed"), results(together, "undisturbed")
    assert same(resumed[0]["weights"], undisturbed[1]["weights"])
    assert resumed[0]["history"]["valid"] == undisturbed[1]["history"]["valid"]


def test_one_process_goes_on_where_two_stopped(together):
    "With dropout, whose random numbers differ: the losses are alike."
    epoch = torch.load(f"{together}/killed.pt", weights_only=True)["state"]["epoch"]
    model, train, valid = trained(together, dropout=0.2)
    settings = SETTINGS | {"epochs": epoch + 2, "checkpoint": f"{together}/resumed alone.pt"}
    history = fit(model, train, valid, **settings)
    expected = results(together, "undisturbed")[0]["history"]["valid"]
    assert history.valid[:epoch] == expected[:epoch]
    assert history.valid == pytest.approx(expected, rel=0.1)


def test_an_error_in_one_rank_is_known_to_the_other(together):
    first, second = messages_of(together, "error")
    assert "came: process 1: ValueError: a bad row" in first
    assert second == "ValueError a bad row"


def test_a_signal_to_one_rank_stops_both_after_the_same_step(together):
    assert messages_of(together, "asked") == ["SystemExit 143"] * 2
    state = torch.load(f"{together}/asked.pt", weights_only=True)["state"]
    assert (state["epoch"], state["batch"]) == (1, 4)


def test_ranks_that_train_something_else_are_refused(together):
    for message, came in zip(
        messages_of(together, "other"), ("seed 0 (was: seed 1)", "seed 1 (was: seed 0)"), strict=True
    ):
        assert "run different trainings" in message
        assert came in message


def test_a_rank_that_is_gone_does_not_leave_the_other_waiting(folder):
    process = start(folder, GONE)
    printed = finish(process)
    assert process.returncode, printed
    assert "Another process of this training has ended" in Path(folder, "gone-0.txt").read_text()


def test_a_process_alone_needs_no_group():
    for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}):
        with join_group(environment) as group:
            assert (type(group), group.rank, group.size) == (Group, 0, 1)


def test_a_share_without_rows_is_predicted_too(folder):
    "A rank can be left without rows of a small validation part."
    model, _, valid = trained(folder)
    target, prediction = predict_batches(model, (take(batch, slice(0)) for batch in valid.in_order()))
    assert target.shape == prediction.shape == (0,)
