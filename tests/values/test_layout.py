"""How text files are laid out: delimiters, headers, encodings, and which lines are rows, up to the stored table."""

import csv
import io
import json
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import hypothesis.strategies as st
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from slml.errors import IngestError, UsageError
from slml.tables.catalog import Catalog
from slml.tables.containers import File
from slml.tables.ingest import IngestReport, holds_exactly, ingest_files, preview_files
from slml.tables.options import ReadOptions
from slml.tables.sources import open_source
from slml.workspace import Workspace


def put(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def rows(workspace: Workspace, name: str) -> list[dict]:
    files = Catalog(workspace).snapshot(name).files
    return [row for file in files for row in pq.read_table(file.removeprefix("file://")).to_pylist()]


def take(tmp_path: Path, workspace: Workspace, text: str | bytes, **options: object) -> IngestReport:
    return ingest_files(put(tmp_path / "t.csv", text), "t", workspace, options=ReadOptions(**options), append=False)


# Delimiters


def sales(delimiter: str, decimal: str, name: str = "item{}", header: str = "name,qty,price") -> str:
    lines = [header.replace(",", delimiter)] * bool(header)
    for i in range(300):
        price = f"{10 + i},{i % 10}5".replace(",", decimal)
        lines.append(delimiter.join([name.format(i), str(i % 9), price]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("decimal", [",", "."])
@pytest.mark.parametrize("name", ["item{}", "Doe{}, Ann", "a{},b{}"])
@pytest.mark.parametrize("header", ["name,qty,price", ""])
def test_a_comma_in_every_line_is_no_delimiter(tmp_path, workspace, delimiter, decimal, name, header):
    report = take(tmp_path, workspace, sales(delimiter, decimal, name.replace("{}", "{0}"), header))
    assert (report.stored, report.rejected) == (300, 0)
    assert list(report.types.values()) == ["text", "int", "float"]
    first = list(rows(workspace, "t")[0].values())
    assert first == [name.replace("{}", "0"), 0, 10.05]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,tags,x\n" + "".join(f"{i},a;b;c,{i}.5\n" for i in range(50)), ["int", "text", "float"]),
        ("id,genres,x\n" + "".join(f"{i},Drama|Comedy,{i}.5\n" for i in range(50)), ["int", "text", "float"]),
        ("id;tags;x\n" + "".join(f"{i};a,b,c;{i}\n" for i in range(50)), ["int", "text", "int"]),
        ("at;x\n" + "".join(f"2024-06-07T00:23:{i:02},123;2.{i}\n" for i in range(50)), ["timestamp", "float"]),
        ('id,doc\n' + "".join(f'{i},"{{""a"": {i}, ""b"": 2}}"\n' for i in range(50)), ["int", "text"]),
        ("a\x01b\n" + "".join(f"{i}\x01x{i}\n" for i in range(50)), ["int", "text"]),
    ],
)  # fmt: skip
def test_other_delimiters_within_values(tmp_path, workspace, text, expected):
    report = take(tmp_path, workspace, text)
    assert (report.rejected, list(report.types.values())) == (0, expected)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("price\n1,5\n2,5\n7,25\n", [1.5, 2.5, 7.25]),
        ("name\nDoe,Ann\nRoe,Bob\n", ["Doe,Ann", "Roe,Bob"]),
        ("review\nGreat, really; yes\nBad, I think; no\n", ["Great, really; yes", "Bad, I think; no"]),
        ("x\n1\n2\n", [1, 2]),
    ],
)
def test_one_column_stays_one(tmp_path, workspace, text, values):
    report = take(tmp_path, workspace, text)
    assert len(report.types) == 1
    assert [next(iter(row.values())) for row in rows(workspace, "t")] == values


def test_the_delimiter_may_be_said(tmp_path, workspace):
    text = "a;b,c\n1;2,3\n4;5,6\n"
    assert list(take(tmp_path, workspace, text, delimiter="comma").types) == ["a;b", "c"]
    other = ingest_files(str(tmp_path / "t.csv"), "u", workspace, options=ReadOptions(delimiter=";"))
    assert other.types == {"a": "int", "b,c": "float"}
    assert rows(workspace, "u")[0] == {"a": 1, "b,c": 2.3}


