"""Batch prediction as users meet it: each row once, whatever was stopped, repeated or done twice at a time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

from slml.contract import Category, Column, Contract, Numeric, TimeParts
from slml.errors import ContractError, RegistryError, SlmlError, TableError
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.registry.bundle import Bundle, Lineage, read_files, write_bundle
from slml.registry.export import export
from slml.registry.gate import AuditSummary
from slml.registry.versions import register
from slml.runners.local import LocalRunner
from slml.runners.open import run_job
from slml.runs.environment import workspace_environment
from slml.runs.job import job
from slml.serving.batch import count_predictions, predict_snapshot
from slml.tables.catalog import Catalog, Snapshot
from slml.workspace import Workspace

from support import REPOSITORY

NOTEBOOK = str(REPOSITORY / "nbs/jobs/predict.ipynb")
LINEAGE = Lineage(snapshots={"train": "trips@5132"}, runs={"train": "a41f"}, seed=0)
CONTRACT = Contract(
    name="trips",
    columns=[
        Column(name="id", type="int"),
        Column(name="start", type="timestamp"),
        Column(name="fleet", type="text"),
        Column(name="miles", type="float"),
        Column(name="fare", type="float"),
    ],
    key=["id"],
    target="fare",
    task="regression",
    features=[Numeric(column="miles"), TimeParts(column="start"), Category(column="fleet")],
)


def trips(first: int, rows: int) -> pa.Table:
    """Trips with holes in every column that a model reads."""
    random = np.random.default_rng(first)

    def holes(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=random.random(rows) < 0.1)

    start = np.datetime64("2023-01-01", "us") + random.integers(0, 365 * 86_400, rows).astype("timedelta64[s]")
    fleet = random.choice(["yellow", "blue", "add"], rows)
    columns = {"start": holes(start), "fleet": holes(fleet), "miles": holes(random.gamma(2, 2, rows))}
    return pa.table({"id": range(first, first + rows), **columns, "fare": random.gamma(2, 5, rows)})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    table = trips(0, 500)
    encoder = Encoder.fit(table, CONTRACT)
    model = build_model(CONTRACT, encoder, encoder(table), width=16, depth=2, bins=8, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    folder = str(tmp_path_factory.mktemp("predict") / "bundle")
    return export(model.eval(), encoder, CONTRACT, table, folder, lineage=LINEAGE, metrics={"test": {"rmse": 2.0}})


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Workspace:
    """A workspace of this test alone, with the database of all."""
    return Workspace(root=str(tmp_path / "root"), project=tmp_path.name, cores=2, tracking_uri=tracking_uri)


@pytest.fixture
def snapshot(workspace: Workspace) -> Snapshot:
    """5,000 trips in ten files."""
    table = Catalog(workspace).table("trips")
    return [table.append(trips(first, 500)) for first in range(0, 5_000, 500)][-1]


def registered(bundle: Bundle, workspace: Workspace, rmse: float, **more: object) -> str:
    """The version of a bundle."""
    facts = {"metrics": {"rmse": rmse}, "baselines": {"constant": {"rmse": 3.0}}, "served": Bundle.predict, **more}
    audited = AuditSummary("trips@5132", rows_in=500, kept=500, quarantined=0)
    return register(bundle, "fares", workspace, audit=audited, **facts).ref


def rows_of(snapshot: Snapshot) -> pa.Table:
    return ds.dataset(list(snapshot.files), format="parquet").to_table()


def test_the_job_predicts_each_row_once_and_a_new_version_beside(
    bundle: Bundle, snapshot: Snapshot, workspace: Workspace, tmp_path: Path
) -> None:
    registered(bundle, workspace, 2.0)
    runner, given = LocalRunner(workspace), {"model": "fares@champion", "snapshot": snapshot.ref, "table": "said"}

    def run() -> dict:
        done = runner.wait(runner.submit(job(NOTEBOOK, given)))
        assert done.status == "done", done.error
        return done.outputs

    first = run()
    assert (first["version"], first["rows"], first["added"]) == ("fares@1", 5_000, 5_000)
    found = rows_of(Catalog(workspace).snapshot(first["predictions"])).sort_by("id")
    assert found.column_names == ["id", "prediction", "version", "snapshot"]
    assert found["id"].to_pylist() == list(range(5_000))
    expected = bundle.predict(rows_of(snapshot).sort_by("id"))
    np.testing.assert_allclose(found["prediction"].to_numpy(), expected, rtol=1e-5)
    assert set(found["snapshot"].to_pylist()) == {snapshot.ref}

    again = run()
    assert (again["added"], again["predictions"]) == (0, first["predictions"])
    other = write_bundle(str(tmp_path / "other"), {**read_files(bundle.uri), "metrics.json": b'{"number": 2}\n'})
    registered(other, workspace, 1.9, promote=True)
    second = run()
    assert (second["version"], second["added"]) == ("fares@2", 5_000)
    both = Catalog(workspace).snapshot(second["predictions"])
    assert [count_predictions(both, snapshot.ref, f"fares@{n}") for n in (1, 2, 3)] == [5_000, 5_000, 0]


PREDICT = """
import sys; from slml.registry.bundle import Bundle; from slml.serving.batch import predict_snapshot
from slml.tables.catalog import Catalog; from slml.workspace import Workspace
catalog = Catalog(Workspace())
snapshot, table = catalog.snapshot(sys.argv[2]), catalog.table("said")
done = predict_snapshot(Bundle.load(sys.argv[1]), "fares@1", snapshot, table, sys.argv[3], part_rows=500)
print(done.added, done.computed)
assert not {"torch", "mlflow"} & set(sys.modules)
"""


def started(bundle: Bundle, snapshot: Snapshot, workspace: Workspace, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PREDICT, bundle.uri, snapshot.ref, str(folder)]
    return subprocess.Popen(
        command,
        env={**os.environ, **workspace_environment(workspace)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_any_moment_nothing_is_lost_and_nothing_is_there_twice(
    bundle: Bundle, snapshot: Snapshot, workspace: Workspace, tmp_path: Path
) -> None:
    folder, kept = tmp_path / "parts", 0
    for wanted in (1, 4, 9):
        process, end = started(bundle, snapshot, workspace, folder), time.monotonic() + 60
        while len(list(folder.rglob("*.parquet"))) < wanted and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        process.communicate(timeout=30)
        assert len(list(folder.rglob("*.parquet"))) >= kept
        kept = len(list(folder.rglob("*.parquet")))
        table = Catalog(workspace).table("said")
        assert not table.exists or table.snapshot().rows == 5_000
    output, errors = started(bundle, snapshot, workspace, folder).communicate(timeout=60)
    assert output, errors
    added, computed = map(int, output.split())
    assert added in (0, 5_000)
    assert computed <= 5_000 - 500 * kept
    rows = rows_of(Catalog(workspace).snapshot("said"))
    assert sorted(rows["id"].to_pylist()) == list(range(5_000))
    assert not list(folder.rglob("*.parquet")), "the parts are not needed any more"


def test_two_at_a_time_add_the_rows_once(
    bundle: Bundle, snapshot: Snapshot, workspace: Workspace, tmp_path: Path
) -> None:
    both = [started(bundle, snapshot, workspace, tmp_path / str(n)) for n in range(3)]
    told = [process.communicate(timeout=120) for process in both]
    assert all(output for output, _ in told), told
    assert sorted(int(output.split()[0]) for output, _ in told) == [0, 0, 5_000]
    assert sorted(rows_of(Catalog(workspace).snapshot("said"))["id"].to_pylist()) == list(range(5_000))


def test_the_result_depends_on_neither_cores_nor_parts(
    bundle: Bundle, snapshot: Snapshot, workspace: Workspace, tmp_path: Path
) -> None:
    catalog = Catalog(workspace)

    def said(table: str, folder: str, **how: int) -> pa.Table:
        done = predict_snapshot(bundle, "fares@1", snapshot, catalog.table(table), folder, **how)
        assert (done.rows, done.added) == (5_000, 5_000)
        return rows_of(done.table)

    one = said("one", str(tmp_path / "parts"), cores=1)
    assert said("two", "memory://parts", cores=4, part_rows=700).equals(one)


def test_what_cannot_be_is_told_in_one_message(
    bundle: Bundle, snapshot: Snapshot, workspace: Workspace, tmp_path: Path
) -> None:
    catalog = Catalog(workspace)
    stored = {
        "empty": trips(0, 0),
        "renamed": trips(0, 9).rename_columns(["id", "start", "fleet", "mile", "fare"]),
        "raw": trips(0, 9).set_column(3, "miles", pa.array(["3.5 mi"] * 9)),
        "taken": pa.table({"id": [1]}),
    }
    there = {name: catalog.table(name).append(table) for name, table in stored.items()} | {"trips": snapshot}

    def told(kind: type[SlmlError], source: str, table: str = "said") -> str:
        with pytest.raises(kind) as caught:
            predict_snapshot(bundle, "fares@1", there[source], catalog.table(table), str(tmp_path))
        return str(caught.value)

    assert "has no rows" in told(ContractError, "empty")
    assert "did you mean 'mile'?" in told(ContractError, "renamed")
    assert "is no number" in told(ContractError, "raw")
    assert "taken" in told(TableError, "trips", table="taken")
    assert "said" not in catalog.tables()


def test_the_job_ends_with_the_one_message(bundle: Bundle, snapshot: Snapshot, workspace: Workspace) -> None:
    registered(bundle, workspace, 2.0)
    with pytest.raises(RegistryError, match="did you mean 'fares'"):
        run_job(job(NOTEBOOK, {"model": "fare@champion", "snapshot": snapshot.ref}), workspace)


def test_a_place_that_cannot_be_written(
    bundle: Bundle, snapshot: Snapshot, workspace: Workspace, tmp_path: Path
) -> None:
    """A file stands where the table's folder would be; when it is gone, only the commit is left to do."""
    catalog, folder = Catalog(workspace), str(tmp_path / "parts")
    blocked = Path(workspace.root, "warehouse", workspace.project, "said")
    blocked.touch()
    with pytest.raises(SlmlError, match=r"cannot be written|missing or damaged"):
        predict_snapshot(bundle, "fares@1", snapshot, catalog.table("said"), folder)
    assert not catalog.table("said").exists
    blocked.unlink()
    done = predict_snapshot(bundle, "fares@1", snapshot, catalog.table("said"), folder)
    assert (done.added, done.computed) == (5_000, 0)


