"""Jobs as users meet them: parameters, records, tracking, and two jobs that end at once."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest

from slml.errors import JobError, ParameterError, UsageError
from slml.execution.kernel import kernel_manager
from slml.execution.notebook import notebook_outcome
from slml.registry.tracking import FinishedRun, log_run, open_tracking
from slml.runners.open import run_job
from slml.runners.runner import prepare_runs
from slml.runs.environment import kernel_environment, workspace_environment
from slml.runs.job import fingerprint, job
from slml.runs.parameters import REQUIRED, bind, read_parameters
from slml.runs.run import list_runs, load_run, new_run, save_run
from slml.runs.signals import Interruption
from slml.runs.tracking import tracking_record
from slml.workspace import Workspace

CELL = """
source: str            # the files, a path
rows: int = 100        # rows to keep
share: float = 0.2     # share for testing, 0 to 1
strict: bool = False
"""


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Workspace:
    """A workspace of this test alone, with the database of all."""
    return Workspace(root=str(tmp_path / "root"), project=tmp_path.name, tracking_uri=tracking_uri)


def notebook(folder: Path, *sources: str, name: str = "job") -> str:
    """A job notebook whose first cell is tagged `parameters`."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return str(folder / f"{name}.ipynb")


def test_declarations_are_read_without_running_them(tmp_path: Path) -> None:
    found = read_parameters(notebook(tmp_path, CELL))
    assert found["source"].default is REQUIRED
    assert found["source"].doc == "the files, a path"
    assert [(p.type, p.default) for p in list(found.values())[1:]] == [("int", 100), ("float", 0.2), ("bool", False)]


WRONG = ["import os", "a = 1", "a: int = 2 * 3", "a: int | None = None", "a: int = '3'", "%cd /"]


@pytest.mark.parametrize("line", WRONG)
def test_anything_else_in_the_cell_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(JobError, match="line 2 of the cell"):
        read_parameters(notebook(tmp_path, f"rows: int = 1\n{line}"))


def test_text_is_parsed_by_the_declared_type(tmp_path: Path) -> None:
    known = read_parameters(notebook(tmp_path, CELL))
    given = {"source": "20001", "rows": "1_000", "share": "1e-3", "strict": "TRUE"}
    assert bind(known, given) == {"source": "20001", "rows": 1000, "share": 0.001, "strict": True}


def test_all_problems_of_a_call_are_told_together_before_a_kernel_starts(tmp_path: Path, workspace: Workspace) -> None:
    with pytest.raises(ParameterError) as caught:
        run_job(job(notebook(tmp_path, CELL), {"row": "1", "share": "half", "strict": "yes", "rows": "3.5"}), workspace)
    for part in ("did you mean 'rows'?", "source is required", "share is float", "strict is bool", "rows is int"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 2
    assert list_runs(workspace) == []


def test_a_job_fails_with_the_notebooks_own_error(tmp_path: Path, workspace: Workspace) -> None:
    second = "from slml import parameters\np = parameters(globals())"
    raising = "from slml.errors import UsageError\nraise UsageError(f'No file {p.source}.')"
    with pytest.raises(UsageError, match=r"^No file trips.csv\.$"):
        run_job(job(notebook(tmp_path, CELL, second, raising), {"source": "trips.csv"}), workspace)
    run = list_runs(workspace)[-1]
    assert run.status == "failed"
    assert Path(run.folder, "log.txt").exists()
    stored = open_tracking(workspace).get_run(run.tracking)
    assert stored.info.status == "FAILED"
    assert stored.data.params["source"] == "trips.csv"
    assert stored.data.tags["fingerprint"] == run.fingerprint
    assert "No file" in stored.data.tags["error"]


def test_the_kernel_needs_no_kernelspec_and_sees_the_workspace(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "nothing"))
    imports = "import os, sys; from slml import Workspace"
    cwd = tmp_path / "elsewhere"
    cwd.mkdir()
    checks = f"assert (Workspace().root, sys.executable, os.getcwd()) == (root, python, {str(cwd)!r})"
    path = notebook(tmp_path, "root: str\npython: str", imports, checks)
    run = prepare_runs([job(path, {"root": workspace.root, "python": sys.executable})], workspace)[0]
    with kernel_manager(kernel_environment(run, workspace)) as kernel:
        assert notebook_outcome(replace(run, cwd=str(cwd)), kernel, Interruption()) == ("done", None)


def test_two_processes_may_track_at_once_in_a_new_database(workspace: Workspace) -> None:
    code = (
        "from datetime import datetime; from slml.registry.tracking import *; from slml.workspace import Workspace\n"
        "ws = Workspace(); c = open_tracking(ws)\n"
        "for n in range(5): log_run(c, ws, FinishedRun('t', datetime.now(), 1.0, 'FINISHED', metrics={'n': n}))"
    )
    new = Workspace(root=workspace.root, project="test", tracking_uri=f"sqlite:///{workspace.root}/mlflow.db")
    started = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **workspace_environment(new)})
        for _ in range(2)
    ]
    assert [process.wait(60) for process in started] == [0, 0]
    client = open_tracking(new)
    assert len(client.search_runs([client.get_experiment_by_name("test").experiment_id])) == 10


def test_threads_share_a_tracking_database(workspace: Workspace) -> None:
    client = open_tracking(workspace)
    one = FinishedRun(
        "t", datetime.now(UTC), 1.0, "FINISHED", history={"loss": [3.0, None, 1.0]}, metrics={"rmse": 1.0}
    )
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: log_run(client, workspace, one), range(8)))
    assert len(set(ids)) == 8
    assert [(m.step, m.value) for m in client.get_metric_history(ids[0], "loss")] == [(0, 3.0), (2, 1.0)]


def test_what_a_run_depends_on_is_written_to_tracking(workspace: Workspace) -> None:
    run = replace(
        new_run("train", "train.ipynb", {"split": "trips@5132684771234567890", "rate": 0.1}, workspace), status="done"
    )
    tags = tracking_record(replace(run, started=run.created, code="4f2a91c", fingerprint="ab")).tags
    assert tags["snapshots"] == "split=trips@5132684771234567890"
    assert tags["code"] == "4f2a91c"
    assert "torch" in tags["libraries"]


def test_runs_are_listed_by_time_and_found_by_the_beginning_of_their_id(workspace: Workspace) -> None:
    made = [save_run(new_run(name, f"{name}.ipynb", {}, workspace)) for name in ("b", "a", "c")]
    done = save_run(replace(made[1], status="done", metrics={"rmse": 1.5}))
    assert [run.job for run in list_runs(workspace)] == ["b", "a", "c"]
    assert load_run(workspace, done.id[:-2]) == done
    with pytest.raises(UsageError, match="There is no run"):
        load_run(workspace, "nothing")


def test_a_fingerprint_follows_contents_not_names(tmp_path: Path, workspace: Workspace) -> None:
    path = notebook(tmp_path, CELL)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trips.csv").write_text("fare\n1\n")

    def of(**given: object) -> str:
        return fingerprint(job(path, given), workspace)

    same = of(source=str(tmp_path / "a"))
    assert of(source=str(tmp_path / "b")) == same
    assert of(source=str(tmp_path / "a"), rows=7) != same
    (tmp_path / "a" / "more.csv").write_text("fare\n2\n")
    assert of(source=str(tmp_path / "a")) != same


def test_importing_the_jobs_is_quick() -> None:
    heavy = ("mlflow", "papermill", "pyiceberg", "torch", "nbformat", "jupyter_client", "pandas")
    code = f"import sys, slml.pipelines.pipeline; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
