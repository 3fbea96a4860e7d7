"""The monitor job as a person on duty meets it: what it says of good days, of bad ones, and of data that is odd."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from slml.contract import Category, Column, Contract, Numeric
from slml.errors import ContractError, RegistryError, UsageError
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.monitoring.windows import last_windows, read_windows
from slml.pipelines.pipeline import load_pipeline, run_pipeline
from slml.registry.aliases import Pointer, State, write_change
from slml.registry.bundle import Bundle, Lineage
from slml.registry.export import export, profile_of
from slml.runners.open import run_job
from slml.runs.job import job
from slml.runs.run import Run, list_runs
from slml.serving.log import RequestLog
from slml.serving.log_rows import log_folder
from slml.tables.catalog import Catalog
from slml.workspace import Workspace

from support import REPOSITORY

NOTEBOOK = str(REPOSITORY / "nbs" / "jobs" / "monitor.ipynb")
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
CONTRACT = Contract(
    name="rides",
    columns=[
        Column("ride", "int"), Column("miles", "float", unit="mile"), Column("zone", "text"), Column("fare", "float"),
    ],
    key=("ride",), target="fare", task="regression",
    features=[Numeric(column="miles"), Category(column="zone")],
)  # fmt: skip


def rides(rows: int, seed: int, dearer: float = 0.0) -> pa.Table:
    random = np.random.default_rng(seed)
    miles = random.gamma(2, 2, rows)
    fare = 3 + 2.2 * miles + dearer + random.normal(0, 1, rows)
    zones = random.choice(["centre", "suburb", "airport"], rows, p=[0.6, 0.3, 0.1])
    return pa.table({"ride": range(rows), "miles": miles, "zone": zones, "fare": fare})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small model that knows the fares, without the pipeline that makes one."""
    table = rides(5000, 0)
    encoder = Encoder.fit(table, CONTRACT)
    batch = encoder(table)
    model = build_model(CONTRACT, encoder, batch, network="linear", seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(batch.inputs).squeeze(-1), batch.target).backward()
        optimizer.step()
    model.eval()
    folder = str(tmp_path_factory.mktemp("bundle") / "rides")
    known = profile_of(model, encoder, CONTRACT, table.to_batches())
    lineage = Lineage(snapshots={"train": "rides@1234567890123"}, runs={"train": "a"}, seed=0)
    metrics = {"test": {"mae": 0.8, "bias": 0.0, "rmse": 1.0}}
    return export(model, encoder, CONTRACT, table[:64], folder, lineage=lineage, metrics=metrics, profile=known)


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str, bundle: Bundle) -> Workspace:
    """A workspace whose champion is that model."""
    workspace = Workspace(root=str(tmp_path / "root"), project="dc", tracking_uri=tracking_uri)
    pointer = Pointer(1, bundle.uri, bundle.hash)
    state = State(1, "2026-01-01T00:00:00+00:00", "ann", "", "register", {"champion": pointer})
    write_change(workspace.root, "dc", "rides", state)
    return workspace


def serve(workspace: Workspace, bundle: Bundle, table: pa.Table, at: datetime = NOON, step: float = 1.0) -> None:
    """Answers of the champion, one each `step` seconds."""
    log = RequestLog(log_folder(workspace.root, "dc", "rides"), bundle.contract)
    asked = table.drop_columns(["fare"])
    for n, (row, guess) in enumerate(zip(asked.to_pylist(), bundle.predict(table).tolist(), strict=True)):
        log.put([row], [guess], f"{at:%H%M}-{n}", 1, "champion", (), at.timestamp() + n * step)
    assert log.close()


def labels(workspace: Workspace, table: pa.Table) -> None:
    Catalog(workspace).table("fares").append(table.select(["ride", "fare"]))


def monitor(workspace: Workspace, since: datetime = NOON, hours: float = 1, **more: object) -> Run:
    until = since + timedelta(hours=hours)
    given = {"model": "rides", "since": since.isoformat(), "until": until.isoformat()}
    return run_job(job(NOTEBOOK, given | more), workspace)


