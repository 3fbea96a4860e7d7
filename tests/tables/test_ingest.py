"""Ingest of good files: every row is accounted for, and the types are those that every value has."""

import gzip
import json
import zipfile
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slml.errors import IngestError, LedgerError, UsageError
from slml.tables.catalog import Catalog
from slml.tables.ingest import IngestReport, ingest_files
from slml.workspace import Workspace

TRIPS = "id,fare,when\n1,2.5,2023-01-01 10:00\n2,3,2023-01-01 11:30\n"


def rows(workspace: Workspace, name: str) -> pa.Table:
    files = Catalog(workspace).snapshot(name).files
    return pa.concat_tables([pq.read_table(file.removeprefix("file://")) for file in files])


def put(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def take(
    tmp_path: Path, workspace: Workspace, text: str | bytes, table: str = "trips", **options: object
) -> IngestReport:
    return ingest_files(put(tmp_path / f"{table}.csv", text), table, workspace, **options)


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "csv.gz", "zip", "jsonl", "parquet"])
def test_all_kinds_give_the_same_table(tmp_path, workspace, ending):
    table = {"id": [1, 2], "fare": [2.5, 3.0], "when": [datetime(2023, 1, 1, 10), datetime(2023, 1, 1, 11, 30)]}
    path = tmp_path / f"trips.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table(table), path)
    elif ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("folder/trips.csv", TRIPS)
    else:
        lines = [
            dict(zip(TRIPS.split("\n")[0].split(","), line.split(","), strict=True)) for line in TRIPS.split("\n")[1:-1]
        ]
        text = {
            "jsonl": "\n".join(map(json.dumps, lines)),
            "tsv": TRIPS.replace(",", "\t"),
            "txt": TRIPS.replace(",", "|"),
        }
        data = text.get(ending, TRIPS).encode()
        put(path, gzip.compress(data) if ending.endswith("gz") else data)
    report = ingest_files(str(path), "trips", workspace)
    assert (report.rows, report.stored, report.rejected) == (2, 2, 0)
    assert report.types == {"id": "int", "fare": "float", "when": "timestamp"}
    assert rows(workspace, "trips").to_pydict() == table


def test_types_need_every_value(tmp_path, workspace):
    text = (
        "zip,n,mixed,flag,day,gap\n02134,1,1,true,2023-01-05,\n20001,-2,2.0,FALSE,2023-02-28,NaN\n20002,+3,,true,,1e3\n"
    )
    report = take(tmp_path, workspace, text)
    assert report.types == {"zip": "text", "n": "int", "mixed": "float", "flag": "bool", "day": "date", "gap": "float"}
    table = rows(workspace, "trips").to_pydict()
    assert table["zip"][0] == "02134"
    assert table["mixed"] == [1.0, 2.0, None]
    assert table["n"] == [1, -2, 3]
    assert table["day"] == [date(2023, 1, 5), date(2023, 2, 28), None]
    assert table["gap"][1] != table["gap"][1]
    assert any("'02134'" in note for note in report.notes)


