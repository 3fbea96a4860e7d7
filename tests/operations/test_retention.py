"""What is old goes, and what a registered version came from stays, though it is older than all."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from slml.cli import app
from slml.contract import Column, Contract, Numeric
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.monitoring.policy import RetentionPolicy
from slml.operations.retention import apply_removal, plan_removal, registered_dependencies
from slml.registry.bundle import Lineage
from slml.registry.export import export
from slml.registry.gate import AuditSummary
from slml.registry.versions import load_bundle, register
from slml.runs.run import Run, list_runs, new_run, save_run
from slml.storage import write_text
from slml.tables.catalog import Catalog, Snapshot
from slml.workspace import Workspace

CONTRACT = Contract(
    name="rides",
    columns=[Column("miles", "float"), Column("fare", "float")],
    target="fare",
    task="regression",
    features=[Numeric(column="miles")],
)
LONG_AGO, NOW = "2025-01-01T00:00:00+00:00", datetime(2026, 6, 1, tzinfo=UTC)
KEEP = RetentionPolicy(logs="30d", runs="30d", snapshots=1)


def run(workspace: Workspace, name: str, parameters: dict, outputs: dict | None = None) -> Run:
    """A run that has ended long ago."""
    made = new_run(name, f"{name}.ipynb", parameters, workspace)
    write_text(f"{made.folder}/executed.ipynb", "{}")
    return save_run(replace(made, created=LONG_AGO, status="done", outputs=outputs or {}))


@pytest.fixture
def city(tmp_path: Path) -> tuple[Workspace, Snapshot, dict[str, Run]]:
    """A version whose data and runs are the oldest of all, and newer ones that nobody needs."""
    workspace = Workspace(root=str(tmp_path / "root"), project="dc")
    catalog, miles = Catalog(workspace), [float(n) for n in range(200)]
    raw = catalog.table("raw").replace(pa.table({"miles": ["1"]}))
    table = pa.table({"miles": miles, "fare": [3 + 2 * m for m in miles]})
    kept = catalog.table("rides").replace(table, {"source": raw.ref})
    runs = {"audit": run(workspace, "audit", {"snapshot": raw.ref}, {"snapshot": kept.ref})}
    runs["split"] = run(workspace, "split", {"snapshot": kept.ref})
    runs["train"] = run(workspace, "train", {"split": f"{runs['split'].folder}/split.json"})
    runs["register"] = run(workspace, "register", {"train_run": runs["train"].id})
    encoder = Encoder.fit(table, CONTRACT)
    model = build_model(CONTRACT, encoder, encoder(table), network="linear", seed=0).eval()
    with torch.no_grad():
        lineage = Lineage(snapshots={"train": kept.ref}, runs={"train": runs["train"].id}, seed=0)
        folder = f"{runs['register'].folder}/bundle"
        bundle = export(model, encoder, CONTRACT, table[:64], folder, lineage=lineage, metrics={"test": {"rmse": 1.0}})
    register(
        bundle, "rides", workspace, metrics={"rmse": 1.0}, baselines={"constant": {"rmse": 9.0}},
        audit=AuditSummary(kept.ref, 200, 200, 0), served=lambda bundle, rows: bundle.predict(rows),
    )  # fmt: skip
    for _ in range(3):
        catalog.table("raw").replace(pa.table({"miles": ["2"]}))
        catalog.table("rides").replace(table)
    runs["other"] = run(workspace, "train", {})
    for day in ("2025-01-01", "2026-05-31"):
        write_text(workspace.uri("served", "dc", "rides", f"date={day}", "12-a-000000.parquet"), "rows")
    return workspace, kept, runs


def test_lineage_is_never_broken(city: tuple[Workspace, Snapshot, dict[str, Run]]) -> None:
    workspace, kept, runs = city
    catalog = Catalog(workspace)
    first = catalog.table("raw").history()[0]
    found = plan_removal(KEEP, workspace, NOW)
    wanted = {*(runs[name].id for name in ("audit", "split", "train", "register")), kept.ref, first.ref}
    assert wanted == set(found.spared)
    names = [item.name for item in found.items]
    assert runs["other"].id in names
    assert sum(item.kind == "snapshot" for item in found.items) == 4
    assert [Path(item.name).name for item in found.items if item.kind == "log"] == ["date=2025-01-01"]
    assert len(list_runs(workspace)) == 5, "a list removes nothing"

    apply_removal(found, workspace)
    assert load_bundle("rides@1", workspace).check() <= 1e-5
    assert catalog.snapshot(kept.ref).rows == 200
    assert catalog.snapshot(first.ref).rows == 1
    assert runs["other"].id not in [r.id for r in list_runs(workspace)]
    assert plan_removal(KEEP, workspace, NOW).items == ()
    assert registered_dependencies(workspace).snapshots == {kept.ref}


def test_clean_shows_first_and_removes_only_when_told(
    city: tuple[Workspace, Snapshot, dict[str, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _, runs = city
    monkeypatch.setenv("SLML_ROOT", workspace.root)
    monkeypatch.setenv("SLML_PROJECT", "dc")
    policy = tmp_path / "monitor.toml"
    policy.write_text('[keep]\nruns = "30d"\nlogs = "30d"\nsnapshots = 1\n')
    shown = CliRunner().invoke(app, ["prune", "--policy", str(policy)])
    assert shown.exit_code == 0, shown.output
    assert runs["other"].id in shown.output
    assert "Nothing was removed" in shown.output
    assert Path(runs["other"].folder).exists()
    done = CliRunner().invoke(app, ["prune", "--policy", str(policy), "--yes"])
    assert "Removed." in done.output
    assert not Path(runs["other"].folder).exists()
    assert Path(runs["train"].folder).exists()


def test_what_became_needed_in_the_meantime_stays(city: tuple[Workspace, Snapshot, dict[str, Run]]) -> None:
    workspace, _, runs = city
    found = plan_removal(KEEP, workspace, NOW)
    begun = replace(new_run("evaluate", "e.ipynb", {}, workspace), status="running", host="another machine")
    save_run(replace(begun, after=(runs["other"].id,), created=(NOW - timedelta(hours=1)).isoformat()))
    gone = apply_removal(found, workspace)
    assert gone.spared == (runs["other"].id,)
    assert Path(runs["other"].folder).exists()


def test_a_bundle_in_the_folder_of_earlier_versions_is_kept(
    city: tuple[Workspace, Snapshot, dict[str, Run]], tmp_path: Path
) -> None:
    """A version whose bundle lies in a hidden root, where runs were kept before, keeps its run."""
    workspace, _, runs = city
    hidden = tmp_path / ".slml"
    (tmp_path / "root").rename(hidden)
    (tmp_path / "root").symlink_to(hidden)  # as the records name their files
    moved = Workspace(
        root=str(hidden), project="dc", catalog_uri=workspace.catalog_uri, tracking_uri=workspace.tracking_uri
    )
    planned = plan_removal(KEEP, moved, NOW)
    assert {runs[name].id for name in ("audit", "split", "train", "register")} <= set(planned.spared)
    assert runs["other"].id in [item.name for item in planned.items]
    apply_removal(planned, moved)
    assert load_bundle("rides@1", moved).check() <= 1e-5
    assert not (hidden / "runs" / runs["other"].id).exists()


def test_runs_of_another_project_stay(city: tuple[Workspace, Snapshot, dict[str, Run]]) -> None:
    """Two projects may share a root: what one removes is its own."""
    workspace, _, runs = city
    other = Workspace(root=workspace.root, project="bikes")
    planned = plan_removal(KEEP, other, NOW)
    assert [item for item in planned.items if item.kind == "run"] == []
    apply_removal(plan_removal(KEEP, other, NOW), other)
    assert len(list_runs(workspace)) == len(runs)


def test_a_copy_of_a_project_removes_its_own_runs(tmp_path: Path) -> None:
    """The records of a copied project name the folders of the first; these stay."""
    first = Workspace(root=str(tmp_path / "first"), project="dc")
    old = run(first, "train", {})
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    copy = Workspace(root=str(tmp_path / "copy"), project="dc")
    apply_removal(plan_removal(KEEP, copy, NOW), copy)
    assert Path(old.folder, "run.json").exists()
    assert list_runs(copy) == []


def test_what_is_gone_already_is_passed_over(city: tuple[Workspace, Snapshot, dict[str, Run]]) -> None:
    """Two people remove by the same list."""
    workspace, _, runs = city
    planned = plan_removal(KEEP, workspace, NOW)
    apply_removal(planned, workspace)
    assert runs["other"].id not in [item.name for item in apply_removal(planned, workspace).items]


def test_what_a_younger_run_points_to_stays(city: tuple[Workspace, Snapshot, dict[str, Run]]) -> None:
    """A cached run holds no model and no notebook of its own: both are those of the run that it is the same as."""
    workspace, _, runs = city
    cached = replace(new_run("train", "train.ipynb", {}, workspace), status="done", same_as=runs["other"].id)
    save_run(replace(cached, created="2026-05-31T00:00:00+00:00"))
    removal = plan_removal(KEEP, workspace, NOW)
    assert runs["other"].id in removal.spared
    apply_removal(removal, workspace)
    assert Path(runs["other"].executed).exists()


def test_a_record_that_calls_itself_a_path_removes_nothing_else(
    city: tuple[Workspace, Snapshot, dict[str, Run]], tmp_path: Path
) -> None:
    workspace, _, runs = city
    write_text(str(tmp_path / "victim" / "letter.txt"), "dear")
    liars = [run(workspace, "evaluate", {}) for _ in range(4)]
    for liar, id in zip(liars, ("../../victim", "", "/", "."), strict=True):
        record = Path(liar.folder, "run.json")
        record.write_text(record.read_text().replace(f'"id": "{liar.id}"', f'"id": "{id}"'))
    apply_removal(plan_removal(KEEP, workspace, NOW), workspace)
    assert not any(Path(liar.folder).exists() for liar in liars)
    assert (tmp_path / "victim" / "letter.txt").exists()
    assert Path(runs["train"].folder).exists()
