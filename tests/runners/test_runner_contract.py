"""What every runner promises, whichever implementation the workspace names.

One suite for all of them: processes of this machine, AWS Batch and Kubernetes, the last two emulated. What an emulation
cannot do is in its `lacks`, and the test of that is skipped by name with the reason.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest

from slml.errors import ParameterError, SettingsError, UsageError
from slml.runners.local import LocalRunner
from slml.runners.open import RUNNERS, open_runner
from slml.runners.runner import Runner
from slml.runs.job import Job, job
from slml.runs.resources import Resources
from slml.runs.run import Run
from slml.storage import exists, read_text
from slml.workspace import Workspace

from support.runners import IMPLEMENTATIONS, Implementation


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as the current folder; what it holds travels with a job that runs elsewhere."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "slml.toml").touch()
    monkeypatch.chdir(folder)
    return folder


# A job in an emulation starts cold and takes seconds, so those suites run apart, with `make test-slow`.
@pytest.fixture(
    params=[pytest.param(name, marks=[] if name == "local" else pytest.mark.slow) for name in IMPLEMENTATIONS]
)
def implementation(
    request: pytest.FixtureRequest, project: Path, tmp_path: Path, tracking_uri: str
) -> Iterator[Implementation]:
    """Each implementation, with room for one job, so that the second has to wait."""
    with IMPLEMENTATIONS[request.param](tmp_path, tracking_uri) as implementation:
        yield implementation


@pytest.fixture
def runner(implementation: Implementation) -> Runner:
    return implementation.runner


def executed(run: Run) -> nbformat.NotebookNode:
    """The executed notebook, wherever it lies."""
    return nbformat.reads(read_text(run.executed), 4)


def test_all_runners_are_under_contract() -> None:
    assert IMPLEMENTATIONS.keys() == RUNNERS.keys()


def notebook(folder: Path, name: str, *sources: str) -> str:
    """A job notebook whose first cell is tagged `parameters`."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return str(folder / f"{name}.ipynb")


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def sleeper(project: Path) -> Job:
    """A job that would take ten minutes and says which process it is."""
    source = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
    return job(notebook(project, "sleeper", "", source), {})


def test_a_job_runs_and_leaves_its_record(runner: Runner, project: Path) -> None:
    source = "from slml import Workspace\nfrom slml.runs.record import record\nprint('hello', rows)"
    last = "record({'half': rows / 2}, {'root': Workspace().root, 'rows': {'in': rows}})"
    path = notebook(project, "half", "rows: int = 10  # rows", source, last)
    run = runner.wait(runner.submit(job(path, {"rows": "30"})))
    assert (run.status, run.error) == ("done", None)
    assert run.metrics == {"half": 15.0}
    assert run.outputs["rows"] == {"in": 30}
    assert run.outputs["root"] == runner.workspace.root, "the notebook sees the workspace of its caller"
    assert "hello 30" in runner.logs(run.id)
    assert runner.status(run.id) == "done"
    assert len(run.fingerprint) == 64
    assert run.seconds > 0
    assert run.peak_memory > 10**7
    cells = executed(run).cells
    assert any("injected-parameters" in cell.metadata.tags for cell in cells)


def test_a_run_is_tracked(implementation: Implementation, project: Path) -> None:
    if "tracking" in implementation.lacks:
        pytest.skip(implementation.lacks["tracking"])
    runner = implementation.runner
    assert runner.wait(runner.submit(job(notebook(project, "one", "", "1"), {}))).tracking


def test_a_failing_cell_is_named_and_marked(runner: Runner, project: Path) -> None:
    raising = "from slml.errors import UsageError\nraise UsageError('No file.', todo='look again.')"
    run = runner.wait(runner.submit(job(notebook(project, "bad", "", "print('first')", raising, "1"), {})))
    assert (run.status, run.error.type, run.error.exit_code) == ("failed", "UsageError", 2)
    assert run.error.message == "No file.\n  to do: look again."
    assert run.error.cell == 3
    cells = executed(run).cells
    assert "An Exception was encountered" in cells[0].source
    assert any("first" in str(cell.get("outputs")) for cell in cells), "what ran before is kept"


def test_a_killed_kernel_is_called_that(runner: Runner, project: Path) -> None:
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    run = runner.wait(runner.submit(job(notebook(project, "killed", "", "1", source), {})))
    assert run.status == "failed"
    assert run.error.type == "KernelDied"
    assert run.error.cell == 3
    assert "SIGKILL" in run.error.message
    assert "memory" in run.error.message


def test_cancel_leaves_no_process_and_frees_the_core(implementation: Implementation, sleeper: Job) -> None:
    runner = implementation.runner
    first, second = runner.submit(sleeper), runner.submit(sleeper)
    until(lambda: "pid" in runner.logs(first))
    assert runner.status(first) == "running"
    assert runner.status(second) == "waiting"
    kernel = int(runner.logs(first).split("pid")[1].split()[0])
    runner.cancel(first)
    assert not psutil.pid_exists(kernel)
    assert runner.status(first) == "cancelled"
    until(lambda: "pid" in runner.logs(second))  # its turn has come
    runner.cancel(second)
    runner.cancel(second)  # an ended run stays as it is
    run = runner.wait(second)
    assert run.status == "cancelled"
    assert exists(run.executed)
    assert run.error.exit_code == implementation.cancel_code