def test_one_value_in_ten_thousand_keeps_a_column_text(tmp_path, workspace):
    values = [str(i) for i in range(10_000)]
    values[9_999] = "12o"
    report = take(tmp_path, workspace, "id,value\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    assert report.types["value"] == "text"
    note = next(note for note in report.notes if note.startswith("value: "))
    assert "99.99 % parse as int, 1 do not (e.g. '12o')" in note
    assert "Declare it 'int'" in note


def test_long_numbers_stay_text(tmp_path, workspace):
    report = take(tmp_path, workspace, "card\n1\n12345678901234567890\n")
    assert report.types == {"card": "text"}


def test_a_date_that_fits_both_orders_is_not_guessed(tmp_path, workspace):
    report = take(tmp_path, workspace, "id,when\n1,01/02/2023 10:00\n2,05/04/2023 10:00\n")
    assert report.types["when"] == "text"
    assert rows(workspace, "trips")["when"][0].as_py() == "01/02/2023 10:00"
    note = next(note for note in report.notes if "ambiguous" in note)
    assert "'timestamp %m/%d/%Y %H:%M'" in note
    assert "'timestamp %d/%m/%Y %H:%M'" in note


@pytest.mark.parametrize(("text", "day"), [("13/02/2023", 13), ("02/13/2023", 13)])
def test_the_only_order_that_fits_is_used(tmp_path, workspace, text, day):
    report = take(tmp_path, workspace, f"id,when\n1,{text}\n2,01/02/2023\n")
    assert report.types["when"] == "date"
    assert rows(workspace, "trips")["when"][0].as_py() == date(2023, 2, day)


def test_mixed_orders_lose_no_row(tmp_path, workspace):
    """The book's pipeline lost 60 % of its usable rows to this."""
    dates = ["13/01/2023 10:00"] * 6 + ["01/14/2023 10:00"] * 3 + ["02/03/2023 10:00"] * 5
    text = "id,when\n" + "".join(f"{i},{when}\n" for i, when in enumerate(dates))
    report = take(tmp_path, workspace, text)
    assert report.types["when"] == "text"
    assert report.stored == 14
    note = next(note for note in report.notes if "mixed dates" in note)
    assert "6 values fit only day first" in note
    assert "3 only month first" in note
    assert "and 5 both" in note

    report = take(tmp_path, workspace, text, "declared", types={"when": "timestamp %m/%d/%Y %H:%M"})
    assert (report.rows, report.stored, report.rejected) == (14, 8, 6)
    rejects = rows(workspace, "declared__rejects").to_pylist()
    assert rejects[0]["line"] == 2
    assert rejects[0]["raw"] == "0,13/01/2023 10:00"
    assert rejects[0]["column"] == "when"


def test_zones_become_utc(tmp_path, workspace):
    put(tmp_path / "in" / "a.csv", "when,n\n2013-03-27 03:35:00 UTC,1\n")
    put(tmp_path / "in" / "b.csv", "when,n\n2013-03-27 03:35:00+00:00,2.0\n2013-03-27 03:35:00-05:00,\n")
    report = ingest_files(str(tmp_path / "in"), "trips", workspace)
    assert report.types == {"when": "timestamp", "n": "float"}
    assert [when.hour for when in rows(workspace, "trips")["when"].to_pylist()] == [3, 3, 8]
    assert any("UTC" in note for note in report.notes)


def test_declared_values_that_do_not_parse_are_kept_once(tmp_path, workspace):
    report = take(tmp_path, workspace, "id,fare\n1,x\ny,z\n3,1.5\n4,\n", types={"id": "int", "fare": "float"})
    assert (report.rows, report.stored, report.rejected) == (4, 2, 2)
    assert rows(workspace, "trips").to_pydict() == {"id": [3, 4], "fare": [1.5, None]}
    rejects = rows(workspace, "trips__rejects").to_pylist()
    assert [(r["line"], r["raw"], r["column"], r["value"]) for r in rejects] == [
        (2, "1,x", "fare", "x"),
        (3, "y,z", "id", "y"),
    ]
    assert "'z' is no float" in rejects[1]["reason"]
    assert rejects[0]["file"].endswith("trips.csv")


def test_blanks_and_question_marks(tmp_path, workspace):
    report = take(tmp_path, workspace, "39, State-gov, 77516\n50, ?, 83311\n", columns=["age", "work", "weight"])
    assert report.types == {"age": "int", "work": "text", "weight": "int"}
    assert rows(workspace, "trips")["work"].to_pylist() == ["State-gov", "?"]
    assert any("blanks around values were dropped in work, weight" in note for note in report.notes)


def test_the_same_content_is_taken_once(tmp_path, workspace):
    put(tmp_path / "in" / "a.csv", TRIPS)
    put(tmp_path / "in" / "b.csv", TRIPS)
    report = ingest_files(str(tmp_path / "in"), "trips", workspace)
    assert report.rows == 2
    assert any("same content" in note for note in report.notes)
    put(tmp_path / "in" / "c.csv", TRIPS.replace("2.5", "9.5"))
    report = ingest_files(str(tmp_path / "in" / "*.csv"), "trips", workspace)
    assert (report.stored, len(report.skipped), len(rows(workspace, "trips"))) == (2, 2, 4)
    with pytest.raises(UsageError, match="in the table already"):
        ingest_files(str(tmp_path / "in"), "trips", workspace, duplicates="refuse")


def test_files_are_known_after_expiry_and_unknown_after_rollback(tmp_path, workspace):
    take(tmp_path, workspace, TRIPS)
    table = Catalog(workspace).table("trips")
    first = table.snapshot().id
    second = put(tmp_path / "second.csv", TRIPS.replace("2.5", "9.5"))
    ingest_files(second, "trips", workspace)
    table.rollback(first)
    assert ingest_files(second, "trips", workspace).stored == 2
    table.expire(1)
    assert ingest_files(str(tmp_path / "trips.csv"), "trips", workspace).skipped
    assert len(rows(workspace, "trips")) == 4


def test_own_output_is_refused(tmp_path, workspace):
    """The book's pipeline read its own output back in."""
    take(tmp_path, workspace, TRIPS)
    for source in (f"{workspace.root}/warehouse", f"{workspace.root}/**/*.parquet"):
        with pytest.raises(UsageError, match="output of slml itself"):
            ingest_files(source, "trips", workspace)
    (tmp_path / "link").symlink_to(f"{workspace.root}/warehouse")
    with pytest.raises(UsageError, match="output of slml itself"):
        ingest_files(str(tmp_path / "link" / "**" / "*.parquet"), "trips", workspace)


def test_a_table_keeps_its_types(tmp_path, workspace):
    take(tmp_path, workspace, "id,fare,when\n1,2,13/01/2023\n")
    report = ingest_files(
        put(tmp_path / "b.csv", "when,id,fare\n02/03/2023,2,2.5\n02/03/2023,3,7\n"), "trips", workspace
    )
    assert (report.stored, report.rejected) == (1, 1)  # 2.5 is no int
    assert rows(workspace, "trips")["when"].to_pylist() == [date(2023, 1, 13), date(2023, 3, 2)]
    with pytest.raises(UsageError, match="cannot become text"):
        ingest_files(
            put(tmp_path / "c.csv", "id,fare,when\n5,1,13/01/2023\n"), "trips", workspace, types={"fare": "text"}
        )
    with pytest.raises(IngestError, match="lacks fare"):
        ingest_files(put(tmp_path / "d.csv", "id,when\n5,13/01/2023\n"), "trips", workspace)


def test_column_names_become_unique(tmp_path, workspace):
    report = take(tmp_path, workspace, "fare,,fare,Fare\n1,2,3,4\n")
    assert list(report.types) == ["fare", "column1", "fare_2", "Fare_3"] or list(report.types) == [
        "fare",
        "column1",
        "fare_2",
        "Fare_2",
    ]
    assert sum("in the header; called" in note for note in report.notes) == 3


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, workspace, codec, end):
    report = take(tmp_path, workspace, f"id,street{end}1,Straße{end}2,Allée{end}".encode(codec))
    assert report.types == {"id": "int", "street": "text"}
    assert rows(workspace, "trips")["street"].to_pylist() == ["Straße", "Allée"]


