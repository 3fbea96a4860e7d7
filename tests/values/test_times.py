"""Times: what a file says at ingest, in queries, training, requests and batch prediction is the same moment."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import ibis
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from slml.contract.columns import Column
from slml.contract.contract import Contract
from slml.errors import IngestError
from slml.features.encoder import Encoder
from slml.monitoring.drift import drift
from slml.quality.clean import clean
from slml.quality.column_profile import as_type
from slml.quality.infer import infer
from slml.quality.profile import profile
from slml.quality.text_times import text_as_time
from slml.serving.arrow import check_table
from slml.serving.batch import declared_texts
from slml.serving.log_rows import log_schema
from slml.serving.predictor import Encoding, encoders
from slml.serving.request import Reader, RequestError, Terms
from slml.tables.catalog import Catalog
from slml.tables.ingest import IngestReport, ingest_files
from slml.tables.time_columns import parse_times, parsing_connection, read_times
from slml.tables.times import FAMILIES, as_declared, has_offset, naive_zone, read_time
from slml.tables.types import TypeFinder, find_type
from slml.workspace import Workspace

ZONES = (
    "UTC",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "-03:30",
)
CONNECTION = parsing_connection()
QUERIES = ibis.duckdb.connect()
QUERIES.raw_sql("SET TimeZone = 'UTC'")


def take(tmp_path: Path, workspace: Workspace, lines: list[str], name: str = "t", **options: object) -> IngestReport:
    (tmp_path / f"{name}.csv").write_text(
        "at,y\n" + "".join(f"{line},{n % 7 + n / 7}\n" for n, line in enumerate(lines))
    )
    return ingest_files(str(tmp_path / f"{name}.csv"), name, workspace, **options)


def stored(workspace: Workspace, name: str = "t", column: str = "at") -> pa.ChunkedArray:
    files = [file.removeprefix("file://") for file in Catalog(workspace).snapshot(name).files]
    return pa.concat_tables([pq.read_table(file) for file in files])[column]


def or_none(read, *arguments: object) -> object:
    try:
        return read(*arguments)
    except ValueError:
        return None


# One reading: a value, a column, a query

MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))
SPELLINGS = [format for family in FAMILIES.values() for format in family]


def spell(moment: datetime, format: str, offset: str) -> str:
    "A moment in a format, as Python writes it."
    text = (
        format.replace("%Y", f"{moment.year:04}").replace("%G", f"{moment.isocalendar()[0]:04}").replace("%z", offset)
    )
    return moment.strftime(text)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(MOMENTS, st.sampled_from(SPELLINGS), st.sampled_from(["+02", "-0330", "+05:30", "+24:00"]))),
    st.lists(st.text("0123456789-/:. TZ+UC", max_size=25)),
    st.sampled_from(list(FAMILIES)),
)
def test_a_value_and_a_column_are_read_alike(moments: list, others: list[str], family: str) -> None:
    texts = [spell(*one) for one in moments] + others
    formats = FAMILIES[family]
    column = parse_times(pa.array(texts, pa.string()), formats, CONNECTION).to_pylist()
    values = [or_none(read_time, text, formats) for text in texts]
    assert column == [value and value.replace(tzinfo=None) for value in values]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1)), st.sampled_from(FAMILIES["year first"]))
    ),
    st.sampled_from(ZONES),
    st.booleans(),
)
def test_a_query_reads_as_python_does(moments: list, zone: str, instant: bool) -> None:
    texts = [spell(moment, format, "+02:00") for moment, format in moments] + ["n/a", "24-12-31"]
    right = [or_none(lambda text: as_declared(read_time(text), instant, zone), text) for text in texts]
    rows = ibis.memtable(pa.table({"text": texts}))
    query = rows.select(time=text_as_time(rows.text, "", instant, zone))
    assert QUERIES.to_pyarrow(query)["time"].to_pylist() == right
    assert read_times(pa.array(texts), (), instant, zone, CONNECTION).to_pylist() == right


@settings(max_examples=60, deadline=None)
@given(st.datetimes(datetime(1975, 1, 1), datetime(2037, 1, 1)), st.sampled_from(ZONES[:-1]))
def test_a_naive_time_is_the_instant_that_zoneinfo_says(moment: datetime, zone: str) -> None:
    right = moment.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    assert as_declared(moment, True, zone) == right
    texts = pa.array([moment.isoformat(" ")])
    assert read_times(texts, (), True, zone, CONNECTION).to_pylist() == [right]


def test_hours_that_are_shown_twice_or_not_at_all_are_no_fault() -> None:
    for text in ("2023-03-12 02:30", "2023-11-05 01:30"):
        right = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("America/New_York")).astimezone(UTC)
        rows = ibis.memtable(pa.table({"text": [text]}))
        query = rows.select(time=text_as_time(rows.text, "", True, "America/New_York"))
        assert QUERIES.to_pyarrow(query)["time"].to_pylist() == [right]
        assert as_declared(read_time(text), True, "America/New_York") == right


# What ingest makes of a column


def found(*texts: str) -> tuple[str, str]:
    finder = TypeFinder("at", CONNECTION)
    finder.add(pa.array(texts))
    type, note = find_type(finder)
    return str(type), str(note)


TWELVE_DAYS = [f"{day:02}/{day:02}/24" for day in range(1, 13)]


@pytest.mark.parametrize(
    ("texts", "type", "told"),
    [
        (["31-07-24", "10-10-24"], "date %d-%m-%y", "two digits"),
        (["7/31/24", "10/10/69"], "date %m/%d/%y", "1969 to 2068"),
        (["2/3/08", "31/3/15"], "date %d/%m/%y", "day first"),
        (TWELVE_DAYS, "text", "ambiguous date"),
        (["24-07-31", "99-12-13"], "date %y-%m-%d", "short year first"),
        (["31-Jul-24", "01-Aug-24"], "date %d-%b-%y", "two digits"),
        (["20141013T000000", "20151231T235959"], "timestamp %Y%m%dT%H%M%S", "without signs"),
        (["20141013", "20151231"], "date %Y%m%d", "Declare it int"),
        (["20141013000000", "20151231235959"], "timestamp %Y%m%d%H%M%S", "without signs"),
        (["20141013", "20151331"], "int", ""),
        (["2024-10-10 24:00:00", "2024-10-10 07:00:00"], "timestamp %Y-%m-%d %H:%M:%S", ""),
        (["2024-10-10T12:00:00Z"], "timestamp %Y-%m-%dT%H:%M:%SZ", "taken in UTC"),
        (["2024-10-10T12:00-03:30"], "timestamp %Y-%m-%dT%H:%M%z", "in -03:30"),
        (["2024-10-10T12:00:00.000000001Z"], "timestamp %Y-%m-%dT%H:%M:%S.%fZ", "below the microsecond"),
        (["2024-10-10T12:00:00Z", "2024-10-10T12:00:00"], "text", "Declare 'timestamp in America/New_York'"),
        (["2024-10-10T12:00Z", "2024-10-10T12:00", "NA"], "text", "1 values have an offset"),
        (["2024-10-10 12:00:00 EST"], "text", "name of a zone"),
        (["0:30", "25:30"], "text", "without a day"),
        (["-0044-03-15"], "text", "before the year 1"),
        ([str(1728561600000 + n) for n in range(20)], "int", "milliseconds since 1970"),
        (["2024-W01-1", "2024-W52-7"], "date %G-W%V-%u", "week"),
        (["2024-07", "2024-10"], "date %Y-%m", "month"),
    ],
)  # fmt: skip
def test_what_a_column_is_found_to_be(texts: list[str], type: str, told: str) -> None:
    answer, note = found(*texts)
    assert answer == type
    assert told in note
    assert told or not note


def test_offsets_and_utc_do_not_mix_up(tmp_path: Path, workspace: Workspace) -> None:
    lines = ["2024-07-01T10:00:00+02:00", "2024-07-01T10:00:00Z", "2024-07-01 10:00:00 UTC", "2024-07-01T10:00:00-0400"]
    take(tmp_path, workspace, lines * 3)
    assert stored(workspace).type == pa.timestamp("us", "UTC")
    assert [t.hour for t in stored(workspace).to_pylist()[:4]] == [8, 10, 10, 14]


def test_a_declared_zone_reads_the_naive_ones(tmp_path: Path, workspace: Workspace) -> None:
    lines = ["2024-07-01T07:30:00", "2024-07-01T07:30:00-04:00", "2024-01-01T07:30:00"]
    report = take(tmp_path, workspace, lines, types={"at": "timestamp in America/New_York"})
    assert report.rejected == 0
    assert [t.hour for t in stored(workspace).to_pylist()] == [11, 11, 12]
    column = infer("t", target="y", workspace=workspace).columns[0]
    assert (column.instant, column.zone, column.format) == (True, "America/New_York", "")


def test_an_offset_is_rejected_where_a_wall_clock_is_declared(tmp_path: Path, workspace: Workspace) -> None:
    report = take(tmp_path, workspace, ["2024-07-01T07:30:00", "2024-07-01T07:30:00-04:00"], types={"at": "timestamp"})
    assert (report.stored, report.rejected) == (1, 1)


def test_naive_times_do_not_join_a_table_of_instants(tmp_path: Path, workspace: Workspace) -> None:
    take(tmp_path, workspace, ["2024-07-01T07:30:00-04:00"] * 3)
    (tmp_path / "more.csv").write_text("at,y\n2024-07-02T07:30:00,1.5\n")
    with pytest.raises(IngestError, match="do not fit the table"):
        ingest_files(str(tmp_path / "more.csv"), "t", workspace)
    ingest_files(str(tmp_path / "more.csv"), "t", workspace, types={"at": "timestamp in America/New_York"})
    assert stored(workspace).to_pylist()[-1] == datetime(2024, 7, 2, 11, 30, tzinfo=UTC)


def test_days_that_stand_for_none_are_named(tmp_path: Path, workspace: Workspace) -> None:
    days = [(date(2024, 1, 1) + timedelta(days=n)).isoformat() for n in range(60)]
    take(tmp_path, workspace, [*days, "9999-12-31", "9999-12-31", "0000-00-00"])
    contract = infer("t", target="y", workspace=workspace)
    (note,) = [note for note in contract.notes if "9999-12-31" in note]
    assert "in 2 rows" in note
    assert "Between" in note
    assert contract.columns[0].nulls == ("0000-00-00",)
    assert contract.columns[0].nullable


# The same moment at every stage

MONDAY = datetime(2024, 3, 4, 12, tzinfo=UTC)
STAGES = {  # spelling of the file, zone in the contract -> spellings of a request
    "offsets": ("%Y-%m-%dT%H:%M:%S%z", "America/New_York"),
    "utc": ("%Y-%m-%d %H:%M:%SZ", ""),
    "a wall clock": ("%d.%m.%Y %H:%M", ""),
    "two digits": ("%d/%m/%y %H:%M", "Europe/Berlin"),
    "compact": ("%Y%m%dT%H%M%S", ""),
}


@pytest.mark.parametrize("case", STAGES)
def test_training_json_arrow_and_batch_encode_alike(case: str, tmp_path: Path, workspace: Workspace) -> None:
    format, zone = STAGES[case]
    place = UTC if format.endswith("Z") else ZoneInfo("America/New_York")
    moments = [(MONDAY + timedelta(hours=7 * n)).astimezone(place) for n in range(120)]
    texts = [moment.strftime(format) for moment in moments]
    take(tmp_path, workspace, texts)
    contract = infer("t", target="y", workspace=workspace)
    column = contract.column("at")
    assert column.type == "timestamp"
    assert column.instant == has_offset(format)
    changed = column.model_copy(update={"zone": zone})
    contract = contract.replace(columns=tuple(changed if c.name == "at" else c for c in contract.columns))
    kept = clean("t", contract, workspace=workspace)
    assert kept.quarantined == 0
    rows, raw = (
        pa.table({"at": stored(workspace, name), "y": stored(workspace, name, "y")}) for name in ("t_kept", "t")
    )
    encoder = Encoder.fit(rows, contract)
    clock = [moment.replace(tzinfo=None) for moment in moments]
    if column.instant:
        clock = [moment.astimezone(ZoneInfo(zone or "UTC")).replace(tzinfo=None) for moment in moments]
    right = [int((moment - datetime(1970, 1, 1)).total_seconds()) for moment in clock]
    assert sorted(encoder.arrays(rows)["at"].tolist()) == sorted(right)
    bundle = SimpleNamespace(encoder=encoder, contract=contract)
    assert encoder.arrays(declared_texts(bundle, raw.combine_chunks().to_batches()[0]))["at"].tolist() == right
    terms = msgspec.json.decode(contract.to_json(), type=Terms)
    encoding = msgspec.json.decode(encoder.model_dump_json(), type=Encoding)
    reader = Reader(terms, [i.column for i in encoding.inputs])
    (encode,) = encoders(encoding, {c.name: c.type for c in terms.columns})
    body = msgspec.json.encode({"rows": [{"at": text} for text in texts]})
    assert [encode(row.c0) for row in reader(body).rows] == right
    iso = [raw["at"][n].as_py().isoformat() for n in range(len(texts))]
    assert [encode(row.c0) for row in reader(msgspec.json.encode({"rows": [{"at": t} for t in iso]})).rows] == right
    for request in (raw["at"], pa.chunked_array([pa.array(texts)])):
        assert encoder.arrays(check_table(pa.table({"at": request}), reader))["at"].tolist() == right
    seen = as_type(raw["at"].combine_chunks(), changed).cast(pa.int64()).to_numpy() // 1_000_000
    assert seen.tolist() == right
    assert log_schema(contract).field("at").type == raw["at"].type


def terms_of(column: Column) -> Reader:
    contract = Contract(name="t", columns=(column,))
    return Reader(msgspec.json.decode(contract.to_json(), type=Terms), ["at"])


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (Column("at", "timestamp", instant=True), "2024-07-01T07:30:00", "with its offset"),
        (Column("at", "timestamp", instant=True, zone="America/New_York", format="%Y-%m-%dT%H:%M:%S%z"),
         "2024-07-01T07:30:00", "with its offset"),
        (Column("at", "timestamp"), "2024-07-01T07:30:00-04:00", "a moment, such as"),
        (Column("at", "timestamp"), "2024-07-01T07:30:00Z", "a moment, such as"),
    ],
)  # fmt: skip
def test_a_request_is_refused_rather_than_moved_by_hours(column: Column, value: str, expected: str) -> None:
    reader = terms_of(column)
    with pytest.raises(RequestError) as refused:
        reader(msgspec.json.encode({"at": value}))
    assert refused.value.faults[0].field == "at"
    assert expected in refused.value.faults[0].expected
    moment = datetime.fromisoformat(value)
    for values in (pa.array([value]), pa.array([moment], pa.timestamp("us", "UTC" if moment.tzinfo else None))):
        with pytest.raises(RequestError) as refused:
            check_table(pa.table({"at": values}), reader)
        assert expected in refused.value.faults[0].expected


def test_two_spellings_of_one_instant_are_one() -> None:
    reader = terms_of(Column("at", "timestamp", instant=True, zone="America/New_York"))
    spellings = ("2024-07-01T07:30:00-04:00", "2024-07-01T11:30:00Z", "2024-07-01 13:30:00+02", "2024-07-01T07:30:00")
    moments = {reader(msgspec.json.encode({"at": spelling})).rows[0].c0 for spelling in spellings}
    assert moments == {datetime(2024, 7, 1, 11, 30, tzinfo=UTC)}


def test_texts_of_a_declared_timestamp_keep_their_offset(tmp_path: Path, workspace: Workspace) -> None:
    take(tmp_path, workspace, ["2024-07-01T07:30:00-04:00", "2024-07-01T07:30:00", "odd"] * 5, types={"at": "text"})
    for column, right in (
        (Column("at", "timestamp", instant=True), [datetime(2024, 7, 1, 11, 30, tzinfo=UTC)]),
        (Column("at", "timestamp", instant=True, zone="Europe/Berlin"),
         [datetime(2024, 7, 1, 5, 30, tzinfo=UTC), datetime(2024, 7, 1, 11, 30, tzinfo=UTC)]),
        (Column("at", "timestamp"), [datetime(2024, 7, 1, 7, 30)]),
    ):  # fmt: skip
        contract = Contract(name="t", columns=(column, Column("y", "float")))
        clean("t", contract, workspace=workspace)
        assert sorted(set(stored(workspace, "t_kept").to_pylist())) == right


def test_years_that_python_cannot_name_are_refused_by_name() -> None:
    reader = terms_of(Column("at", "timestamp"))
    with pytest.raises(RequestError) as refused:
        check_table(pa.table({"at": pa.array([2**60], pa.timestamp("us"))}), reader)
    assert refused.value.faults[0].field == "at"


# Summer time


@pytest.mark.parametrize("zone", ["", "America/New_York"])
def test_an_hour_that_clocks_leave_out_is_not_missing(zone: str) -> None:
    contract = Contract(name="t", columns=(Column("at", "timestamp", zone=zone),), time="at")
    start = datetime(2023, 2, 1)
    usual = [start + timedelta(minutes=n) for n in range(0, 60 * 24 * 35, 2)]
    day = [datetime(2023, 3, 12) + timedelta(seconds=20 * n) for n in range(3 * 1440)]
    day = [moment for moment in day if moment.hour != 2]
    reference, today = (profile(pa.table({"at": pa.array(t, pa.timestamp("us"))}), contract) for t in (usual, day))
    kinds = {finding.kind for finding in drift(reference, today, contract).findings}
    assert ("missing hours" in kinds) == (not zone)


def test_naive_zone_is_where_the_formats_allow_it() -> None:
    assert naive_zone((), "UTC") == "UTC"
    assert naive_zone(("%H:%M",), "UTC") == "UTC"
    assert naive_zone(("%H:%M%z",), "UTC") == "" == naive_zone(("%H:%M",), "")
