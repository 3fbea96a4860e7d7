"""A search for better parameters: the same at every call, never worse than the defaults, and not lost when killed."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from slml import contract as c
from slml.errors import TrainingError, UsageError
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.quality.clean import clean
from slml.quality.infer import infer
from slml.runners.local import LocalRunner
from slml.runs.job import job
from slml.runs.parameters import read_parameters
from slml.sampling.split import Part, split
from slml.storage import filesystem, write_text
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.tables.ingest import ingest_files
from slml.training.fit import fit
from slml.training.loader import Loader
from slml.training.tuning import Tuning, default_parameters, pruning_epochs, search_space, tune
from slml.workspace import Workspace

from support import REPOSITORY

EPOCHS = 4
LIMITS = {"epochs": EPOCHS, "trials": 8, "progress": False}


def rules(task: str = "regression") -> c.Contract:
    return c.Contract(
        name="waves",
        columns=[
            c.Column(name="x", type="float"),
            c.Column(name="y", type="float" if task == "regression" else "text"),
        ],
        target="y",
        task=task,
        features=[c.Numeric(column="x")],
    )


class Data:
    """Rows of a wave, as `tune` takes them; the loader may be one that stops in the middle."""

    def __init__(self, folder: Path, kind: type[Loader] = Loader, table: pa.Table | None = None, task="regression"):
        x = np.random.default_rng(0).normal(size=400)
        table = table or pa.table({"x": x, "y": np.sin(3 * x)})
        for name, rows in (("train", table.slice(0, 300)), ("valid", table.slice(300))):
            pq.write_table(rows, folder / f"{name}.parquet")
        self.rules, rows = rules(task), table.slice(0, 300)
        self.encoder = Encoder.fit(rows, self.rules)
        self.sample = self.encoder(rows)
        files = [str(folder / f"{name}.parquet") for name in ("train", "valid")]
        self.train, self.valid = kind(files[:1], Part(), self.encoder, 64), Loader(files[1:], Part(), self.encoder, 64)

    def tune(self, folder: object, **settings: object) -> Tuning:
        given = (self.rules, self.encoder, self.sample, self.train, self.valid, str(folder))
        return tune(*given, **{**LIMITS, **settings})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tuning(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """One search without an interruption."""
    return data.tune(tmp_path_factory.mktemp("search"))


def made(tuning: Tuning) -> list[tuple]:
    """All that a trial is, but for the time it took."""
    return [(t.parameters, t.values, t.ended, t.epochs) for t in tuning.trials]


def test_never_worse_than_the_defaults_and_true_of_a_training_of_its_own(data: Data, tuning: Tuning) -> None:
    chosen = dict(tuning.best.parameters)
    assert tuning.trials[0].parameters == default_parameters(data.train)
    assert tuning.best.value == min(tuning.values) < tuning.trials[0].value
    rates = {name: chosen.pop(name) for name in ("learning_rate", "weight_decay")}
    model = build_model(data.rules, data.encoder, data.sample, **chosen)
    again = fit(model, data.train, data.valid, epochs=EPOCHS, progress=False, **rates)
    assert again.best == tuning.best.value


def test_a_trial_worse_than_the_others_is_given_up(tuning: Tuning) -> None:
    ended = {trial.ended: trial for trial in tuning.trials}
    assert set(ended) == {"done", "given up"}
    assert ended["given up"].epochs < EPOCHS == ended["done"].epochs


def test_another_seed_tries_something_else(data: Data, tuning: Tuning, tmp_path: Path) -> None:
    other = data.tune(tmp_path, seed=1, trials=2, epochs=1)
    assert other.trials[0].parameters == tuning.trials[0].parameters
    assert other.trials[1].parameters != tuning.trials[1].parameters


@pytest.mark.parametrize("batches", [3, 5 * EPOCHS + 12, 5 * EPOCHS * 4 + 3])
def test_interrupted_in_a_trial_it_ends_as_if_it_had_not_been(tuning: Tuning, tmp_path: Path, batches: int) -> None:
    """Five batches are an epoch. The same call again finds the trials, and the epochs of the one that it was in."""

    class Interrupted(Loader):
        left = batches

        def iter_epoch(self, epoch, start=0, share=slice):
            for batch in super().iter_epoch(epoch, start, share):
                Interrupted.left -= 1
                if Interrupted.left == 0:
                    raise KeyboardInterrupt
                yield batch

    again = Data(tmp_path, Interrupted)
    with pytest.raises(KeyboardInterrupt):
        again.tune(tmp_path / "search")
    assert made(again.tune(tmp_path / "search")) == made(tuning)
    trained = batches - Interrupted.left
    assert trained <= sum(5 * trial.epochs for trial in tuning.trials) + 5, "no more than one epoch was trained twice"
    assert [path.name for path in (tmp_path / "search").iterdir()] == ["trials.json"], "no checkpoint is left behind"


def test_more_trials_are_added_to_those_that_are_done(data: Data, tuning: Tuning, tmp_path: Path) -> None:
    assert made(data.tune(tmp_path, trials=3)) == made(tuning)[:3]
    before = json.loads((tmp_path / "trials.json").read_text())["trials"]
    assert made(data.tune(tmp_path)) == made(tuning)
    assert json.loads((tmp_path / "trials.json").read_text())["trials"][:3] == before


def test_the_trials_may_be_kept_at_a_uri(data: Data, tmp_path: Path) -> None:
    uri = f"memory://slml/{tmp_path.name}"
    first = data.tune(uri, trials=2, epochs=1)
    assert data.tune(uri, trials=2, epochs=1) == first  # seconds included: nothing was trained again
    fs, path = filesystem(uri)
    assert [file.rsplit("/", 1)[-1] for file in fs.find(path)] == ["trials.json"]


def test_the_time_counts_over_all_calls(data: Data, tmp_path: Path) -> None:
    first = data.tune(tmp_path, max_seconds=1e-6)
    assert [trial.ended for trial in first.trials] == ["out of time"]
    assert math.isfinite(first.best.value)
    assert data.tune(tmp_path, max_seconds=1e-6) == first
    assert len(data.tune(tmp_path, trials=2, epochs=EPOCHS).trials) == 2  # with more time it goes on


def test_a_linear_model_has_less_to_try(data: Data, tmp_path: Path) -> None:
    trials = data.tune(tmp_path, network="linear", trials=2).trials
    assert set(search_space("linear", 1e-3)) == {"learning_rate", "weight_decay"}
    sizes = [{name: trial.parameters[name] for name in ("width", "depth", "dropout")} for trial in trials]
    assert sizes[0] == sizes[1], "what it does not have stays as it is"


def test_classes_are_measured_by_their_own_metric(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=400)
    table = pa.table({"x": x, "y": np.where(np.sin(3 * x) > 0, "up", "down")})
    tuning = Data(tmp_path, table=table, task="binary").tune(tmp_path / "search", trials=1, epochs=1)
    assert tuning.metric == "log_loss"
    assert "valid_log_loss" in tuning.to_pandas()


def test_a_search_of_diverged_trials_alone_is_an_error(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=400)
    data = Data(tmp_path, table=pa.table({"x": x, "y": np.where(x > 1.5, 1e30, 0.0)}))
    data.sample = data.sample._replace(target=data.sample.target * 0)  # a scale that fits no such target
    with pytest.raises(TrainingError, match="No trial came to an end") as error:
        data.tune(tmp_path / "search", trials=2)
    assert "2 that all diverged" in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trials": 0}, "trials = 0"),
        ({"epochs": -1}, "epochs = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"max_seconds": 0.0}, "needs time"),
        ({"max_seconds": math.nan}, "needs time"),
        ({"network": "lineer"}, "did you mean 'linear'"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_trained(
    data: Data, tmp_path: Path, wrong: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        data.tune(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_the_trials_of_another_search_are_refused(data: Data, tmp_path: Path) -> None:
    data.tune(tmp_path, trials=1, epochs=1)
    with pytest.raises(TrainingError, match="belongs to another search") as error:
        data.tune(tmp_path, trials=1, epochs=2)
    assert "epochs 2 (was: epochs 1)" in str(error.value)


def test_a_damaged_list_of_trials_is_refused(data: Data, tmp_path: Path) -> None:
    write_text(str(tmp_path / "trials.json"), "{")
    with pytest.raises(TrainingError, match="holds no trials"):
        data.tune(tmp_path, trials=1)


def test_the_result_is_a_table_and_a_plot(tuning: Tuning) -> None:
    table = tuning.to_pandas()
    assert list(table["valid_rmse"]) == sorted(tuning.values)
    assert "after 8 trials" in str(tuning)
    assert "given up" in tuning._repr_html_()
    line = tuning.plot().get_lines()[0].get_ydata()
    assert list(line) == list(np.minimum.accumulate(tuning.values))
    assert pruning_epochs(8) == [1, 2, 4, 8]
    assert pruning_epochs(3) == [1, 2, 3]


def test_the_outputs_of_the_job_are_parameters_of_the_train_job(tmp_path: Path, tracking_uri: str) -> None:
    workspace = Workspace(root=str(tmp_path / "root"), project="test", cores=2, tracking_uri=tracking_uri)
    miles = np.arange(600) % 17
    table = pa.table({"id": np.arange(600), "miles": miles + 0.5, "fare": miles * 2.5 + np.arange(600) % 3})
    pa.csv.write_csv(table, tmp_path / "trips.csv")
    ingest_files(str(tmp_path / "trips.csv"), "trips", workspace)
    catalog, engine = Catalog(workspace), open_engine(workspace)
    contract = infer(catalog.snapshot("trips"), engine, target="fare", key=["id"])
    ledger = clean(catalog.snapshot("trips"), contract, catalog, engine, kept="kept", quarantine="odd")
    parts = split(catalog.snapshot(ledger.kept_snapshot), engine, {"train": 0.6, "valid": 0.2, "test": 0.2})
    write_text(str(tmp_path / "split.json"), parts.to_json())
    contract.save(str(tmp_path / "contract.json"))

    notebook = REPOSITORY / "nbs/jobs/tune.ipynb"
    given = {"split": str(tmp_path / "split.json"), "contract": str(tmp_path / "contract.json")}
    runner = LocalRunner(workspace)
    run = runner.wait(runner.submit(job(str(notebook), {**given, "trials": 2, "epochs": 2, "share": 0.5})))
    assert run.status == "done", run.error
    assert run.metrics["valid_rmse"] == min(run.history["valid_rmse"]) <= run.metrics["valid_rmse_of_defaults"]
    with open(run.artifacts["trials"]) as file:
        assert {row["ended"] for row in csv.DictReader(file)} == {"done"}
    taken = read_parameters(str(notebook.with_name("train.ipynb")))
    for name in ("learning_rate", "weight_decay", "width", "depth", "dropout"):
        assert type(run.outputs[name]).__name__ == taken[name].type