# Header


@pytest.mark.parametrize(
    ("text", "columns", "told"),
    [
        ("name,2021,2022,price\nA,5,3,587648\nB,7,1,358220\n", ["name", "2021", "2022", "price"], "looks like a row"),
        ("id,1st,2nd\n1,5,3\n2,7,1\n", ["id", "1st", "2nd"], ""),
        ("39, State-gov\n50, Private\n", ["column0", "column1"], "no header"),
        ("yes,no\nno,yes\nyes,yes\nno,no\n", ["column0", "column1"], "no header"),
        ("one,two\none,b\nc,d\n", ["one", "two"], "looks like a row: 'one'"),
        ("My report\nname,x\na,1\nb,2\n", ["name", "x"], "the header is line 2; 1 line above it"),
        ("# by Ann, 2024\n#name\tx\na\t1\nb\t2\n", ["#name", "x"], "the header is line 2"),
        ("a,b\n1,2,3\n4,5,6\n", ["column0", "column1", "column2"], "If it is a header, name the columns"),
        ("sep=;\nname;x\na;1\n", ["name", "x"], "names the delimiter"),
    ],
)
def test_header(tmp_path, workspace, text, columns, told):
    report = take(tmp_path, workspace, text)
    assert list(report.types) == columns
    assert any(told in note for note in report.notes) or not told


def test_the_header_may_be_said(tmp_path, workspace):
    text = "a,b\nc,d\n1,2\n"
    assert list(take(tmp_path, workspace, text, header=2).types) == ["c", "d"]
    assert take(tmp_path, workspace, "1,2\n3,4\n", header=0).stored == 2
    with pytest.raises(UsageError, match="header on line 1 does not fit"):
        take(tmp_path, workspace, "Report of May\na,b\n1,2\n3,4\n5,6\n", header=1, delimiter=",")
    with pytest.raises(UsageError, match="no header on line 9"):
        take(tmp_path, workspace, text, header=9)


# Lines that are no rows


def test_lines_of_delimiters_are_told(tmp_path, workspace):
    text = "id,a,b\n,,\n1,2,3\n,,\r\n4,5,6\n"
    report = take(tmp_path, workspace, text)
    assert [row["id"] for row in rows(workspace, "t")] == [1, 4]
    assert report.rejected == 2
    assert any("keep_lines='empty'" in note for note in report.notes)
    assert take(tmp_path, workspace, text, keep_lines=["empty"]).stored == 4


def test_repeated_headers_are_told(tmp_path, workspace):
    text = "id,a\n1,2\nid,a\n3,4\nid,a\r\n"
    report = take(tmp_path, workspace, text)
    assert report.types == {"id": "int", "a": "int"}
    assert (report.stored, report.rejected) == (2, 2)
    assert [reject["line"] for reject in rows(workspace, "t__rejects")] == [3, 5]
    kept = take(tmp_path, workspace, text, keep_lines=["repeated"])
    assert (kept.stored, kept.types["a"]) == (4, "text")


def test_comments(tmp_path, workspace):
    text = "# exported, by the shop\n# it's \"so\nid,a\n1,2\n# half\n3,4\n"
    report = take(tmp_path, workspace, text)
    assert (report.stored, report.rejected) == (2, 3)
    assert any("comment='#'" in note for note in report.notes)
    report = take(tmp_path, workspace, text, comment="#")
    assert (report.stored, report.rejected) == (2, 0)
    assert any("3 lines that begin with # are no rows" in note for note in report.notes)


def test_a_second_table_is_told(tmp_path, workspace):
    first = "id,a,b\n" + "".join(f"{i},{i},{i}\n" for i in range(30))
    second = "name,score\n" + "".join(f"N{i},{i}\n" for i in range(10))
    report = take(tmp_path, workspace, f"{first}\n{second}")
    (note,) = [note for note in report.notes if "second table" in note]
    assert "lines 33 to 43" in note
    assert "skip_lines=32" in note
    assert report.stored == 30
    below = ingest_files(str(tmp_path / "t.csv"), "below", workspace, options=ReadOptions(skip_lines=32))
    assert (below.types, below.stored, below.rejected) == ({"name": "text", "score": "int"}, 10, 0)


