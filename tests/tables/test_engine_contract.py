"""What every engine has to do, run against each of them."""

import datetime as dt
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import fsspec
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slml.errors import SettingsError, TableError
from slml.tables.catalog import Catalog
from slml.tables.engine import ENGINES, open_engine
from slml.tables.rowhash import row_hash
from slml.workspace import Workspace

MOMENT = dt.datetime(2023, 1, 31, 8, 30, 0, 250_000)
EVERY_TYPE = pa.table(
    {
        "small": pa.array([1, None, -1], pa.int32()),
        "long": [2**62, None, -(2**62)],
        "single": pa.array([0.5, None, -0.0], pa.float32()),
        "double": [float("nan"), None, 1e300],
        "yes": [True, None, False],
        "text": ["é", None, ""],
        "bytes": [b"\x00\xff", None, b""],
        "day": [MOMENT.date(), None, dt.date(1969, 12, 31)],
        "clock": pa.array([MOMENT.time(), None, dt.time(0)], pa.time64("us")),
        "moment": pa.array([MOMENT, None, dt.datetime(1960, 1, 1)], pa.timestamp("us")),
        "instant": pa.array([MOMENT, None, dt.datetime(1960, 1, 1)], pa.timestamp("us", "UTC")),
        "money": pa.array([Decimal("1.10"), None, Decimal("-2.00")], pa.decimal128(10, 2)),
        "stops": [[1, None], None, []],
        "point": [{"lat": 38.9, "lon": -77.0}, None, {"lat": None, "lon": 0.0}],
        "Fare ($)": [1.0, 2.0, 3.0],
        "a.b": [1, 2, 3],
    }
)


@pytest.fixture(params=ENGINES)
def workspace(request, tmp_path):
    return Workspace(root=str(tmp_path / "it's [here]=1"), project="test", engine=request.param, cores=2, memory="1GB")


@pytest.fixture
def catalog(workspace):
    return Catalog(workspace)


@pytest.fixture
def engine(workspace):
    with open_engine(workspace) as engine:
        yield engine


@pytest.fixture
def numbers(catalog):
    "Three commits in an order of their own, each of more than one row group."
    table = catalog.table("numbers")
    for start in (400_000, 0, 200_000):
        snapshot = table.append(pa.table({"n": np.arange(start, start + 200_000)}))
    return snapshot


ORDER = np.concatenate([np.arange(start, start + 200_000) for start in (400_000, 0, 200_000)])


def test_rows_come_back_in_the_order_written(engine, numbers):
    assert np.array_equal(engine.read(engine.table(numbers))["n"].to_numpy(), ORDER)
    assert np.array_equal(engine.batches(engine.table(numbers)).read_all()["n"].to_numpy(), ORDER)


def test_files_are_as_good_as_a_snapshot(engine, numbers):
    assert engine.read(engine.table(list(numbers.files[1:]))).num_rows == 400_000


UNION = """
import ibis, numpy as np, pyarrow as pa, sys
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.workspace import Workspace
workspace = Workspace(root=sys.argv[1], project="test", engine=sys.argv[2], cores=2, memory="1GB")
trips = pa.table({"id": np.arange(1_000_000) // 4 * 3, "text": pa.array(np.arange(1_000_000)).cast(pa.string())})
with open_engine(workspace) as engine:
    rows = engine.table(Catalog(workspace).table("trips").append(trips))
    even, odd = (rows.filter(rows.id % 2 == n) for n in (0, 1))
    both = (side.inner_join(side.select("id").distinct(), "id").select("id", "text") for side in (even, odd))
    batches = list(engine.batches(engine.with_row_hash(ibis.union(*both), ["id"])))
    print(sum(map(len, batches)), len({n for batch in batches for n in batch["text"].to_pylist()}))
"""


def test_a_stream_of_two_joins_one_after_the_other_begins(workspace):
    "A process of its own: where it hangs, no signal reaches it."
    call = [sys.executable, "-c", UNION, workspace.root, workspace.engine]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1000000", "1000000"], done.stderr


