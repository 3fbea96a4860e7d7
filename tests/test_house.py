"""The house stands: every module imports alone, imports only from above, and comes from a notebook."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "slml"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py" and p.read_text().strip())

# The rows of the house, from the ground up; a module imports only from its own row or one before it.
ROWS = [
    "errors", "workspace", "storage", "tables", "contract", "quality", "sampling", "features", "models",
    "training", "registry", "serving", "monitoring", "jobs", "aws", "cli", "taxi",
]  # fmt: skip
# What a part may not touch, beyond the order of the rows.
APART = {"jobs": {"training"}, "taxi": {"cli"}}
# The only places that may load what is slow to load or belongs to one part alone.
HOMES = {
    "torch": {"features", "models", "training", "registry"},
    "mlflow": {"registry"},
    "pyiceberg": {"tables"},
    "duckdb": {"tables"},
    "papermill": {"jobs"},
    "optuna": {"training"},
    "onnx": {"registry"},
    "onnxruntime": {"registry", "serving"},
    "awslambdaric": {"serving"},
    "typer": {"cli"},
    "ibis": {"tables", "quality", "sampling", "monitoring"},
    "boto3": {"jobs", "aws"},
    "kubernetes": {"jobs"},
}
# Of a row that has several implementations, the one module that may load what only it needs.
ALONE = {"boto3": "slml.jobs.batch", "kubernetes": "slml.jobs.kubernetes"}


def name_of(path: Path) -> str:
    """The dotted name of a module under slml, without `slml.`; empty for slml itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; nbdev exports slml's own as relative imports."""
    package = ["slml", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path} has a star import"
            above = package[: -node.level] if node.level else []
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*above, name]) for name in names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_alone(path: Path) -> None:
    """A notebook passes while its module is broken if an import sits in a cell that is not exported."""
    name = f"slml.{name_of(path)}".rstrip(".")
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd="/", timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_above(path: Path) -> None:
    row = name_of(path).split(".")[0]
    if not row:
        return
    others = {name.split(".")[1] for name in imports(path) if name.startswith("slml.")} - {row}
    below = {other for other in others if ROWS.index(other) > ROWS.index(row)}
    assert not below, f"{path} imports from below: {below}"
    assert not others & APART.get(row, set())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_stay_at_home(path: Path) -> None:
    row = name_of(path).split(".")[0]
    tops = {name.split(".")[0] for name in imports(path)}
    for package, homes in HOMES.items():
        assert package not in tops or row in homes, f"{path} imports {package}, which belongs to {homes}"
    for package, home in ALONE.items():
        assert row != "jobs" or package not in tops or f"slml.{name_of(path)}" == home, f"{package} belongs to {home}"


def notebooks() -> list[Path]:
    return sorted(p for p in (REPOSITORY / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def test_the_modules_are_those_of_the_notebooks() -> None:
    """A notebook that was renamed or deleted leaves its old module behind."""
    exported = set()
    for path in notebooks():
        found = re.search(r"#\s*\|\s*default_exp\s+(\S+)", "".join(map(source, cells(path))))
        if found:
            mirrored = path.relative_to(REPOSITORY / "nbs").with_suffix("").as_posix().replace("/", ".")
            assert mirrored == found[1].replace("__", ""), f"{path} exports {found[1]}: the folders mirror each other"
            exported.add(found[1].removesuffix("__init__").rstrip("."))
    assert set(map(name_of, MODULES)) == exported


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"]) + "\n"


def test_notebooks_are_clean_and_in_step_with_the_package(tmp_path: Path) -> None:
    """Exporting and cleaning a copy of the notebooks gives exactly the files that are here."""
    shutil.copytree(REPOSITORY / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(REPOSITORY / "settings.ini", tmp_path)
    for command in ("nbdev_export", "nbdev_clean"):
        done = subprocess.run(
            [Path(sys.executable).parent / command], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    stale = [p.name for p in notebooks() if p.read_text() != (tmp_path / p.relative_to(REPOSITORY)).read_text()]
    assert not stale, f"not clean: {stale}; run make export"
    for path in PACKAGE.rglob("*.py"):
        fresh = tmp_path / path.relative_to(REPOSITORY)
        assert fresh.exists(), f"{path} is not exported by any notebook; delete it"
        assert path.read_text() == fresh.read_text(), f"{path} is not what its notebook exports; run make export"


def test_job_notebooks_hold_no_outputs_and_no_definitions() -> None:
    for path in notebooks():
        if not any("parameters" in cell["metadata"].get("tags", []) for cell in cells(path)):
            continue
        for cell in cells(path):
            assert not cell.get("outputs"), f"{path} holds outputs; the executed copy is the record"
            assert not re.search(r"^\s*(def|class) ", source(cell), re.M), f"{path} defines something"


def test_importing_slml_is_quick_and_loads_nothing_heavy() -> None:
    code = "import sys, time; t = time.perf_counter(); import slml; print(time.perf_counter() - t, *sys.modules)"
    seconds, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(seconds) < 0.3
    assert not {"torch", "boto3", "mlflow", "pyspark", "pyiceberg", "pandas"} & set(loaded)


def test_the_readme_is_its_notebook(tmp_path: Path) -> None:
    """README.md is made by `make readme`; the same text, with pictures of the same names."""
    made = subprocess.run(
        ["make", "readme", f"README_DIR={tmp_path}", f"VENV={Path(sys.executable).parents[1]}"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "README.md").read_text() == (REPOSITORY / "README.md").read_text(), "run make readme"
    pictures = [{p.name for p in (top / "README_files").iterdir()} for top in (tmp_path, REPOSITORY)]
    assert pictures[0] == pictures[1], "run make readme"
