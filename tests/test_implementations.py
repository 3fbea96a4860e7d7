"""Engines and runners of other packages: found by their entry points, refused where two have one name."""

import pyarrow as pa
import pytest

from slml.errors import SettingsError
from slml.implementations import find_implementations, load_implementation
from slml.tables.catalog import Catalog
from slml.tables.engine import ENGINES, open_engine
from slml.workspace import Workspace

from support.packages import install_package

MODULE = """
from slml.tables.duckdb import DuckDBEngine, open_duckdb

class FastEngine(DuckDBEngine):
    name = "fast"
    def __init__(self, workspace):
        super().__init__("1GB", 1, workspace.uri("scratch"))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """What pip does with a package: its module and the metadata beside it, on the path."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(package: str, *entries: str, module: str = MODULE) -> None:
        install_package(site, package, "slml.engines", entries, module)

    return install


def test_an_engine_of_another_package_answers_queries(install, tmp_path):
    install("fast-engines", "fast = fast_engines:FastEngine")
    workspace = Workspace(root=str(tmp_path / "root"), project="test", engine="fast")
    trips = Catalog(workspace).table("trips").append(pa.table({"fare": [5.0, 7.0]}))
    with open_engine(workspace) as engine:
        assert engine.name == "fast"
        assert engine.read(engine.table(trips)).num_rows == 2


def test_an_unknown_name_lists_those_of_all_packages(install, tmp_path):
    install("fast-engines", "fast = fast_engines:FastEngine")
    with pytest.raises(SettingsError, match="one of: duckdb, fast") as caught:
        open_engine(Workspace(root=str(tmp_path), engine="fats"))
    assert caught.value.todo == "did you mean 'fast'?"


def test_a_name_of_slml_is_not_taken_over(install, tmp_path):
    install("fast-engines", "duckdb = fast_engines:FastEngine")
    with pytest.raises(SettingsError, match="more than once") as caught:
        open_engine(Workspace(root=str(tmp_path)))
    assert "slml.tables.duckdb:open_duckdb (slml)" in caught.value.came
    assert "fast_engines:FastEngine (fast-engines)" in caught.value.came


def test_two_packages_with_one_name_are_refused_and_the_others_work(install, tmp_path):
    install("fast-engines", "fast = fast_engines:FastEngine")
    install("quick-engines", "fast = quick_engines:FastEngine")
    with pytest.raises(SettingsError, match="quick-engines"):
        load_implementation("engine", "fast", ENGINES)
    open_engine(Workspace(root=str(tmp_path / "root"), project="test")).close()


@pytest.mark.parametrize("value", ["broken_engines:Nothing", "broken_engines.nowhere:FastEngine"])
def test_a_broken_package_is_named(install, value):
    install("broken-engines", f"broken = {value}", module="")
    with pytest.raises(SettingsError, match=r"broken-engines") as caught:
        load_implementation("engine", "broken", ENGINES)
    assert value in caught.value.expected


def test_nothing_is_imported_by_looking(install):
    install("broken-engines", "broken = broken_engines:FastEngine", module="raise RuntimeError")
    assert [*find_implementations("engine", ENGINES)] == ["duckdb", "broken"]
    assert [*find_implementations("runner", {})] == []


def test_whatever_a_package_raises_is_one_message(install, tmp_path):
    install("raising-engines", "raising = raising_engines:Engine", module='raise RuntimeError("no licence")')
    with pytest.raises(SettingsError, match="'raising' cannot be imported") as caught:
        open_engine(Workspace(root=str(tmp_path), engine="raising"))
    assert caught.value.came == "RuntimeError: no licence"
