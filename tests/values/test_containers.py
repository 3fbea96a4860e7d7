"""A table in any container comes out alike; what is no table, or packed without saying so, is refused by what it is."""

import bz2
import gzip
import io
import lzma
import zipfile
from datetime import datetime

import pyarrow as pa
import pytest

from slml.errors import IngestError
from slml.tables.catalog import Catalog
from slml.tables.containers import File
from slml.tables.ingest import ingest_files
from slml.tables.sources import open_source
from slml.workspace import Workspace

TEXT = "id,name,fare\n" + "".join(f"{i},Zoë {i},{i}.5\n" for i in range(300))
LINES = "".join(f'{{"id": {i}, "name": "Zoë {i}", "fare": {i}.5}}\n' for i in range(300))


def _compress(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: _compress(data, "zstd"),
    ".lz4": lambda data: _compress(data, "lz4"),
}


def _parquet() -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    names = [f"Zoë {i}" for i in range(300)]
    pq.write_table(pa.table({"id": range(300), "name": names, "fare": [i + 0.5 for i in range(300)]}), sink)
    return sink.getvalue()


def _rows(path) -> list[tuple[str, ...]]:
    source = open_source(File(str(path)))
    return [tuple(map(str, row.values())) for chunk in source.chunks(source.columns) for row in chunk.rows.to_pylist()]


EXPECTED = [(str(i), f"Zoë {i}", f"{i}.5") for i in range(300)]


@pytest.mark.parametrize("ending", PACKERS)
def test_packed(tmp_path, ending):
    for name, data in (("a.csv", TEXT.encode()), ("a.jsonl", LINES.encode()), ("a.parquet", _parquet())):
        path = tmp_path / f"{name}{ending}"
        path.write_bytes(PACKERS[ending](data))
        assert _rows(path) == EXPECTED, name
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            archive.write(path, path.name)
        source = open_source(File(str(tmp_path / "all.zip"), path.name))
        assert sum(len(chunk.lines) for chunk in source.chunks([])) == 300


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_and_damaged(tmp_path, ending):
    packed = PACKERS[ending](TEXT.encode())
    (tmp_path / "renamed.csv").write_bytes(packed)
    with pytest.raises(IngestError, match=rf"renamed.csv is packed.(?s:.*){ending}"):
        open_source(File(str(tmp_path / "renamed.csv")))
    (tmp_path / f"cut.csv{ending}").write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(IngestError, match=r"cut\.csv"):
        _rows(tmp_path / f"cut.csv{ending}")
    (tmp_path / f"plain.csv{ending}").write_text(TEXT)
    with pytest.raises(IngestError, match=r"plain\.csv"):
        _rows(tmp_path / f"plain.csv{ending}")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"SQLite format 3\x00" + bytes(100), "SQLite"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), r"\.xls"),
        (b"\x80\x04\x95\x10\x00", "pickle"),
        (b"FEA1" + bytes(20), "Feather file of version 1"),
        (b"7z\xbc\xaf\x27\x1c\x00", "7z"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
        (b"PARE" + bytes(20), "encrypted"),
    ],
)
def test_what_is_no_table(tmp_path, data, what):
    (tmp_path / "data.csv").write_bytes(data)
    with pytest.raises(IngestError, match=rf"data.csv is .*{what}"):
        open_source(File(str(tmp_path / "data.csv")))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather", "orc", "xlsx"])
def test_text_under_the_name_of_another_kind(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_text(TEXT)
    with pytest.raises(IngestError, match=f"a.{ending}"):
        open_source(File(str(tmp_path / f"a.{ending}")))


def test_workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="slml[excel] is not installed")
    book = openpyxl.Workbook()
    book.active.title = "orders"
    book.active.append(["Orders of January"])
    book.active.append([])
    book.active.append(["id", "zip", "at", "ok", "eur"])
    for i in range(40):
        book.active.append([i, f"{i:05d}", datetime(2024, 1, 1, i % 24), i % 2 == 0, i / 4 if i else None])
    book.create_sheet("remarks").append(["none"])
    book.save(tmp_path / "orders.xlsx")
    workspace = Workspace(root=str(tmp_path / "workspace"))
    report = ingest_files(str(tmp_path / "orders.xlsx"), "orders", workspace)
    assert report.stored == 40
    assert any("'orders' is read, not remarks" in note for note in report.notes)
    kinds = {"id": "int", "zip": "text", "at": "timestamp", "ok": "bool", "eur": "float"}
    assert report.types == kinds
    assert Catalog(workspace).table("orders").snapshot().rows == 40


def test_workbook_without_openpyxl(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    with pytest.raises(IngestError, match=r"a.xlsx(?s:.*)pip install 'slml\[excel\]'"):
        open_source(File(str(tmp_path / "a.xlsx")))


def test_hidden_files_by_name(tmp_path):
    workspace = Workspace(root=str(tmp_path / "workspace"))
    for name in ("_x.csv", ".x.csv"):
        (tmp_path / name).write_text(TEXT.replace("Zoë", name))
        assert ingest_files(str(tmp_path / name), "t", workspace).stored == 300