def test_a_second_table_of_the_same_width_is_told(tmp_path, workspace):
    first = "id,a\n" + "".join(f"{i},{i}\n" for i in range(30))
    report = take(tmp_path, workspace, first + "\nname,score\nAnn,7\n")
    (note,) = [note for note in report.notes if "second table" in note]
    assert "last_line=32" in note
    only = ingest_files(str(tmp_path / "t.csv"), "first", workspace, options=ReadOptions(last_line=32))
    assert (only.types, only.stored, only.rejected) == ({"id": "int", "a": "int"}, 30, 0)


@pytest.mark.parametrize("header", ["a,b", "a,b,"])
def test_delimiters_at_the_end_of_lines(tmp_path, workspace, header):
    take(tmp_path, workspace, f"{header}\n1,x,\n2,y,\r\n3,z\n")
    assert [(row["a"], row["b"]) for row in rows(workspace, "t")] == [(1, "x"), (2, "y"), (3, "z")]


def test_a_value_after_the_last_column_is_not_dropped(tmp_path, workspace):
    report = take(tmp_path, workspace, "a,b\n1,x,\n2,y,\n3,z\n4,w,more\n")
    assert (report.stored, report.rejected) == (3, 1)
    assert rows(workspace, "t__rejects")[0]["raw"] == "4,w,more"


# Encodings and bytes


@pytest.mark.parametrize("letters", ["€ 0 – neuf “belle”", "schön… ruhig", "Straße"])
def test_windows_1252(tmp_path, workspace, letters):
    report = take(tmp_path, workspace, f"titre,x\n{letters},1\nb,2\n".encode("cp1252"))
    assert rows(workspace, "t")[0]["titre"] == letters
    (note,) = [note for note in report.notes if "Windows-1252" in note]
    assert "encoding=" in note
    assert letters in note.example


def test_the_encoding_may_be_said(tmp_path, workspace):
    take(tmp_path, workspace, "имя,x\nАнна,1\n".encode("cp1251"), encoding="cp1251")
    assert rows(workspace, "t") == [{"имя": "Анна", "x": 1}]


@pytest.mark.parametrize("letter", ["\x0b", "\x0c", "\x1c", "\x1e", "\u0085", "\u2028", "\u2029"])
def test_letters_that_end_no_line(tmp_path, workspace, letter):
    report = take(tmp_path, workspace, f"title\tarea\nHouse{letter}quiet\t190.3\nb{letter}c\t7\n")
    assert (report.stored, report.rejected) == (2, 0)
    assert rows(workspace, "t")[0] == {"title": f"House{letter}quiet", "area": 190.3}


def test_a_carriage_return_within_a_field(tmp_path, workspace):
    take(tmp_path, workspace, 'a,b\r\nx\ry,1\r\n"z\rw",2\r\n')
    assert [row["a"] for row in rows(workspace, "t")] == ["x\ry", "z\rw"]


@pytest.mark.parametrize("every", [1, 20, 800])
def test_backslash_before_a_quote(tmp_path, workspace, every):
    lines = [f'"say \\"hi\\", {i}",{i}\n' if i % every == 0 else f'"item {i}",{i}\n' for i in range(1, 1000)]
    report = take(tmp_path, workspace, "title,x\n" + "".join(lines))
    assert (report.stored, report.rejected) == (999, 0)
    assert {row["x"]: row["title"] for row in rows(workspace, "t")}[every] == f'say "hi", {every}'
    assert any("escape='none'" in note for note in report.notes)


def test_backslashes_that_are_text(tmp_path, workspace):
    take(tmp_path, workspace, 'path,x\n"C:\\new\\",1\n"D:\\t, x",2\nE:\\n,3\n')
    assert [row["path"] for row in rows(workspace, "t")] == ["C:\\new\\", "D:\\t, x", "E:\\n"]


