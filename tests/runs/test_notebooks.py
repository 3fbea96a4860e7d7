"""A job is found by its name: in the project, else among those that ship with slml; and it is the same job there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slml.errors import PipelineError, UsageError
from slml.pipelines.plan import load_pipeline
from slml.runners.runner import prepare_runs
from slml.runs.job import fingerprint, job
from slml.runs.notebooks import job_notebook, job_notebooks, packaged_notebooks
from slml.workspace import Workspace

from support import REPOSITORY

SPLIT = {"snapshot": "trips@1"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without notebooks, as the current folder."""
    (tmp_path / "slml.toml").touch()
    (tmp_path / "pipelines").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_notebook(project: Path, name: str, parameters: str = "rows: int = 1") -> Path:
    cell = {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}, "outputs": []}
    path = project / "nbs" / "jobs" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [cell]}))
    return path


def test_every_job_notebook_ships() -> None:
    assert set(packaged_notebooks()) == {path.stem for path in (REPOSITORY / "nbs" / "jobs").glob("*.ipynb")}


def test_the_notebook_of_the_project_comes_first(project: Path) -> None:
    assert job_notebook("split") == str(packaged_notebooks()["split"])
    own = own_notebook(project, "split")
    assert job("split", {}).notebook == job_notebook("split") == str(own)
    assert set(job_notebooks()) == set(packaged_notebooks())
    own_notebook(project, "weekly-report")
    (project / "nbs" / "reports").mkdir()
    os.chdir(project / "nbs" / "reports")
    assert job("weekly-report", {"rows": 3}).name == "weekly-report"


@pytest.mark.parametrize("path", ["split.ipynb", "./split", "nbs/jobs/none.ipynb", "s3://bucket/split.ipynb"])
def test_a_path_stays_a_path(project: Path, path: str) -> None:
    assert job_notebook(path) == path


def test_an_unknown_name_lists_what_there_is(project: Path) -> None:
    own_notebook(project, "weekly")
    with pytest.raises(UsageError) as error:
        job("trian", {})
    assert "did you mean 'train'?" in str(error.value)
    assert "audit" in str(error.value)
    assert "weekly" in str(error.value)


def test_where_the_notebook_lies_does_not_change_what_it_does(project: Path) -> None:
    workspace, shipped = Workspace(root=str(project / "root"), project="test"), job("split", SPLIT)
    run = prepare_runs([shipped], workspace)[0]
    assert Path(run.source).read_text() == packaged_notebooks()["split"].read_text()
    copy = project / "nbs" / "jobs" / "split.ipynb"
    copy.parent.mkdir(parents=True)
    copy.write_text(packaged_notebooks()["split"].read_text())
    assert fingerprint(job("split", SPLIT), workspace) == fingerprint(shipped, workspace) == run.fingerprint
    copy.write_text(copy.read_text().replace("snapshot", "table"))
    assert job("split", {"table": "trips@1"}).notebook == str(copy)


def test_the_commit_of_a_run_is_that_of_the_project(project: Path) -> None:
    workspace = Workspace(root=str(project / "root"), project="test")
    assert prepare_runs([job("split", SPLIT)], workspace)[0].code == "", "the project is not under git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "slml.toml"], ["commit", "-q", "-m", "Start"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert head.startswith(prepare_runs([job("split", SPLIT)], workspace)[0].code[:12])


def test_a_step_names_a_job(project: Path) -> None:
    own = own_notebook(project, "weekly")
    text = "steps:\n  first: {notebook: weekly}\n  split:\n    notebook: split\n"
    (project / "pipelines" / "both.yaml").write_text(text + f"    parameters: {json.dumps(SPLIT)}\n")
    steps = load_pipeline(project / "pipelines" / "both.yaml").steps
    assert steps["first"].notebook == str(own)
    assert steps["split"].notebook == str(packaged_notebooks()["split"])


def test_a_step_with_an_unknown_job_is_a_problem(project: Path) -> None:
    (project / "pipelines" / "bad.yaml").write_text("steps:\n  a: {notebook: trian}\n  b: {notebook: none.ipynb}\n")
    with pytest.raises(PipelineError) as error:
        load_pipeline(project / "pipelines" / "bad.yaml")
    assert "step 'a': There is no job 'trian'. did you mean 'train'?" in str(error.value)
    assert str(error.value).count("step 'a'") == str(error.value).count("step 'b'") == 1


def test_an_installed_slml_has_the_notebooks_inside(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    code = "from slml.runs.notebooks import packaged_notebooks; print(*packaged_notebooks().values())"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd="/", capture_output=True, text=True, check=True
    )
    inside = {path.stem: str(tmp_path / "slml" / "jobs" / path.name) for path in packaged_notebooks().values()}
    assert done.stdout.split() == list(inside.values())
    for name, path in packaged_notebooks().items():
        assert Path(inside[name]).read_bytes() == path.read_bytes()
