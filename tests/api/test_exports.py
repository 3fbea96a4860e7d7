"""What packages offer: editors, type checkers and Python agree on it, and it costs nothing until it is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import slml

from support import REPOSITORY

PACKAGE = REPOSITORY / "slml"
LAZY = sorted(p for p in PACKAGE.rglob("__init__.py") if "lazy_exports(" in p.read_text())
NAMES = [f"slml.{p.parent.relative_to(PACKAGE)}".replace("/", ".").removesuffix("..") for p in LAZY]


def checked_imports(file: Path) -> dict[str, str]:
    """Name -> module, as the block under `if TYPE_CHECKING:` imports it."""
    tree = ast.parse(file.read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: node.module for node in imports for alias in node.names}


@pytest.mark.parametrize(("file", "name"), list(zip(LAZY, NAMES, strict=True)), ids=NAMES)
def test_type_checkers_and_python_see_the_same_names(file: Path, name: str) -> None:
    package = importlib.import_module(name)
    assert {n: f"{name}.{module}" for n, module in package.NAMES.items()} == checked_imports(file)
    for exported in package.NAMES:
        assert getattr(package, exported) is not None
        assert exported in dir(package)
        assert not (file.parent / f"{exported}.py").exists(), "once loaded, the module would hide the name"
        assert not (file.parent / exported).is_dir()
    with pytest.raises(AttributeError, match=name):
        getattr(package, "no_such" + "_name")


def test_every_package_says_what_it_offers() -> None:
    packages = {p.parent.relative_to(PACKAGE).parts[0] for p in PACKAGE.glob("*/*.py")}
    offered = {name.split(".")[1] for name in NAMES if name != "slml"}
    assert packages - offered == {"cli", "jobs", "taxi"} & packages, "those have no names, or load them at once"


def test_the_top_lists_its_names() -> None:
    assert set(slml.__all__) == set(slml.NAMES)
    assert {"ingest", "infer", "clean", "train", "sql", "run"} <= set(slml.__all__)


def test_no_package_loads_anything_heavy() -> None:
    code = f"import sys\nfor name in {NAMES}: __import__(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "boto3", "mlflow", "pandas", "pyarrow", "ibis", "pyiceberg", "duckdb", "pydantic"}
    assert not heavy & set(done.stdout.split())


def test_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