def test_inches_are_no_quotes(tmp_path, workspace):
    take(tmp_path, workspace, 'size\tname\n1\t5" pipe\n2\t"Rome\n3\t"Oslo\n')
    assert [row["name"] for row in rows(workspace, "t")] == ['5" pipe', '"Rome', '"Oslo']


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html>\n<html><title>Log in</title>\n", "an HTML page ('Log in')"),
        (b"  <HTML lang=en>\n<body>a,b\n1,2\n", "an HTML page"),
        (b"<?xml version='1.0'?>\n<a>1,2</a>\n", "an XML document"),
        (bytes(range(256)) * 20, "binary data"),
        (b"a,b\n1\0\0\0,2\n", "binary data"),
    ],
)
def test_what_is_no_table(tmp_path, workspace, data, what):
    with pytest.raises(IngestError) as caught:
        take(tmp_path, workspace, data)
    assert f"t.csv is {what}" in str(caught.value)
    assert not Catalog(workspace).tables()


def test_rows_with_nul_bytes_are_rejected(tmp_path, workspace):
    text = "name,x\n" + "".join(f"A long enough name {i},{i}\n" for i in range(50)) + "bad\0one,7\n"
    report = take(tmp_path, workspace, text)
    assert (report.stored, report.rejected) == (50, 1)
    assert rows(workspace, "t__rejects")[0]["reason"] == "holds a NUL byte"


# Options and preview


def test_number_signs_and_null_words_hold_for_all_columns(tmp_path, workspace):
    text = "a;b;c\n1.234;x;2,5\n5.678;void;void\n"
    report = take(tmp_path, workspace, text, decimal="comma", thousands=".", null_words=["void"])
    assert rows(workspace, "t") == [{"a": 1234, "b": "x", "c": 2.5}, {"a": 5678, "b": None, "c": None}]
    noted = json.loads(Catalog(workspace).snapshot("t").properties["ingest.types"])
    assert noted["b"] == "text null void"
    assert noted["c"].startswith("float 1.234,5")
    assert report.stored == 2


def test_the_options_are_noted_with_the_snapshot(tmp_path, workspace):
    take(tmp_path, workspace, "a;b\n1;2\n", delimiter=";")
    table, path = Catalog(workspace).table("t"), str(tmp_path / "t.csv")
    assert holds_exactly(table, path, options=ReadOptions(delimiter="semicolon"))
    assert not holds_exactly(table, path)


@pytest.mark.parametrize(
    "options",
    [{"delimiter": "::"}, {"quote": "“"}, {"quote": ";", "delimiter": ";"}, {"decimal": ",", "thousands": ","},
     {"encoding": "utf-9"}, {"header": -2}, {"header": 2, "skip_lines": 3}, {"keep_lines": ["all"]}],
)  # fmt: skip
def test_options_that_cannot_be_used(options):
    with pytest.raises(UsageError):
        ReadOptions(**options)


def test_a_preview_stores_nothing(tmp_path, workspace):
    path = put(tmp_path / "t.csv", "# Mai\nfahrt;betrag\n1;15,79\n2;10,81\n3;7;x\n".encode("cp1252"))
    preview = preview_files(path, "t", workspace)
    assert preview.types == {"fahrt": "int", "betrag": "float 1,5"}
    assert preview.layouts == ('utf-8, delimiter ;, quote ", header on line 2',)
    assert preview.first_rows[0] == {"fahrt": 1, "betrag": 15.79}
    assert [reject.line for reject in preview.first_rejects] == [1, 5]
    assert "Nothing was stored" in str(preview)
    assert "betrag" in preview._repr_html_()
    assert not Catalog(workspace).tables()
    report = ingest_files(path, "t", workspace)
    assert (report.rows, report.layouts) == (preview.rows, preview.layouts)


