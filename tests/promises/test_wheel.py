"""A project of one's own: the built wheel in a fresh environment and an empty folder, without a clone of slml."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from support import REPOSITORY

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of earlier builds gets into it and nothing of this one is left."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("slml", "nbs", "pipelines"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("settings.ini", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, env=clean_environment())
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next(folder.glob("slml-*.whl"))


def clean_environment() -> dict[str, str]:
    """Variables without any that tell of another slml or of its settings."""
    names = ("HOME", "LANG", "PATH", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel; what it requires comes from the environment of the tests.

    A path in a .pth file is not itself searched for such files, so the editable slml of the tests is not found.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=300, env=clean_environment())
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def call(environment: Path, folder: Path, *arguments: str) -> str:
    """What a command prints that is run in a folder, with nothing of this process's settings."""
    variables = clean_environment() | {"PATH": f"{environment}:/usr/bin:/bin"}
    command = [environment / arguments[0], *arguments[1:]]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    assert "files written to fares" in call(environment, folder, "slml", "init", "fares")
    return folder / "fares"


def test_the_package_is_that_of_the_wheel(environment: Path, project: Path) -> None:
    module = call(environment, project, "python", "-c", "import slml; print(slml.__file__)")
    assert Path(module.strip()).is_relative_to(environment.parent)


def test_a_project_has_what_it_needs(project: Path) -> None:
    files = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert {"slml.toml", ".gitignore", "README.md", "pipelines/table.yaml", "explore.ipynb"} <= files
    assert {f"nbs/jobs/{path.name}" for path in (REPOSITORY / "nbs" / "jobs").glob("*.ipynb")} <= files
    assert "papermill" in (project / ".github/workflows/notebooks.yml").read_text()


def test_the_pipeline_runs_and_its_notebooks_can_be_opened(environment: Path, project: Path) -> None:
    arguments = ["-p", "source=data/houses.csv", "-p", "target=price", "-p", "max_seconds=5", "--json"]
    summary = json.loads(call(environment, project, "slml", "pipeline", "run", "table.yaml", *arguments))
    assert summary["version"] == "houses@1"
    assert summary["rows_in"] == summary["rows_kept"] + summary["rows_quarantined"] == 300
    executed = sorted((project / "runs").glob("*/executed.ipynb"))
    assert len(executed) == 6, "the runs lie in a folder that JupyterLab shows"
    arguments = ["-p", f"snapshot={audited_snapshot(executed)}", "--json"]
    assert json.loads(call(environment, project, "slml", "run", "split", *arguments))["status"] == "done"


def audited_snapshot(executed: list[Path]) -> str:
    """The cleaned snapshot that the audit of the pipeline made."""
    folder = next(path.parent for path in executed if "-audit-" in path.parent.name)
    return json.loads((folder / "run.json").read_text())["outputs"]["snapshot"]


def test_the_first_notebook_runs_under_papermill(environment: Path, project: Path) -> None:
    arguments = ["-m", "papermill", "--engine", "slml", "explore.ipynb", "out.ipynb", "-p", "max_seconds", "5"]
    call(environment, project, "python", *arguments)
    notebook = nbformat.read(project / "out.ipynb", 4)
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code" and cell.source)
