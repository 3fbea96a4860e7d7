"""What Python's csv, DuckDB, pandas and pyarrow read alike in a drawn file, slml reads like them."""

import csv
import io
import tempfile
from datetime import date, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

LETTERS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)
WORDS = st.one_of(
    LETTERS.map(lambda s: "w" + s), st.sampled_from(["a b", 'say "hi"', "x, y", "x; y", "two\nlines", "it's", "ä|b"])
)
COLUMNS = {
    "whole": st.one_of(st.integers(-1000, 1000), st.integers(-(2**63), 2**63 - 1)).map(str),
    "fraction": st.floats(allow_nan=False, allow_infinity=False, width=64).map(lambda x: f"{x!r}"),
    "word": WORDS,
    "day": st.dates(date(1900, 1, 1), date(2100, 1, 1)).map(date.isoformat),
    "moment": st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.isoformat(sep=" ")),
}
ROWS = st.lists(st.tuples(*COLUMNS.values()), min_size=20, max_size=40)


def plain(value: object) -> object:
    "A value of any reader as Python has it."
    value = value.to_pydatetime() if isinstance(value, pd.Timestamp) else value
    return value.date() if isinstance(value, datetime) and value.time() == datetime.min.time() else value


def readings(path: str, names: list[str]) -> dict[str, dict[str, list]]:
    "The columns of the file, by reader."
    duck = duckdb.sql(f"SELECT * FROM read_csv('{path}', header=true, delim=',', quote='\"', sample_size=-1)")
    arrow = pa.csv.read_csv(path, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
    frame = pd.read_csv(path, keep_default_na=False, parse_dates=["day", "moment"], float_precision="round_trip")
    tables = {"DuckDB": duck.to_arrow_table(), "pyarrow": arrow}
    found = {reader: {n: [plain(v) for v in table[n].to_pylist()] for n in names} for reader, table in tables.items()}
    return found | {"pandas": {n: [plain(v) for v in frame[n].tolist()] for n in names}}


@pytest.mark.slow
@settings(max_examples=15, deadline=None, database=None)
@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_a_file_that_others_read_alike_comes_out_alike(rows: list[tuple], end: str, quoting: int) -> None:
    names = list(COLUMNS)
    writer = csv.writer(text := io.StringIO(newline=""), lineterminator=end, quoting=quoting)
    writer.writerows([names, *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/drawn.csv"
        Path(path).write_bytes(text.getvalue().encode())
        workspace = Workspace(root=f"{folder}/root", project="p", cores=2)
        ingest_files(path, "drawn", workspace)
        files = list(Catalog(workspace).snapshot("drawn").files)
        ours = ds.dataset(files, format="parquet").to_table()
        others = readings(path, names)
    for name in names:
        values = [plain(v) for v in ours[name].to_pylist()]
        answers = [found[name] for found in others.values()]
        if all(answer == answers[0] for answer in answers):
            assert values == answers[0], f"{name}: {values[:3]}, others {answers[0][:3]}"
    right = [(int(w), float(x), s, date.fromisoformat(d), datetime.fromisoformat(m)) for w, x, s, d, m in rows]
    assert [tuple(map(plain, row.values())) for row in ours.to_pylist()] == [tuple(map(plain, r)) for r in right]
