"""Tables change in whole steps, whatever happens in between."""

import datetime as dt
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.expressions import IsNull

from slml.errors import SettingsError, StorageError, TableError
from slml.tables import files as data_files
from slml.tables.catalog import Catalog
from slml.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=str(tmp_path / "root"), project="test")


@pytest.fixture
def catalog(workspace):
    return Catalog(workspace)


def read(snapshot):
    return pa.concat_tables([pq.read_table(pa.OSFile(file)) for file in snapshot.files])


def stored_files(workspace, table):
    return {str(p) for p in Path(workspace.root, "warehouse", "test", table).rglob("*.parquet")}


def numbers(*values):
    return pa.table({"n": pa.array(values, pa.int64())})


def reader(table, rows=1000):
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=rows))


def breaking(table, error):
    def batches():
        yield from table.to_batches(max_chunksize=10_000)
        raise error

    return pa.RecordBatchReader.from_batches(table.schema, batches())


def test_each_version_stays_readable(catalog):
    table = catalog.table("t")
    one = table.append(numbers(1, 2), {"source": "a.csv"})
    two = table.append(reader(numbers(3)))
    three = table.replace(reader(numbers(9)))
    assert [read(s)["n"].to_pylist() for s in (one, two, three)] == [[1, 2], [1, 2, 3], [9]]
    assert [s.ref for s in table.history()] == [one.ref, two.ref, three.ref]
    assert catalog.snapshot(one.ref) == one
    assert catalog.snapshot("t") == three
    assert one.properties == {"source": "a.csv"}
    assert one.at <= dt.datetime.now(dt.UTC)


def test_rows_stay_in_order_over_groups_and_files(catalog, monkeypatch):
    monkeypatch.setattr(data_files, "FILE_BYTES", 1_000_000)
    values = np.random.default_rng(0).integers(0, 2**62, 500_000)
    snapshot = catalog.table("t").append(reader(pa.table({"n": values}), 33_333))
    assert len(snapshot.files) > 1
    assert np.array_equal(read(snapshot)["n"].to_numpy(), values)


def test_a_range_of_row_hashes_touches_few_row_groups(catalog):
    hashes = np.sort(np.random.default_rng(0).integers(0, 2**63, 600_000))
    snapshot = catalog.table("t").append(pa.table({"row_hash": hashes}))
    footer = pq.read_metadata(snapshot.files[0])
    groups = [footer.row_group(i).column(0).statistics for i in range(footer.num_row_groups)]
    assert len(groups) == 5
    assert all(one.max <= following.min for one, following in itertools.pairwise(groups))
    assert footer.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize(
    "error", [ValueError("torn"), KeyboardInterrupt(), OSError(5, "the source, not the disk")], ids=repr
)
@pytest.mark.parametrize("how", ["append", "replace"])
def test_a_write_that_breaks_off_changes_nothing(catalog, workspace, error, how):
    table = catalog.table("t")
    before = table.append(numbers(1))
    files_before = stored_files(workspace, "t")
    with pytest.raises(type(error)) as caught:
        getattr(table, how)(breaking(numbers(*range(300_000)), error))
    assert caught.value is error
    assert table.snapshot() == before
    assert stored_files(workspace, "t") == files_before


def test_a_first_write_that_breaks_off_leaves_no_table(catalog, workspace):
    with pytest.raises(ValueError, match="torn"):
        catalog.table("t").append(breaking(numbers(*range(300_000)), ValueError("torn")))
    assert catalog.tables() == []
    assert not catalog.table("t").exists
    assert not stored_files(workspace, "t")
    assert catalog.table("t").append(numbers(1)).rows == 1


SMALL_DISK = """
import resource, signal, sys
import numpy as np, pyarrow as pa
from slml.errors import StorageError
from slml.tables.catalog import Catalog
from slml.workspace import Workspace
table = Catalog(Workspace(root=sys.argv[1], project="test")).table("t")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
try:
    table.append(pa.table({"n": np.random.default_rng(0).integers(0, 2**62, 1_000_000)}))
except StorageError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_changes_nothing(catalog, workspace):
    before = catalog.table("t").append(numbers(1))
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, workspace.root], capture_output=True, text=True, check=True, timeout=60
    )
    assert "cannot be written" in done.stdout
    assert "as it was before" in done.stdout
    assert done.stderr == ""
    assert catalog.table("t").snapshot() == before
    assert stored_files(workspace, "t") == set(before.files)


ENDLESS = """
import sys
import numpy as np, pyarrow as pa
from slml.tables.catalog import Catalog
from slml.workspace import Workspace
def batches():
    while True:
        yield pa.record_batch({"n": np.arange(100_000)})
