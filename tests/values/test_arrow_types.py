"""Each Arrow type is read with the values of the file, or refused by the name of column and type."""

import datetime as dt
import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

from slml.errors import IngestError
from slml.tables.catalog import Catalog
from slml.tables.containers import File
from slml.tables.engine import open_engine
from slml.tables.ingest import ingest_files
from slml.tables.sources import open_source
from slml.tables.types import ColumnType
from slml.workspace import Workspace

NOON = dt.datetime(2024, 2, 29, 12, 30, 15, 250_000)
FAR = dt.datetime(9999, 12, 31)
KEY = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=str(tmp_path / "workspace"))


def _write(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".orc":
        orc.write_table(table, path)
    else:
        new = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table)


def _stored(workspace, table="t"):
    with open_engine(workspace) as engine:
        return engine.read(engine.table(Catalog(workspace).table(table).snapshot())).to_pydict()


CASES = {
    "uint64": (pa.array([1, None, 2**63 - 1], pa.uint64()), [1, None, 2**63 - 1]),
    "uint64 beyond": (pa.array([1, 2**64 - 1], pa.uint64()), ["1", "18446744073709551615"]),
    "int8": (pa.array([-128, 127], pa.int8()), [-128, 127]),
    "half": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "money": (pa.array([Decimal("0.57"), Decimal("16.58")], pa.decimal128(9, 2)), [0.57, 16.58]),
    "decimal256": (pa.array([Decimal("0.25"), None], pa.decimal256(60, 10)), [0.25, None]),
    "decimal id": (pa.array([Decimal(9007199254740993)], pa.decimal128(38, 0)), [9007199254740993]),
    "decimal id beyond": (pa.array([Decimal(10**22 + 1)], pa.decimal128(38, 0)), ["10000000000000000000001"]),
    "decimal32": (pa.array([Decimal("1.50")], pa.decimal32(5, 2)), [1.5]),
    "bool": (pa.array([True, None, False]), [True, None, False]),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8())), [True, False, None]),
    "dictionary": (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
    "dictionary of numbers": (pa.array([7, 8, 7]).dictionary_encode(), [7, 8, 7]),
    "run ends": (pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]), ["a", "a", "b"]),
    "large text": (pa.array(["x", None], pa.large_string()), ["x", None]),
    "text view": (pa.array(["x", None], pa.string_view()), ["x", None]),
    "bytes that are text": (pa.array([b"taxi", "é".encode()]), ["taxi", "é"]),
    "bytes": (pa.array([b"taxi", b"\xff\x00"]), ["74617869", "ff00"]),
    "uuid": (pa.array([KEY.bytes, None], pa.uuid()), [str(KEY), None]),
    "date32": (pa.array([dt.date(2024, 2, 29), None]), [dt.date(2024, 2, 29), None]),
    "date64": (pa.array([dt.date(2024, 2, 29)], pa.date64()), [dt.date(2024, 2, 29)]),
    "seconds": (pa.array([NOON.replace(microsecond=0), FAR], pa.timestamp("s")), [NOON.replace(microsecond=0), FAR]),
    "milliseconds": (pa.array([NOON, FAR], pa.timestamp("ms")), [NOON, FAR]),
    "nanoseconds": (pa.array([1_709_209_815_250_000_001], pa.timestamp("ns")), [NOON]),
    "duration": (pa.array([dt.timedelta(minutes=1.5), None]), [90.0, None]),
    "duration ns": (pa.array([1_500_000_000], pa.duration("ns")), [1.5]),
    "time": (pa.array([dt.time(7, 30), dt.time(23, 59, 59, 500_000)]), ["07:30:00", "23:59:59.5"]),
    "time32": (pa.array([dt.time(7, 30)], pa.time32("ms")), ["07:30:00"]),
    "list": (pa.array([[1, 2], None, []]), ["[1,2]", None, "[]"]),
    "struct": (pa.array([{"lat": 1.5, "ids": [1]}]), ['{"lat":1.5,"ids":[1]}']),
    "map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), ['{"a":1}']),
    "null": (pa.nulls(2), [None, None]),
}
ORC = ("int8", "money", "bool", "large text", "date32", "list", "bytes", "milliseconds")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows", "orc"])
def test_every_type(tmp_path, ending):
    for at, (name, (array, expected)) in enumerate(CASES.items()):
        table, path = pa.table({"id": range(len(array)), "x": array}), tmp_path / f"case{at}.{ending}"
        if ending == "orc" and name not in ORC:
            continue
        if ending == "orc" and name == "milliseconds":
            table, expected = table.slice(0, 1), expected[:1]  # ORC's reader has nanoseconds, which end in 2262
        try:
            _write(table, path)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            if ending != "parquet":  # which has not every type
                raise
            continue
        source = open_source(File(str(path)))
        (chunk,) = source.chunks(["x"])
        assert chunk.rows["x"].to_pylist() == expected, name
        assert not chunk.rejected, name
        assert chunk.rows["x"].type == (source.types["x"] or ColumnType()).arrow, name


