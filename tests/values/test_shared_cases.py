"""The files that were handed over: each is read right, value by value, or refused in one clear line.

`shared_cases.json` says what is right: the rows, the types and first values of columns, how many values are missing,
words of the note that tells what was decided; or the words of the refusal.
"""

import json
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from slml.errors import SlmlError
from slml.quality.infer import infer
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

from support import REPOSITORY

CASES = REPOSITORY.parent / "shared/cases/values"
EXPECTED = json.loads(Path(__file__).with_name("shared_cases.json").read_text())
ENDS_A_PROCESS = {"plainfooter.parquet"}  # read in a process of its own
CONTRACT_TYPES = {  # of a stored type; text may hold times that a contract can read
    "int64": ("int",), "double": ("float", "int"), "string": ("text", "timestamp", "date"), "bool": ("bool",),
    "timestamp": ("timestamp",), "date": ("date",),
}  # fmt: skip
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="the handed files are not there")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(root=str(tmp_path_factory.mktemp("shared")), project="cases", cores=2)


def table_name(file: str) -> str:
    return file.replace(".", "_")


def as_json(value: object) -> object:
    return value.isoformat() if isinstance(value, date | datetime) else value


def same(value: object, right: object) -> bool:
    if isinstance(right, float) and isinstance(value, float):
        return repr(value) == repr(right)
    return as_json(value) == right


def test_each_file_has_an_expectation() -> None:
    assert {f.name for f in CASES.iterdir()} - {"README.md"} == EXPECTED.keys()


@pytest.mark.parametrize("file", sorted(n for n in EXPECTED if n not in ENDS_A_PROCESS))
def test_a_file_is_read_right_or_refused_in_a_clear_line(file: str, workspace: Workspace) -> None:
    right = EXPECTED[file]
    if "refused" in right:
        with pytest.raises(SlmlError) as refusal:
            ingest_files(str(CASES / file), table_name(file), workspace)
        assert right["refused"] in str(refusal.value)
        assert len(refusal.value.problem.splitlines()) == 1
        return
    ingest_files(str(CASES / file), table_name(file), workspace)
    snapshot = Catalog(workspace).snapshot(table_name(file))
    rows = ds.dataset(list(snapshot.files), format="parquet").to_table()
    assert (snapshot.rows, rows.num_columns) == (right["rows"], right["width"])
    for name, (kind, *values) in right["columns"].items():
        column = rows[name]
        assert str(column.type) == kind, f"{name}: {column.type}, not {kind}"
        assert all(map(same, column.slice(0, len(values)).to_pylist(), values)), f"{name}: {column[:3]}, not {values}"
        assert column.null_count == right.get("nulls", {}).get(name, 0), name
    assert right.get("note", "") in "\n".join(snapshot.notes)


@pytest.mark.parametrize("file", sorted(ENDS_A_PROCESS))
def test_a_file_that_may_end_the_process_does_not(file: str, tmp_path: Path) -> None:
    code = "import sys, slml; slml.ingest(*sys.argv[1:3], workspace=slml.Workspace(root=sys.argv[3], project='p'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(CASES / file), "t", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr[-300:]
    assert EXPECTED[file]["refused"] in done.stderr.splitlines()[-1] + done.stderr.splitlines()[-3]


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(n for n in EXPECTED if "refused" not in EXPECTED[n]))
def test_a_contract_is_proposed_or_refused_in_a_clear_line(file: str, workspace: Workspace) -> None:
    catalog = Catalog(workspace)
    if table_name(file) not in catalog.tables():
        ingest_files(str(CASES / file), table_name(file), workspace)
    snapshot = catalog.snapshot(table_name(file))
    target = [f.name for f in snapshot.schema if not pa.types.is_null(f.type)][-1]
    contract = refusal = None
    try:
        contract = infer(snapshot, target=target, workspace=workspace)
    except SlmlError as error:
        refusal = error
    if refusal:
        assert len(refusal.problem.splitlines()) == 1
        assert refusal.expected or refusal.todo
        return
    assert contract.target == target
    declared = {c.name: c.type for c in contract.columns}
    for name, (kind, *_values) in EXPECTED[file]["columns"].items():
        wanted = next(types for beginning, types in CONTRACT_TYPES.items() if kind.startswith(beginning))
        assert declared.get(name, wanted[0]) in wanted, f"{name}: {declared[name]}, not {kind}"