def test_what_a_killed_process_spilled_is_removed_and_nothing_else(workspace):
    scratch = Path(workspace.root, "scratch")
    call = [sys.executable, "-c", KILLED, workspace.root, workspace.engine]
    subprocess.run(call, capture_output=True, text=True, timeout=60)
    old_folders = list(scratch.iterdir())
    assert old_folders
    with open_engine(workspace):
        (used,) = set(scratch.iterdir()) - set(old_folders)
        for folder in (*old_folders, used):
            os.utime(folder, (0, 0))
        open_engine(workspace).close()
        assert list(scratch.iterdir()) == [used]
    assert list(scratch.iterdir()) == []


KILLED = """
import os, signal, sys
from slml.tables.engine import open_engine
from slml.workspace import Workspace
engine = open_engine(Workspace(root=sys.argv[1], engine=sys.argv[2], cores=2, memory="1GB"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_ordered_result_is_ordered_in_its_batches(engine, numbers):
    rows = engine.table(numbers)
    batches = list(engine.batches(rows.order_by(rows.n.desc()), rows=50_000))
    assert max(map(len, batches)) <= 50_000
    assert np.array_equal(np.concatenate([b["n"].to_numpy() for b in batches]), np.arange(600_000)[::-1])


def test_two_streams_and_a_question_at_once(engine, numbers):
    rows = engine.table(numbers)
    one, other = engine.batches(rows, 10_000), engine.batches(rows.filter(rows.n < 300_000), 10_000)
    first_rows = [len(one.read_next_batch()), len(other.read_next_batch())]
    assert engine.read(rows.aggregate(n=rows.count())).to_pydict() == {"n": [600_000]}
    assert first_rows[0] + sum(map(len, one)) == 600_000
    assert first_rows[1] + sum(map(len, other)) == 300_000


def test_every_type_comes_back_as_it_was_stored(engine, catalog):
    snapshot = catalog.table("types").append(EVERY_TYPE)
    assert snapshot.schema.equals(EVERY_TYPE.schema)
    rows = engine.read(engine.table(snapshot))
    assert rows.column_names == EVERY_TYPE.column_names
    for name in EVERY_TYPE.column_names:
        assert rows[name].type == EVERY_TYPE[name].type, name
        assert str(rows[name].to_pylist()) == str(EVERY_TYPE[name].to_pylist()), name


@pytest.mark.parametrize("columns", [[name] for name in EVERY_TYPE.column_names] + [EVERY_TYPE.column_names], ids=str)
def test_the_row_hash_is_that_of_the_function(engine, catalog, columns):
    hashed = engine.with_row_hash(engine.table(catalog.table("types").append(EVERY_TYPE)), columns)
    assert hashed.row_hash.type().is_int64()
    assert engine.read(hashed)["row_hash"].combine_chunks().equals(row_hash([EVERY_TYPE[name] for name in columns]))


def test_the_row_hash_of_many_rows_in_its_order(engine, catalog, numbers):
    rows = engine.with_row_hash(engine.table(numbers), ["n"]).order_by("row_hash")
    stored = catalog.table("ordered").replace(engine.batches(rows))
    read = engine.read(engine.table(stored))
    assert read["row_hash"].to_pylist() == sorted(row_hash([pa.array(np.arange(600_000))]).to_pylist())
    assert row_hash([read["n"]]).equals(read["row_hash"].combine_chunks())


def test_expressions_combine_tables_and_memory(engine, numbers, catalog):
    names = catalog.table("names").append(pa.table({"n": [1, 2, 9], "name": ["one", "two", "nine"]}))
    some = ibis.memtable(pa.table({"n": [2, 9]}))
    joined = engine.table(numbers).inner_join(engine.table(names), "n").semi_join(some, "n").order_by("n")
    assert engine.read(joined)["name"].to_pylist() == ["two", "nine"]


def test_an_empty_snapshot_has_its_columns(engine, catalog):
    empty = catalog.table("empty").append(EVERY_TYPE.slice(0, 0))
    assert engine.read(engine.table(empty)).schema.equals(EVERY_TYPE.schema)
    assert engine.read(engine.with_row_hash(engine.table(empty), ["text"])).num_rows == 0


def test_sql_sees_the_snapshots_it_is_given(engine, catalog):
    table = catalog.table("trips")
    first = table.append(pa.table({"fare": [5.0]}))
    second = table.append(pa.table({"fare": [7.0]}))
    query = "WITH dear AS (SELECT max(fare) AS fare FROM trips)\nSELECT fare FROM dear; "
    earlier, later = (engine.sql(query, {"trips": snapshot}) for snapshot in (first, second))
    assert engine.read(earlier)["fare"].to_pylist() == [5.0]
    assert engine.read(later)["fare"].to_pylist() == [7.0]
    assert engine.read(later.mutate(double=later.fare * 2))["double"].to_pylist() == [14.0]


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("SELECT fare FROM trip", "did you mean 'trips'?"),
        ("SELECT fares FROM trips", "fare"),
        ("SELEKT 1", "syntax"),
        ("DROP TABLE trips", "syntax"),
        ("SELECT 1; SELECT 2", "syntax"),
    ],
)
def test_a_bad_query_is_told_in_one_message(engine, catalog, query, hint):
    snapshot = catalog.table("trips").append(pa.table({"fare": [5.0]}))
    with pytest.raises(TableError) as caught:
        engine.read(engine.sql(query, {"trips": snapshot}))
    assert hint in str(caught.value)
    assert "LINE" not in str(caught.value)


def test_a_value_that_fails_in_the_middle_of_a_stream(engine, catalog):
    texts = catalog.table("texts").append(pa.table({"text": [str(i) for i in range(300_000)] + ["x"]}))
    rows = engine.table(texts)
    target = catalog.table("target")
    before = target.append(pa.table({"n": [1]}))
    with pytest.raises(TableError, match="Could not convert"):
        target.replace(engine.batches(rows.select(n=rows.text.cast("int64"))))
    assert target.snapshot() == before


def test_a_column_to_hash_that_is_not_there(engine, numbers):
    with pytest.raises(TableError, match="no column 'm'"):
        engine.with_row_hash(engine.table(numbers), ["m"])


@pytest.mark.parametrize("harm", ["removed", "emptied", "torn"])
def test_a_missing_or_damaged_file_is_named(engine, numbers, harm):
    rows, path = engine.table(numbers), Path(numbers.files[1])
    if harm == "removed":
        path.unlink()
    elif harm == "emptied":
        path.write_bytes(b"")
    else:
        content = path.read_bytes()
        path.write_bytes(content[:5_000] + bytes(20_000) + content[25_000:])
    with pytest.raises(TableError) as caught:
        engine.read(rows.aggregate(total=rows.n.sum()))
    assert str(path) in str(caught.value)


def test_an_unknown_engine_is_a_setting(workspace):
    with pytest.raises(SettingsError, match=r"did you mean 'duckdb'\?"):
        open_engine(workspace.model_copy(update={"engine": "duckbd"}))


def test_nothing_is_left_in_the_scratch_folder(workspace):
    open_engine(workspace).close()
    assert list(Path(workspace.root, "scratch").iterdir()) == []


def test_files_elsewhere_are_read_through_fsspec(engine):
    with fsspec.open("memory://bucket/trips.parquet", "wb") as file:
        pq.write_table(pa.table({"fare": [5.0, 7.0]}), file)
    rows = engine.table(["memory://bucket/trips.parquet"])
    assert engine.read(engine.table(["memory://bucket/trips.parquet"]).union(rows))["fare"].to_pylist() == [5, 7, 5, 7]


def test_ctrl_c_ends_a_query_as_ctrl_c(engine, numbers):
    rows = engine.table(numbers)
    endless = rows.cross_join(rows.rename(m="n")).aggregate(total=lambda t: (t.n * t.m % 7).sum())
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        engine.read(endless)
    assert engine.read(rows.limit(1)).num_rows == 1