def test_quotes_line_breaks_and_line_numbers(tmp_path, workspace):
    text = 'id,note\n1,"two\nlines, ""quoted"""\n2,5" pipe\nx,late\n3,"open\n4,fine\n'
    report = take(tmp_path, workspace, text, types={"id": "int"})
    assert (report.rows, report.stored, report.rejected) == (5, 3, 2)
    assert rows(workspace, "trips")["note"].to_pylist() == ['two\nlines, "quoted"', '5" pipe', "fine"]
    assert [(r["line"], r["raw"]) for r in rows(workspace, "trips__rejects").to_pylist()] == [
        (5, "x,late"),
        (6, '3,"open'),
    ]


def test_blocks_do_not_matter(tmp_path, workspace, monkeypatch):
    """The same file in blocks of any size: the same rows, lines and rejects."""
    text = "id,note\n" + "".join(f'{i},"a\n{i}"\n' if i % 3 else f"{i},b\n" for i in range(50)) + "x,c\n1,2,3\n"
    results = []
    for size in (7, 64, 1 << 20):
        monkeypatch.setattr("slml.tables.dialect.utf8_blocks.__defaults__", (size,))
        table = f"trips{size}"
        report = take(tmp_path, workspace, text, table, types={"id": "int"})
        rejects = sorted((r["line"], r["raw"]) for r in rows(workspace, f"{table}__rejects").to_pylist())
        results.append((report.rows, report.stored, rows(workspace, table).to_pydict(), rejects))
    assert results[0] == results[1] == results[2]
    assert results[0][:2] == (52, 50)


