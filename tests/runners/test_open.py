"""The runner that a workspace names: one of slml, or one that an installed package brings."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slml.errors import SettingsError
from slml.runners.local import LocalRunner
from slml.runners.open import RUNNERS, open_runner, run_job
from slml.runs.job import Job
from slml.workspace import Workspace

from support.packages import install_package

# What a package for Slurm would be, in short: it writes the records as every runner does, and runs nothing.
MODULE = """
from dataclasses import replace
from slml.runners.runner import Destination, prepare_runs
from slml.runs.run import load_run, save_run

class SlurmRunner:
    def __init__(self, workspace):
        self.workspace = workspace
    def submit(self, job, fingerprint="", after=(), pipeline=""):
        [run] = prepare_runs([job], self.workspace, after=after, destination=Destination("slurm"))
        return save_run(replace(run, status="done", metrics={"rows": 3.0})).id
    def wait(self, id):
        return load_run(self.workspace, id)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What pip does with a package that brings runners."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(package: str, *entries: str, module: str = MODULE) -> None:
        install_package(site, package, "slml.runners", entries, module)

    yield install
    for name in [name for name in sys.modules if name.endswith("_runners")]:
        del sys.modules[name]


def workspace(folder: Path, runner: str) -> Workspace:
    return Workspace(root=str(folder / "root"), project="test", runner=runner)


def test_a_runner_of_another_package_executes_a_job(install: Callable, tmp_path: Path) -> None:
    install("lab-runners", "slurm = lab_runners:SlurmRunner")
    notebook = tmp_path / "count.ipynb"
    notebook.write_text('{"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": ["parameters"]}}]}')
    run = run_job(Job(str(notebook), {}), workspace(tmp_path, "slurm"))
    assert (run.status, run.runner, run.metrics) == ("done", "slurm", {"rows": 3.0})


def test_an_unknown_runner_lists_those_of_slml_and_of_packages(install: Callable, tmp_path: Path) -> None:
    install("lab-runners", "slurm = lab_runners:SlurmRunner")
    with pytest.raises(SettingsError, match="no runner 'slrum'") as caught:
        open_runner(workspace(tmp_path, "slrum"))
    assert caught.value.expected == "one of: local, batch, kubernetes, slurm"
    assert caught.value.todo == "did you mean 'slurm'?"


@pytest.mark.parametrize("name", RUNNERS)
def test_a_name_of_slml_is_not_taken_over(name: str, install: Callable, tmp_path: Path) -> None:
    install("lab-runners", f"{name} = lab_runners:SlurmRunner")
    with pytest.raises(SettingsError, match="more than once") as caught:
        open_runner(workspace(tmp_path, name))
    assert f"{RUNNERS[name]} (slml)" in caught.value.came
    assert "lab_runners:SlurmRunner (lab-runners)" in caught.value.came


def test_two_packages_with_one_name_are_refused_and_the_others_work(install: Callable, tmp_path: Path) -> None:
    install("lab-runners", "slurm = lab_runners:SlurmRunner")
    install("more-runners", "slurm = more_runners:SlurmRunner")
    with pytest.raises(SettingsError, match="more-runners"):
        open_runner(workspace(tmp_path, "slurm"))
    assert isinstance(open_runner(workspace(tmp_path, "local")), LocalRunner)


def test_a_package_without_its_runner_is_named(install: Callable, tmp_path: Path) -> None:
    install("lab-runners", "slurm = lab_runners:Nothing")
    with pytest.raises(SettingsError, match="cannot be imported") as caught:
        open_runner(workspace(tmp_path, "slurm"))
    assert caught.value.expected == "lab_runners:Nothing of lab-runners"
