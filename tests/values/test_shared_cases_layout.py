"""The handed files of odd layouts: each is read as its text says, or refused in one clear line."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from slml.errors import IngestError
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files

from support import REPOSITORY

CASES = Path(os.environ.get("SLML_TEST_CASES", REPOSITORY.parent / "shared" / "cases")) / "values"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the handed files are not here: no folder {CASES}")

HOUSE = {"area": 190.3, "price": 587648}
# file: rows stored, rows rejected, types of the columns, the first row, a word of the notes
FILES = {
    "euro.csv": (400, 0, "text int float", {"name": "item0", "qty": 7, "price": 98.63}, ""),
    "person.tsv": (400, 0, "int text text int", {"id": 0, "name": "Doe0, Ann", "city": "Springfield", "age": 20}, ""),
    "num_decimal_comma.csv": (500, 0, "float int float", {"flaeche": 74.5, "zimmer": 2, "preis": 235873.49}, "1,5"),
    "pipe_comma_text.csv": (400, 0, "text float float", {"name": "Doe, J0", "a": 2.5, "y": 6.73}, ""),
    "semi_comma_in_text.csv": (400, 0, "text float float", {"adresse": "Weg 0, Bonn", "flaeche": 2.5}, ""),
    "semi_two_commas_some.csv": (400, 0, "float float float", {"a": 2.5, "b": 2.0, "y": 7.71}, ""),
    "iso_comma_ms.csv": (400, 0, "timestamp float float", {"x": 2.2, "y": 2.2}, ""),
    "comment_head.csv": (200, 2, "text int float", {"name": "item0", "qty": 0, "price": 0.0}, "the header is line 3"),
    "comma_only_lines.csv": (90, 10, "int int int", {"id": 1, "a": 2, "b": 3}, "keep_lines='empty'"),
    "txt_all_null_col.csv": (300, 0, "text float int", {"note": None, **HOUSE}, "holds no value"),
    "txt_backslash_quote.csv": (300, 0, "text float int", {"title": 'say "hi", 0', **HOUSE}, "escape='none'"),
    "txt_blank_padded.csv": (300, 0, "text float int", {"city": "Rome", **HOUSE}, "blanks"),
    "txt_comment_head.csv": (300, 2, "text float int", {"title": "House 0", **HOUSE}, "skip_lines=2"),
    "txt_cr_inside.csv": (300, 0, "text float int", {"title": "House 0\rquiet", **HOUSE}, ""),
    "txt_ellipsis_cp1252.csv": (300, 0, "text float int", {"titel": "Haus 0 schön… ruhig", **HOUSE}, "Windows-1252"),
    "txt_emptystring_vs_null.csv": (300, 0, "text float int", {"code": None, **HOUSE}, ""),
    "txt_euro_cp1252.csv": (300, 0, "text float int", {"préfixe": "€ 0 – neuf “belle”", **HOUSE}, "encoding="),
    "txt_ff_tab.tsv": (300, 0, "text float int", {"title": "House 0\x0cquiet", **HOUSE}, ""),
    "txt_inch_quote.csv": (300, 0, "text float int", {"title": '0" pipe', **HOUSE}, ""),
    "txt_ls_some.csv": (300, 0, "text float int", {"title": "House 0\u2028quiet", **HOUSE}, ""),
    "txt_ls_utf8.csv": (300, 0, "text float int", {"title": "House 0\u2028quiet", **HOUSE}, ""),
    "txt_nel_utf8.csv": (300, 0, "text float int", {"title": "House 0\u0085 quiet", **HOUSE}, ""),
    "txt_newline_inside.csv": (300, 0, "text float int", {"title": 'House 0\nquiet\r\n"x"', **HOUSE}, ""),
    "txt_numeric_header.csv": (300, 0, "text float int int int", {"name": "H0", "2021": 190.3}, "header=0"),
    "txt_repeated_header.csv": (297, 3, "text float int", {"title": "House 1", "area": 116.9}, "repeat the header"),
    "txt_rs.csv": (300, 0, "text float int", {"title": "H0\x1equiet\x1fx", **HOUSE}, ""),
    "txt_sepline.csv": (300, 0, "text float int", {"title": "House 0", **HOUSE}, "names the delimiter"),
    "txt_trailing_delim.csv": (300, 0, "text float int", {"title": "House 0", **HOUSE}, "ends with a delimiter"),
    "txt_trailing_delim_both.csv": (300, 0, "text float int", {"title": "House 0", **HOUSE}, "ends with a delimiter"),
    "txt_utf16.csv": (300, 0, "text float int", {"titelé": "Häus 0", **HOUSE}, ""),
    "txt_utf16le_nobom.csv": (300, 0, "text float int", {"title": "House 0", **HOUSE}, ""),
    "txt_utf8_bom_semicolon.csv": (300, 0, "text float int", {"title": "House 0", **HOUSE}, ""),
    "dup_header.csv": (400, 0, "float int int float", {"x": 2.51, "x_2": 0, "X_3": 0, "y": 7.74}, "called 'x_2'"),
    "spark_escape_5pct.csv": (400, 0, "text float float", {"title": 'say "hi", it is', "x": 2.2}, "escape='none'"),
    "spark_escape_trailing_backslash.csv": (400, 0, "text float float", {"path": r"d:\\dir\\0\\", "x": 2.2}, "escape="),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_their_text_says(workspace, name):
    stored, rejected, types, first, note = FILES[name]
    report = ingest_files(str(CASES / name), "t", workspace)
    assert (report.stored, report.rejected) == (stored, rejected)
    assert " ".join(type.split()[0] for type in report.types.values()) == types
    file = Catalog(workspace).snapshot("t").files[0].removeprefix("file://")
    row = pq.read_table(file).slice(0, 1).to_pylist()[0]
    assert {column: row[column] for column in first} == first
    assert any(note in line for line in report.notes) or not note


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("page.csv", "page.csv is an HTML page ('Sign in, please')"),
        ("header_only.csv", "header_only.csv holds no row"),
        ("txt_nul.csv", "holds a NUL byte"),
    ],
)
def test_files_are_refused_by_what_they_are(workspace, name, reason):
    with pytest.raises(IngestError) as caught:
        ingest_files(str(CASES / name), "t", workspace)
    assert reason in str(caught.value)
    assert not Catalog(workspace).tables()