def test_an_unbalanced_report_cannot_be_made():
    with pytest.raises(LedgerError, match="do not add up"):
        IngestReport("trips", "", "", (), rows=3, stored=1, rejected=1)


def test_report_reads_well(tmp_path, workspace):
    report = take(tmp_path, workspace, TRIPS + "3,4\n")
    assert str(report).startswith(
        "trips: 3 rows in 1 file = 2 stored + 1 rejected\n  rejects: in the table trips__rejects"
    )
    assert "<td>2</td>" in report._repr_html_()


def test_parquet_types_are_brought_to_the_six(tmp_path, workspace):
    when = pa.array([datetime(2023, 1, 1, 10)] * 2, pa.timestamp("ns", "Europe/Berlin"))
    price = pa.array(["1.25", "2.50"]).cast(pa.decimal128(9, 2))
    table = pa.table(
        {
            "small": pa.array([1, None], pa.int16()),
            "single": pa.array([0.5, 1.5], pa.float32()),
            "coded": pa.array(["a", "b"]).dictionary_encode(),
            "when": when,
            "many": pa.array([[1, 2], None]),
            "raw": pa.array([b"\xff", b"\x00"]),
            "price": price,
            "nothing": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "odd.parquet")
    report = ingest_files(str(tmp_path / "odd.parquet"), "odd", workspace)
    assert list(report.types.values()) == ["int", "float", "text", "timestamp", "text", "text", "float", "text"]
    stored = rows(workspace, "odd").to_pydict()
    assert stored["many"] == ["[1,2]", None]
    assert stored["raw"] == ["ff", "00"]
    assert stored["price"] == [1.25, 2.5]
    assert len(report.notes) == 4


def test_parquet_with_declared_types(tmp_path, workspace):
    pq.write_table(pa.table({"id": ["1", "x", None]}), tmp_path / "ids.parquet")
    report = ingest_files(str(tmp_path / "ids.parquet"), "ids", workspace, types={"id": "int"})
    assert (report.stored, report.rejected) == (2, 1)
    assert rows(workspace, "ids__rejects").to_pylist()[0]["raw"] == '{"id": "x"}'


REAL = {  # source: rows, some types
    "nyc_coordinates": (13_611, {"passengers": "float", "pickup_datetime": "timestamp"}),
    "chicago_taxi": (15_002, {"fare": "float", "company": "text"}),
    "california_housing": (20_640, {"total_bedrooms": "float", "ocean_proximity": "text"}),
    "bike_sharing": (17_379, {"dteday": "date", "cnt": "int"}),
    "diamonds": (53_940, {"carat": "float", "price": "int"}),
    "adult/adult-train.csv": (32_561, {"column0": "int", "column14": "text"}),
    "nyc_green": (62_495 + 69_399 + 68_211 + 64_809, {"fare_amount": "float", "ehail_fee": "float"}),
    "dc_taxi/malamudj_2023_head_tail.txt": (10, {"ORIGINZIP": "text", "ORIGINDATETIME_TR": "timestamp"}),
}


@pytest.mark.parametrize("source", REAL)
def test_real_files(shared_data, workspace, source):
    report = ingest_files(str(shared_data / source), "real", workspace)
    expected, types = REAL[source]
    assert report.rows == report.stored == expected == Catalog(workspace).snapshot("real").rows
    assert types.items() <= report.types.items()