def test_types_together(tmp_path, workspace):
    columns = {name: array for name, (array, _) in CASES.items() if len(array) == 2}
    _write(pa.table(columns), tmp_path / "t.arrow")
    assert ingest_files(str(tmp_path / "t.arrow"), "t", workspace).stored == 2
    assert _stored(workspace) == {name: CASES[name][1] for name in columns}


def test_instants(tmp_path, workspace):
    moment = pa.array([dt.datetime(2024, 7, 1, 12, tzinfo=dt.UTC), None], pa.timestamp("ms", "Europe/Berlin"))
    _write(pa.table({"x": moment}), tmp_path / "t.parquet")
    ingest_files(str(tmp_path / "t.parquet"), "t", workspace)
    (value, missing) = _stored(workspace)["x"]
    assert value.replace(tzinfo=None) == dt.datetime(2024, 7, 1, 12)
    assert missing is None


@pytest.mark.parametrize(
    ("column", "type"),
    [
        (pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]), "union"),
        (pa.array([pa.MonthDayNano([1, 2, 3])] * 2), "month_day_nano_interval"),
        (pa.array([{}, {}], pa.struct([])), "struct<>"),
        (pa.array([[Decimal("1.5")]] * 2, pa.list_(pa.decimal256(60, 2))), "decimal256"),
    ],
)
def test_refused_types(tmp_path, workspace, column, type):
    _write(pa.table({"id": [1, 2], "odd one": column}), tmp_path / "t.arrow")
    with pytest.raises(IngestError, match=f"(?s)t.arrow: the column 'odd one'.*{type}"):
        ingest_files(str(tmp_path / "t.arrow"), "t", workspace)
    assert Catalog(workspace).tables() == []


def test_lossy_conversions_are_noted(tmp_path, workspace):
    table = pa.table(
        {
            "amount": pa.array([Decimal("12345678901234567890.12"), Decimal("1.5")], pa.decimal128(38, 2)),
            "at": pa.array([1, 2_000], pa.timestamp("ns")),
            "took": pa.array([1, 2], pa.duration("s")),
            "hash": pa.array([2**63, 1], pa.uint64()),
        }
    )
    _write(table, tmp_path / "t.arrow")
    notes = {note.column: note for note in ingest_files(str(tmp_path / "t.arrow"), "t", workspace).notes}
    assert (notes["amount"].occurrences, notes["amount"].example) == (1, "12345678901234567890.12")
    assert notes["at"].occurrences == 1
    assert notes["at"].example.endswith(".000000001")
    assert "seconds" in notes["took"]
    assert notes["hash"].example == str(2**63)
    ingest_files(str(tmp_path / "t.arrow"), "u", workspace, types={"amount": "text", "hash": "float"})
    stored = _stored(workspace, "u")
    assert stored["amount"][0] == "12345678901234567890.12"
    assert stored["hash"] == [float(2**63), 1.0]


def test_int96_and_times_out_of_range(tmp_path, workspace):
    old = pa.table({"x": pa.array([FAR, NOON, dt.datetime(1, 1, 1)], pa.timestamp("us"))})
    pq.write_table(old, tmp_path / "old.parquet", use_deprecated_int96_timestamps=True, store_schema=False)
    ingest_files(str(tmp_path / "old.parquet"), "old", workspace)
    assert _stored(workspace, "old")["x"] == [FAR, NOON, dt.datetime(1, 1, 1)]
    far = pa.table({"id": [1, 2, 3], "x": pa.array([0, 253_402_300_800, -62_135_596_801], pa.timestamp("s"))})
    _write(far, tmp_path / "far.parquet")
    report = ingest_files(str(tmp_path / "far.parquet"), "far", workspace)
    assert (report.stored, report.rejected) == (1, 2)
    rejects = _stored(workspace, "far__rejects")
    assert rejects["line"] == [2, 3]
    assert "outside the years 1 to 9999" in rejects["reason"][0]


def test_text_that_is_not_utf8_sets_its_row_aside(tmp_path, workspace):
    text = pa.array([b"taxi", b"caf\xe9", b"bus"]).view(pa.string())
    _write(pa.table({"id": [1, 2, 3], "x": text}), tmp_path / "t.parquet")
    report = ingest_files(str(tmp_path / "t.parquet"), "t", workspace)
    assert (report.stored, report.rejected) == (2, 1)
    assert _stored(workspace)["x"] == ["taxi", "bus"]
    assert _stored(workspace, "t__rejects")["reason"] == ["x: 'caf\\xe9' is not UTF-8"]
