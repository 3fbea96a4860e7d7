"""Names of folders and files, and values of parameters and records, that mean something elsewhere."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from slml.errors import JobError
from slml.runs.job import is_deferred
from slml.runs.record import record
from slml.runs.references import resolve_references
from slml.storage import expand
from slml.tables.ingest import default_table_name, ingest_files
from slml.workspace import Workspace


def test_a_file_is_found_by_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "taxi [1] %20#?é"
    folder.mkdir()
    for name in ("x[1].csv", "x1.csv", "a?.csv"):
        (folder / name).write_text("x,y\n1,2\n")
    assert expand(str(folder / "x[1].csv")) == [str(folder / "x[1].csv")]
    assert expand(str(folder / "x*.csv")) == [str(folder / "x1.csv"), str(folder / "x[1].csv")]
    assert default_table_name(str(folder / "x[1].csv")) == "x_1"
    workspace = Workspace(root=str(folder / "root"), project="test")
    assert ingest_files(str(folder / "x[1].csv"), "t", workspace).stored == 1
    assert (folder / "root" / "catalog.db").exists()


def test_a_value_that_looks_like_a_reference_is_text() -> None:
    assert not is_deferred("${HOME} ${a.b}")
    assert is_deferred("${20230301-101500-123-split-4f2a.split}")
    assert resolve_references("${source}", {"source": "${HOME}/x"}, {}) == "${HOME}/x"
    assert resolve_references("${HOME} ${ a.b }", {}, {}) == "${HOME} ${ a.b }"


def test_a_record_takes_numbers_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLML_RUN_FOLDER", str(tmp_path))
    values = {"big": 10**400, "nan": float("nan"), "counts": np.array([1, 2]), "day": date(2024, 3, 1)}
    record(outputs=values, metrics={"rows": np.uint64(2**64 - 1)})
    stored = json.loads((tmp_path / "outputs.json").read_text())
    assert stored["outputs"] == {"big": 10**400, "nan": None, "counts": [1, 2], "day": "2024-03-01"}
    for kinds in ({"metrics": {"rows": 10**400}}, {"outputs": {"rows": 10**5000}}):
        with pytest.raises(JobError, match="too large"):
            record(**kinds)
