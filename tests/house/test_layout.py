"""The house stands: every module imports alone, imports only from above, and comes from a notebook."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support import REPOSITORY

PACKAGE = REPOSITORY / "slml"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py" and p.read_text().strip())

# The layers, from the ground up; a module imports only from its own package or one in a row before it.
LAYERS = [
    "lazy", "errors", "implementations", "display", "notes", "workspace", "storage", "tables", "contract", "quality",
    "sampling", "features", "models", "training", "registry", "serving", "monitoring", "runs", "execution", "costs",
    "runners", "pipelines", "operations", "aws", "explore", "cli", "lab", "jobs", "taxi",
]  # fmt: skip
# What a package may not import, beyond the order of the layers.
FORBIDDEN = {"runs": {"training"}, "execution": {"training"}, "runners": {"training"}, "taxi": {"cli"}}
# The only packages that may load what is slow to load or belongs to one part alone.
HOMES = {
    "torch": {"features", "models", "training", "registry"},
    "mlflow": {"registry"},
    "pyiceberg": {"tables"},
    "duckdb": {"tables"},
    "papermill": {"execution"},
    "optuna": {"training"},
    "onnx": {"registry"},
    "onnxruntime": {"registry", "serving"},
    "awslambdaric": {"serving"},
    "typer": {"cli"},
    "ibis": {"tables", "quality", "sampling", "monitoring"},
    "boto3": {"runners.batch.client", "aws"},
    "kubernetes": {"runners.kubernetes.client"},
}
# The one module that does not stand where its notebook does: the entry that containers of earlier versions call.
MOVED = {"execution/jobs_entry": "jobs.entry"}


def name_of(path: Path) -> str:
    """The dotted name of a module under slml, without `slml.`; empty for slml itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path, with_names: bool = False) -> set[str]:
    """Every module that a file imports, anywhere in it; nbdev exports slml's own as relative imports.

    `with_names` adds each imported name as if it were a module, because it may be one."""
    package = ["slml", *path.relative_to(PACKAGE).with_suffix("").parts]
    tree, modules = ast.parse(path.read_text()), set()
    if path.name == "__init__.py":  # what a package offers is imported on first use; this block is for type checkers
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path} has a star import"
            above = package[: -node.level] if node.level else []
            names = [node.module] if node.module else [alias.name for alias in node.names]
            modules |= {".".join([*above, name]) for name in names}
            if with_names and node.module:
                modules |= {".".join([*above, node.module, alias.name]) for alias in node.names}
    return modules


@pytest.mark.medium
@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_alone(path: Path) -> None:
    """A notebook passes while its module is broken if an import sits in a cell that is not exported."""
    name = f"slml.{name_of(path)}".rstrip(".")
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd="/", timeout=120
    )
    assert done.returncode == 0, done.stderr


def imported_modules(path: Path) -> set[str]:
    """The modules of slml that a file imports, without `slml.`; `from slml.x import y` may name a module too."""
    names = {name_of(other) for other in MODULES}
    return {name.removeprefix("slml.") for name in imports(path, with_names=True)} & (names - {name_of(path), ""})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    package = name_of(path).split(".")[0]
    if not package:
        return
    others = {name.split(".")[0] for name in imported_modules(path)} - {package}
    above = {other for other in others if LAYERS.index(other) > LAYERS.index(package)}
    assert not above, f"{path} imports from layers above its own: {above}"
    assert not others & FORBIDDEN.get(package, set())


def test_no_import_circles() -> None:
    """Not between packages and not within one; `graphlib` names the modules of a circle."""
    TopologicalSorter({name_of(path): imported_modules(path) for path in MODULES}).prepare()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_stay_at_home(path: Path) -> None:
    name = name_of(path)
    tops = {imported.split(".")[0] for imported in imports(path)}
    for package, homes in HOMES.items():
        allowed = name in homes or name.split(".")[0] in homes
        assert package not in tops or allowed, f"{path} imports {package}, which belongs to {homes}"


def notebooks() -> list[Path]:
    return sorted(p for p in (REPOSITORY / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def test_the_modules_are_those_of_the_notebooks() -> None:
    """A notebook that was renamed or deleted leaves its old module behind."""
    exported = set()
    for path in notebooks():
        found = re.search(r"#\s*\|\s*default_exp\s+(\S+)", "".join(map(source, cells(path))))
        if found:
            place = path.relative_to(REPOSITORY / "nbs").with_suffix("").as_posix()
            mirrored = MOVED.get(place, place.replace("/", "."))
            assert mirrored == found[1].replace("__", ""), f"{path} exports {found[1]}: the folders mirror each other"
            exported.add(found[1].removesuffix("__init__").rstrip("."))
    assert set(map(name_of, MODULES)) == exported


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"]) + "\n"


@pytest.mark.medium
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


@pytest.mark.medium
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


@pytest.mark.slow
def test_ids_of_tests_are_the_same_in_every_process(tmp_path: Path) -> None:
    """pytest-xdist refuses to start where an id holds a time, something random or an address in memory."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["--import-mode=importlib"]
    processes = []
    for name in ("first", "second"):
        one = subprocess.Popen(
            [*command, f"--basetemp={tmp_path / name}"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        processes.append(one)
        time.sleep(1.1)  # the next second, in which gzip writes another header
    first, second = (
        [line for line in one.communicate(timeout=300)[0].splitlines() if "::" in line] for one in processes
    )
    assert len(first) > 1000
    assert first == second