def test_preview_of_the_command_line(tmp_path, workspace, monkeypatch, capsys):
    from slml.cli.app import main

    monkeypatch.setenv("SLML_ROOT", workspace.root)
    path = put(tmp_path / "t.csv", "a;b\n1;2,5\n")
    assert main(["ingest", path, "t", "--preview"]) == 0
    assert "delimiter ;" in capsys.readouterr().out
    assert not Catalog(Workspace(root=workspace.root)).tables()
    assert main(["ingest", path, "t", "--delimiter", "comma", "--header", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] == 1


# Tables that Python's csv module writes


def read_cells(data: bytes, tmp_path: Path, options: ReadOptions) -> tuple[tuple[str, ...], list[list[str]], int]:
    source = open_source(File(put(tmp_path / "t.csv", data)), options=options)
    chunks = list(source.chunks(source.columns))
    cells = [[cell or "" for cell in row.values()] for chunk in chunks for row in chunk.rows.to_pylist()]
    return tuple(source.columns), cells, sum(len(chunk.rejected) for chunk in chunks)


def written(table: list[list[str]], **dialect: object) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **dialect).writerows(table)
    return out.getvalue()


DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|"),
        "quotechar": st.sampled_from("\"'"),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    }
)
CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n,;|'\"\t"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(cells=st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=8), dialect=DIALECTS)
def test_any_cells_come_back_where_the_dialect_is_said(tmp_path_factory, cells, dialect):
    """Any text, empty cells too; blanks and tabs around a value are no part of it."""
    table = [["key", *row] for row in cells]
    options = ReadOptions(dialect["delimiter"], dialect["quotechar"], "none", header=1)
    data = written([["k", "a", "b", "c"], *table], **dialect).encode()
    columns, cells_read, rejected = read_cells(data, tmp_path_factory.mktemp("t"), options)
    assert (columns, rejected) == (("k", "a", "b", "c"), 0)
    assert cells_read == [[cell.strip(" \t") for cell in row] for row in table]


TEXTS = st.sampled_from(
    ["Rome", "Doe, Ann", "a;b", "it's", 'say "hi"', "two\nlines", "Straße 5", "x|y", "2nd, left", ""]
)
COLUMNS = st.sampled_from(["text", "int", "float", "comma", "date", "name"])


def draw_cell(data: st.DataObject, kind: str) -> str:
    if kind in ("text", "name"):
        return data.draw(TEXTS) if kind == "text" else f"Doe{data.draw(st.integers(0, 99))}, Ann"
    number = data.draw(st.integers(-99_999, 99_999))
    if kind == "date":
        return str(date(2024, 1, 1) + timedelta(number % 300))
    text = str(number) if kind == "int" else f"{Decimal(number) / 100:.2f}"
    return text.replace(".", ",") if kind == "comma" else text


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kinds=st.lists(COLUMNS, min_size=1, max_size=5), dialect=DIALECTS, bom=st.booleans())
def test_ordinary_tables_come_back_without_options(tmp_path_factory, data, kinds, dialect, bom):
    """Columns of numbers, dates and texts with delimiters in them, in every dialect, with an id in front."""
    if dialect["quotechar"] == "'":
        dialect["quoting"] = csv.QUOTE_ALL  # a single apostrophe would be a letter
    count = data.draw(st.integers(4, 25))
    table = [[str(i + 1), *(draw_cell(data, kind) for kind in kinds)] for i in range(count)]
    header = ["id", *(f"{kind}_{i}" for i, kind in enumerate(kinds))]
    text = written([header, *table], **dialect)
    columns, cells_read, rejected = read_cells(
        text.encode("utf-8-sig" if bom else "utf-8"), tmp_path_factory.mktemp("t"), ReadOptions()
    )
    assert (list(columns), rejected) == (header, 0)
    assert cells_read == table


# What real files taught


@pytest.mark.parametrize(
    ("text", "width", "stored", "rejected"),
    [
        ("1, A\n" * 40 + "B, A\n", 2, 41, 0),  # rows that repeat themselves are no headers
        ("a,b,c\n" + "1,2,3\n" * 26 + "d,e\n" + "4,5\n" * 20, 3, 26, 21),  # two tables of one length
        ('"1","x",""\n"2","y",""\n', 3, 2, 0),  # an empty last column of a file without a header
        ('name,age\nthijs,26\n"joe" x, 3\n\'y,4\n', 2, 2, 1),  # one broken quote takes no quotes away
    ],
)
def test_layouts_of_damaged_files(tmp_path, workspace, text, width, stored, rejected):
    report = take(tmp_path, workspace, text)
    assert (len(report.types), report.stored, report.rejected) == (width, stored, rejected)