def test_good_hours_bad_ones_and_one_that_is_looked_at_again(workspace: Workspace, bundle: Bundle) -> None:
    good, bad = rides(600, 1), rides(600, 2, dearer=4).set_column(0, "ride", pa.array(range(1000, 1600)))
    serve(workspace, bundle, good)
    serve(workspace, bundle, bad, NOON + timedelta(hours=1))

    run = monitor(workspace)
    assert run.outputs["verdict"] == "nothing"
    assert "no labels yet" in run.outputs["why"]

    # Labels come: for all rows, one twice and corrected, and for rides that were never served.
    odd = pa.table({"ride": [0, 0, 77_777], "fare": [999.0, good["fare"][0].as_py(), 5.0]})
    for table in (odd, good, bad):
        labels(workspace, table)
    again, later = monitor(workspace, labels="fares"), monitor(workspace, NOON + timedelta(hours=1), labels="fares")
    assert again.outputs["verdict"] == "nothing"
    assert again.metrics["labelled"] == 600
    assert later.outputs["verdict"] == "retrain"
    assert later.outputs["kinds"] == ["concept drift"]
    assert later.metrics["error"] > 3

    rows = read_windows("rides", Catalog(workspace)).to_pylist()
    assert [(r["rows"], r["labelled"], r["verdict"]) for r in rows] == [(600, 600, "nothing"), (600, 600, "retrain")]
    assert {r["labels"] for r in rows} == {Catalog(workspace).snapshot("fares").ref}
    columns = read_windows("rides", Catalog(workspace), columns=True)
    assert columns.num_rows == len({(r["since"], r["column"]) for r in columns.to_pylist()}) > 0

    page = Path(later.outputs["report"]).read_text()
    assert page.count("<html") == 1
    assert "Retrain" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    shown = json.loads(Path(workspace.root, "models", "dc", "rides", "monitor.json").read_text())
    assert (shown["verdict"], shown["report"]) == ("retrain", later.outputs["report"])


def test_a_fault_of_the_feed_is_named(workspace: Workspace, bundle: Bundle) -> None:
    table = rides(800, 3)
    kilometres = table.set_column(1, "miles", pa.array(table["miles"].to_numpy() * 1.609344))
    serve(workspace, bundle, kilometres)
    found = monitor(workspace).outputs
    assert (found["verdict"], found["columns"][0]) == ("fix the feed", "miles")
    assert "km" in found["why"]


@pytest.mark.parametrize(("rows", "words"), [(0, "no requests"), (1, "1 rows are fewer than the 50")])
def test_of_few_rows_nothing_is_said(workspace: Workspace, bundle: Bundle, rows: int, words: str) -> None:
    labels(workspace, rides(10, 4))
    serve(workspace, bundle, rides(max(rows, 1), 4)[:rows])
    run = monitor(workspace, labels="fares")
    assert run.outputs["verdict"] == "nothing"
    assert words in run.outputs["why"]
    (row,) = read_windows("rides", Catalog(workspace)).to_pylist()
    assert (row["rows"], row["labelled"]) == (rows, rows)


def test_a_log_that_is_cut_off_and_a_clock_that_goes_back_lose_no_row(workspace: Workspace, bundle: Bundle) -> None:
    table = rides(300, 5)
    serve(workspace, bundle, table[:100])
    serve(workspace, bundle, table[100:200], NOON + timedelta(minutes=30), step=-1.0)  # backwards
    later = NOON + timedelta(hours=1, minutes=1)
    serve(workspace, bundle, table[200:], later, step=-1.0)  # past the beginning of its hour
    before = monitor(workspace).metrics["rows"]
    assert before == 239  # 61 of the last hundred are of the hour after
    assert monitor(workspace, NOON + timedelta(hours=1)).metrics["rows"] == 61

    broken = next(Path(workspace.root, "served", "dc", "rides").rglob("12-*.parquet"))
    broken.write_bytes(broken.read_bytes()[:200])
    run = monitor(workspace)
    assert 0 < run.metrics["rows"] < before
    assert broken.name in Path(run.executed).read_text()  # the page says which file could not be read


def test_what_cannot_be_looked_at_is_said(workspace: Workspace, bundle: Bundle) -> None:
    serve(workspace, bundle, rides(60, 6))
    Catalog(workspace).table("fares").append(pa.table({"number": [1], "fare": [2.0]}))
    with pytest.raises(ContractError, match="cannot be joined with the request log"):
        monitor(workspace, labels="fares")
    with pytest.raises(UsageError, match="ends after it has begun"):
        monitor(workspace, hours=-1)
    with pytest.raises(RegistryError, match="no champion of bus"):
        run_job(job(NOTEBOOK, {"model": "bus"}), workspace)
    assert len(read_windows("rides", Catalog(workspace))) == 0


def test_the_scheduled_pipeline_looks_at_every_call(workspace: Workspace, bundle: Bundle, tmp_path: Path) -> None:
    """Its parameters are the same each day; what it looks at is not."""
    (day,) = last_windows(timedelta(days=1), datetime.now(UTC))
    serve(workspace, bundle, rides(300, 7), day.since + timedelta(hours=3))
    (tmp_path / "monitor.toml").write_text("[rides]\nback = 1\nnotify = []\n")
    given = {"model": "rides", "policy": str(tmp_path / "monitor.toml")}
    pipeline = load_pipeline(NOTEBOOK.replace("nbs/jobs/monitor.ipynb", "pipelines/monitor.yaml"))
    first, second = (run_pipeline(pipeline, given, workspace, lambda state: None) for _ in range(2))
    assert not first.cached
    assert not second.cached
    assert second.summary["phase"] == "watching"
    looks = [run for run in list_runs(workspace) if run.job == "monitor"]
    assert len(looks) == 1  # the second step had nothing new to look at