def test_a_process_that_is_killed_has_failed(implementation: Implementation, sleeper: Job) -> None:
    runner = implementation.runner
    id = runner.submit(sleeper)
    until(lambda: "pid" in runner.logs(id))
    kernel = psutil.Process(int(runner.logs(id).split("pid")[1].split()[0]))
    os.kill(implementation.process_of(id), signal.SIGKILL)
    run = runner.wait(id)
    assert run.status == "failed"
    assert run.error.type == implementation.killed
    assert run.error.message
    assert run.tracking or "tracking" in implementation.lacks, "a run that could not speak for itself is tracked too"
    until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)


def test_a_job_comes_after_others_and_learns_what_they_hand_on(runner: Runner, project: Path) -> None:
    last = "from slml.runs.record import record\nrecord(outputs={'rows': rows})"
    first = runner.submit(job(notebook(project, "first", "rows: int = 10", last), {}))
    second = notebook(project, "second", "rows: int", "print('got', rows)", last)
    begins = runner.submit(job(second, {"rows": f"${{{first}.rows}}"}), after=[first])
    again = runner.submit(job(second, {"rows": f"${{{first}.rows}}"}), after=[begins])
    assert runner.wait(begins).parameters == {"rows": 10}
    assert "got 10" in runner.logs(begins)
    assert runner.wait(again).same_as == begins, "the same work is not done twice"
    assert runner.wait(again).outputs == {"rows": 10}


def test_a_job_after_one_that_failed_is_skipped(runner: Runner, project: Path) -> None:
    first = runner.submit(job(notebook(project, "first", "", "1 / 0"), {}))
    second = runner.submit(job(notebook(project, "second", "", "1"), {}), after=[first])
    run = runner.wait(second)
    assert (run.status, run.error.type) == ("cancelled", "Skipped")
    assert first in run.error.message


def test_many_jobs_are_submitted_together(runner: Runner, project: Path) -> None:
    path = notebook(project, "half", "rows: int", "from slml.runs.record import record; record({'half': rows / 2})")
    ids = runner.submit_array([job(path, {"rows": rows}) for rows in (2, 4, 6)])
    assert [runner.wait(id).metrics["half"] for id in ids] == [1.0, 2.0, 3.0]


def test_it_says_why_a_job_stands_where_it_stands(runner: Runner, sleeper: Job) -> None:
    first, second = runner.submit(sleeper), runner.submit(sleeper)
    until(lambda: "pid" in runner.logs(first))
    assert runner.why(first).state.lower() == "running"
    assert "1 of 2 cells" in runner.why(first).why
    assert runner.why(second).why != runner.why(first).why
    assert runner.why(second).todo, "there is something to do about a wait"
    if isinstance(runner, LocalRunner):
        assert first in runner.why(second).why, "whom it waits for"
    runner.cancel(second)
    runner.cancel(first)
    assert "cancelled" in runner.why(first).why


def test_the_time_limit_ends_a_job_and_keeps_what_it_had(implementation: Implementation, sleeper: Job) -> None:
    runner = implementation.runner
    limited = replace(sleeper, resources=replace(sleeper.resources, minutes=1))
    id = runner.submit(limited)
    until(lambda: "pid" in runner.logs(id))
    os.kill(implementation.process_of(id), signal.SIGALRM)  # as the clock does when the minute is over
    run = runner.wait(id)
    assert (run.status, run.error.type) == ("failed", "TimedOut")
    assert "1 minutes" in run.error.message
    assert any("pid" in str(cell.get("outputs")) for cell in executed(run).cells)


def test_two_ranks_are_one_run(runner: Runner, project: Path) -> None:
    source = "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])"
    pair = job(notebook(project, "pair", "", source), {}, Resources(processes=2))
    run = runner.wait(runner.submit(pair))
    assert (run.status, run.error) == ("done", None)
    assert "rank 1 of 2" in runner.logs(run.id)
    assert "rank 0 of 2" in str(executed(run).cells)


def test_an_error_of_another_rank_is_told(runner: Runner, project: Path) -> None:
    source = "import os, time\nassert os.environ['RANK'] == '0', 'too bad'\ntime.sleep(60)"
    pair = job(notebook(project, "pair", "", source), {}, Resources(processes=2))
    run = runner.wait(runner.submit(pair))
    assert run.status == "failed"
    assert run.error.message.startswith("rank 1: too bad")


def test_an_unknown_run_is_an_error(runner: Runner) -> None:
    for question in (runner.status, runner.wait, runner.cancel, runner.logs, runner.why):
        with pytest.raises(UsageError, match="There is no run"):
            question("2001-nothing")


def test_an_unknown_runner_and_an_unknown_parameter_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'local'"):
        open_runner(Workspace(root=str(tmp_path), runner="locl"))
    with pytest.raises(ParameterError, match="is not declared"):
        job(notebook(tmp_path, "one", "rows: int = 1"), {"row": 2})
