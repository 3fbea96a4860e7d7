"""Pipelines as users meet them: what is run, what is not, what fails, and what a Ctrl-C leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pyarrow as pa
import pytest

from slml.errors import ParameterError, PipelineError
from slml.pipelines.pipeline import load_pipeline, run_pipeline
from slml.pipelines.progress import StepState
from slml.runs.cache import find_same_run, output_exists
from slml.runs.environment import workspace_environment
from slml.runs.run import list_runs
from slml.workspace import Workspace

PIPELINE = """
name: sums
parameters:
  file: {type: str, help: a file of numbers}
  factor: {type: float, default: 2.0}
steps:
  read:
    notebook: nbs/read.ipynb
    parameters: {file: "${file}"}
  side: {notebook: nbs/side.ipynb}
  scale:
    notebook: nbs/scale.ipynb
    parameters: {value: "${read.stats.sum}", factor: "${factor}", label: "sum of ${read.rows} rows"}
summary:
  scaled: ${scale.metrics.scaled}
  stats: ${read.stats}
  label: ${scale.label}
  test: ${scale.metrics.test_*}
"""
RECORD = "from slml.runs.record import record\n"


def notebook(path: Path, *sources: str) -> None:
    """A job notebook whose first cell is tagged `parameters`."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def workspace(tmp_path: Path, tracking_uri: str) -> Workspace:
    """A workspace of this test alone, with the database of all."""
    return Workspace(root=str(tmp_path / "root"), project="test", tracking_uri=tracking_uri)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A project with one pipeline of three steps."""
    (tmp_path / "slml.toml").touch()
    reading = "values = [float(line) for line in open(file)]"
    stats = "record({}, {'stats': {'sum': sum(values), 'mean': sum(values) / len(values)}, 'rows': len(values)})"
    notebook(tmp_path / "nbs" / "read.ipynb", "file: str", reading, RECORD + stats)
    notebook(tmp_path / "nbs" / "side.ipynb", "", RECORD + "record({}, {'fine': True})")
    scaling = "record({'scaled': value * factor, 'test_rmse': 0.5}, {'label': label})"
    notebook(tmp_path / "nbs" / "scale.ipynb", "value: float\nfactor: float\nlabel: str", RECORD + scaling)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "sums.yaml").write_text(PIPELINE)
    (tmp_path / "numbers.txt").write_text("1\n2\n")
    return tmp_path / "pipelines" / "sums.yaml"


def test_fail_resume_and_nothing_twice(file: Path, tmp_path: Path, workspace: Workspace) -> None:
    pipeline, numbers = load_pipeline(file), tmp_path / "numbers.txt"
    told: list[StepState] = []

    def states() -> dict[str, str]:
        found = {state.step: state.state for state in told}
        told.clear()
        return found

    numbers.write_text("1\ntwo\n")
    with pytest.raises(PipelineError) as caught:
        run_pipeline(pipeline, {"file": str(numbers)}, workspace, told.append)
    assert states() == {"read": "failed", "side": "done", "scale": "skipped"}
    message = str(caught.value)
    assert "The step 'read' failed" in message
    assert "could not convert string to float" in message
    assert list_runs(workspace)[0].executed in message or list_runs(workspace)[1].executed in message

    numbers.write_text("1\n2\n")
    run = run_pipeline(pipeline, {"file": str(numbers)}, workspace, told.append)
    assert states() == {"read": "done", "side": "cached", "scale": "done"}
    stats = {"sum": 3.0, "mean": 1.5}
    expected = {"scaled": 6.0, "stats": stats, "label": "sum of 2 rows", "test": {"rmse": 0.5}}
    assert {name: run.summary[name] for name in expected} == expected
    assert set(run.summary["runs"]) == {"read", "side", "scale"}

    again = run_pipeline(pipeline, {"file": str(numbers), "factor": "2.0"}, workspace, told.append)
    assert set(states().values()) == {"cached"}
    assert again.summary["runs"] == run.summary["runs"]

    other = run_pipeline(pipeline, {"file": str(numbers), "factor": "3"}, workspace, told.append)
    assert states() == {"read": "cached", "side": "cached", "scale": "done"}
    assert other.summary["scaled"] == 9.0


def test_all_that_can_be_known_is_told_before_anything_starts(file: Path, workspace: Workspace) -> None:
    with pytest.raises(ParameterError, match="did you mean 'factor'") as caught:
        run_pipeline(load_pipeline(file), {"file": "x", "facto": "3"}, workspace)
    assert caught.value.exit_code == 2
    wrong = PIPELINE.replace("read.stats.sum", "raed.stats.sum").replace("label:", "lable:", 1)
    file.write_text(wrong.replace('file: "${file}"', 'file: "${scale.label}"').replace("nbs/side", "nbs/sied"))
    with pytest.raises(PipelineError) as caught:
        load_pipeline(file)
    for part in ("did you mean 'read'?", "did you mean 'label'?", "label is required", "sied.ipynb cannot be read"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 2
    file.write_text(PIPELINE.replace('file: "${file}"', 'file: "${scale.label}"'))
    with pytest.raises(PipelineError, match="wait for each other"):
        load_pipeline(file)
    assert list_runs(workspace) == []


def test_a_snapshot_that_is_gone_does_not_stand(workspace: Workspace) -> None:
    from slml.tables.catalog import Catalog

    snapshot = Catalog(workspace).table("trips").append(pa.table({"fare": [3.25]}))
    assert output_exists({"kept": snapshot.ref}, workspace)
    Catalog(workspace).drop("trips")
    assert not output_exists({"kept": snapshot.ref}, workspace)
    assert find_same_run("0" * 64, [], workspace) is None


def started(file: Path, workspace: Workspace, steps: int) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A pipeline in a process of its own, and the jobs and kernels of its first steps, which would take ten minutes."""
    source = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
    notebook(file.parents[1] / "nbs" / "side.ipynb", "", source)
    notebook(file.parents[1] / "nbs" / "read.ipynb", "file: str", source)
    code = (
        "from slml.pipelines.pipeline import load_pipeline, run_pipeline; from slml.workspace import Workspace\n"
        f"run_pipeline(load_pipeline({str(file)!r}), {{'file': 'x'}}, Workspace())"
    )
    env = {**os.environ, **workspace_environment(workspace)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True)
    logs = Path(workspace.root, "runs")
    end = time.monotonic() + 120
    while sum("pid" in log.read_text() for log in logs.glob("*/log.txt")) < steps:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    time.sleep(0.6)  # until it has been told
    kernels = [int(log.read_text().split("pid")[1].split()[0]) for log in logs.glob("*/log.txt")]
    jobs = [run.pid for run in list_runs(workspace) if run.status == "running"]
    assert len(kernels) == len(jobs) == steps
    return process, [psutil.Process(pid) for pid in [*kernels, *jobs]]


def test_ctrl_c_leaves_nothing_running(file: Path, workspace: Workspace) -> None:
    process, below = started(file, workspace.model_copy(update={"cores": 2}), 2)  # the two run side by side
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not any(one.is_running() for one in below)
    assert [run.status for run in list_runs(workspace)] == ["cancelled"] * 3
    assert "cancelled" in said


def test_jobs_do_not_outlive_a_pipeline_that_was_killed(file: Path, workspace: Workspace) -> None:
    process, below = started(file, workspace.model_copy(update={"cores": 1}), 1)
    process.kill()
    _, said = process.communicate(timeout=60)
    assert sorted(line.split()[1] for line in said.splitlines()) == ["running", "waiting"], "one core, one step"
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]  # nobody may be there to collect it
    assert sorted(run.status for run in list_runs(workspace)) == ["cancelled", "failed", "failed"]