reader = pa.RecordBatchReader.from_batches(pa.schema([("n", pa.int64())]), batches())
Catalog(Workspace(root=sys.argv[1], project="test")).table("t").replace(reader)
"""


def test_a_write_that_is_killed_changes_nothing(catalog, workspace):
    table = catalog.table("t")
    before = table.append(numbers(1))
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, workspace.root])
    deadline = time.monotonic() + 60
    while len(stored_files(workspace, "t")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert table.snapshot() == before
    (orphan,) = stored_files(workspace, "t") - set(before.files)
    after = table.append(numbers(2))
    table.expire(keep=5)
    assert Path(orphan).exists(), "a file of today may belong to a write that goes on"
    os.utime(orphan, (0, 0))
    assert table.expire(keep=5) == []
    assert stored_files(workspace, "t") == set(after.files)


def write_numbers(root, start, together):
    table = Catalog(Workspace(root=root, project="test")).table("t")
    together.wait()
    for i in range(start, start + 5):
        table.append(numbers(i))


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "slml.tables.catalog"])  # imported once, and by no thread of these tests
    together = context.Barrier(2)
    root = str(tmp_path / "root")  # both create the workspace, the catalog, the namespace and the table
    writers = [context.Process(target=write_numbers, args=(root, start, together)) for start in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    table = Catalog(Workspace(root=root, project="test")).table("t")
    values = read(table.snapshot())["n"].to_pylist()
    assert sorted(values) == [*range(5), *range(100, 105)]
    assert [v for v in values if v < 100] == [*range(5)]
    assert len(table.history()) == 10


def test_a_replacement_replaces_what_came_in_between(catalog):
    table = catalog.table("t")
    table.append(numbers(1))

    def batches():
        table.append(numbers(2))  # while the replacement is being written
        yield from numbers(3).to_batches()

    snapshot = table.replace(pa.RecordBatchReader.from_batches(numbers().schema, batches()))
    assert read(snapshot)["n"].to_pylist() == [3]


def test_an_append_keeps_what_came_in_between(catalog):
    table = catalog.table("t")

    def batches():
        table.append(numbers(1))  # it even creates the table
        yield from numbers(2).to_batches()

    snapshot = table.append(pa.RecordBatchReader.from_batches(numbers().schema, batches()))
    assert read(snapshot)["n"].to_pylist() == [1, 2]


def test_columns_that_change_during_a_write_stop_it(catalog, workspace):
    table = catalog.table("t")
    table.append(numbers(1))

    def batches():
        table.replace(pa.table({"m": [1.5], "n": [1]}))
        yield from numbers(2).to_batches()

    with pytest.raises(TableError, match="columns"):
        table.append(pa.RecordBatchReader.from_batches(numbers().schema, batches()))
    assert read(table.snapshot()).to_pydict() == {"m": [1.5], "n": [1]}
    assert len(stored_files(workspace, "t")) == 2


def test_a_replacement_may_have_other_columns_and_be_taken_back(catalog):
    table = catalog.table("t")
    old = table.append(pa.table({"a": [1], "b": ["x"]}))
    new = table.replace(pa.table({"b": [2.5], "c": [[1]], "a.x": [True]}))
    assert new.schema.names == ["b", "c", "a.x"]
    assert read(new).to_pydict() == {"b": [2.5], "c": [[1]], "a.x": [True]}
    assert table._address.load().scan().to_arrow().to_pydict() == {"b": [2.5], "c": [[1]], "a.x": [True]}
    assert catalog.snapshot(old.ref).schema.names == ["a", "b"]
    table.rollback(old.id)
    assert read(table.append(pa.table({"b": ["y"], "a": [2]}))).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    assert table._address.load().scan().to_arrow().sort_by("a").to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("new_rows", "message"),
    [
        ({"n": [1], "m": [1]}, "m"),
        ({"m": [1]}, "m"),
        ({"n": ["1"]}, "n: string"),
        ({"n": [1.5]}, "n: double"),
        ({"n": [1], "N": [1]}, "upper and lower case"),
    ],
)
def test_rows_that_do_not_fit_are_refused(catalog, new_rows, message):
    table = catalog.table("t")
    before = table.append(numbers(1))
    with pytest.raises(TableError) as caught:
        table.append(pa.table(new_rows))
    assert message in str(caught.value)
    assert table.snapshot() == before


def test_narrower_and_empty_columns_fit(catalog):
    table = catalog.table("t")
    table.append(pa.table({"n": [1], "x": [1.5]}))
    snapshot = table.append(pa.table({"x": pa.array([2], pa.int8()), "n": pa.nulls(1)}))
    assert read(snapshot).to_pydict() == {"n": [1, None], "x": [1.5, 2.0]}


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        (pa.array([1, 2**63 - 1], pa.uint64()), "int64"),
        (pa.array([0, 2**32 - 1], pa.uint32()), "int64"),
        (pa.array([1, 2], pa.uint8()), "int32"),
        (pa.array([0.5, None], pa.float16()), "float"),
        (pa.array([dt.datetime(2023, 1, 31), None], pa.timestamp("ns")), "timestamp[us]"),
        (pa.array([1, None], pa.timestamp("s", "Europe/Paris")), "timestamp[us, tz=UTC]"),
        (pa.array([1, None], pa.time32("s")), "time64[us]"),
        (pa.array([86_400_000, None], pa.date64()), "date32[day]"),
        (pa.array(["a", None]).dictionary_encode(), "string"),
        (pa.array(["a", None], pa.large_string()), "string"),
        (pa.nulls(2), "string"),
        (pa.array([[1], None], pa.large_list(pa.uint16())), "list<element: int32>"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_types_that_iceberg_lacks_are_stored_without_loss(catalog, column, stored):
    snapshot = catalog.table("t").append(pa.table({"c": column}))
    assert str(snapshot.schema.field("c").type) in (stored, stored.replace("element", "item"))
    assert read(snapshot)["c"].to_pylist() == column.to_pylist()


@pytest.mark.parametrize(
    "column",
    [pa.array([2**63], pa.uint64()), pa.array([1], pa.timestamp("ns")), pa.array([1], pa.duration("s"))],
    ids=str,
)
def test_a_value_that_would_change_is_refused(catalog, column):
    with pytest.raises(TableError, match="'c'"):
        catalog.table("t").append(pa.table({"c": column}))
    assert catalog.tables() == []


def test_expired_versions_take_their_files_along(catalog, workspace):
    table = catalog.table("t")
    one, two = table.append(numbers(1)), table.append(numbers(2))
    three = table.replace(numbers(3))
    four = table.append(numbers(4))
    assert table.expire(keep=2) == [one.id, two.id]
    assert stored_files(workspace, "t") == set(four.files)
    assert [s.id for s in table.history()] == [three.id, four.id]
    assert read(table.snapshot())["n"].to_pylist() == [3, 4]
    with pytest.raises(TableError, match="no snapshot"):
        catalog.snapshot(one.ref)


def test_the_current_version_survives_when_it_is_old(catalog):
    table = catalog.table("t")
    one, two, three = (table.append(numbers(i)) for i in range(3))
    table.rollback(one.id)
    assert table.expire(keep=1) == [two.id]
    assert read(table.snapshot())["n"].to_pylist() == [0]
    assert read(table.rollback(three.id))["n"].to_pylist() == [0, 1, 2]


def test_names_that_are_not_there(catalog):
    catalog.table("trips").append(numbers(1))
    with pytest.raises(TableError, match=r"did you mean 'trips'\?"):
        catalog.snapshot("trip")
    with pytest.raises(TableError, match="no snapshot 7"):
        catalog.snapshot("trips@7")
    for ref in ("trips@", "trips@x", "a b", "", "../trips", "1st"):
        with pytest.raises(TableError):
            catalog.snapshot(ref)
    with pytest.raises(TableError, match="no table 'other'"):
        catalog.drop("other")


def test_projects_do_not_see_each_other(workspace, catalog):
    catalog.table("t").append(numbers(1))
    other = Catalog(workspace.model_copy(update={"project": "other"}))
    assert other.tables() == []
    other.table("t").append(numbers(2))
    catalog.drop("t")
    assert read(other.snapshot("t"))["n"].to_pylist() == [2]


def test_a_dropped_name_can_be_used_again(catalog, workspace):
    catalog.table("t").append(numbers(1))
    catalog.drop("t")
    assert not stored_files(workspace, "t")
    assert read(catalog.table("t").append(pa.table({"x": ["a"]}))).to_pydict() == {"x": ["a"]}


def test_lost_records_are_told_and_the_table_can_be_dropped(catalog):
    table = catalog.table("t")
    table.append(numbers(1))
    for record in Path(table.location, "metadata").glob("*.avro"):
        record.unlink()
    with pytest.raises(TableError, match="missing or damaged"):
        table.snapshot()
    catalog.drop("t")
    assert catalog.tables() == []


def test_a_catalog_that_cannot_be_used(tmp_path):
    (tmp_path / "catalog.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(TableError, match="catalog"):
        Catalog(Workspace(root=str(tmp_path), project="test"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Catalog(Workspace(root=str(tmp_path / "file" / "root"), project="test"))
    with pytest.raises(SettingsError, match="catalog"):
        Catalog(Workspace(root="s3://bucket/root", project="test"))


def test_a_root_that_is_a_uri(tmp_path):
    uri = f"file://{tmp_path}/root"
    catalog = Catalog(Workspace(root=uri, project="test", catalog_uri=f"sqlite:///{tmp_path}/catalog.db"))
    table = catalog.table("t")
    one = table.append(numbers(1))
    table.replace(numbers(2))
    assert one.files[0].startswith(uri)
    assert table.expire(keep=1) == [one.id]
    assert len(list(Path(tmp_path, "root").rglob("*.parquet"))) == 1
    catalog.drop("t")
    assert not list(Path(tmp_path, "root").rglob("*.parquet"))


def test_other_readers_of_iceberg_see_the_same(catalog):
    rows = pa.table({"trip id": [1, 2, None], "a.b": ["x", None, "z"], "stops": [[1, 2], [], None]})
    table = catalog.table("t")
    table.append(rows)
    assert table._address.load().scan().to_arrow().to_pydict() == rows.to_pydict()
    assert table._address.load().scan(row_filter=IsNull("trip id")).to_arrow().num_rows == 1