@pytest.mark.parametrize("with_key", [True, False])
@pytest.mark.parametrize("raw_first", [True, False])
def test_a_raw_table_and_the_rows_kept_of_it_go_into_one_table(
    bundle: Bundle, workspace: Workspace, tmp_path: Path, with_key: bool, raw_first: bool
) -> None:
    catalog, rows = Catalog(workspace), trips(0, 50)
    if not with_key:
        bundle = Bundle(bundle.uri, bundle.hash, {**bundle.files, "contract.json": keyless(CONTRACT)})
    raw = catalog.table("raw").append(rows.set_column(0, "id", rows["id"].cast(pa.string())))
    kept = catalog.table("kept").append(rows.slice(0, 40).append_column("row_hash", pa.array(range(40), pa.int64())))
    table, snapshots = catalog.table("fares_predictions"), [raw, kept] if raw_first else [kept, raw]
    for snapshot in snapshots:
        result = predict_snapshot(bundle, "fares@1", snapshot, table, str(tmp_path / "parts"))
        assert (result.rows, result.added) == (snapshot.rows, snapshot.rows)
    found = rows_of(table.snapshot())
    assert len(found) == 90
    if with_key:
        assert sorted(found["id"].to_pylist()) == sorted([*range(50), *range(40)])
    else:
        assert found["row_hash"].null_count == 50


def keyless(contract: Contract) -> bytes:
    return contract.replace(key=()).to_json().encode()
