"""Samples and splits follow from the rows and a seed, and from nothing else."""

import itertools
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slml.errors import SamplingError, UsageError
from slml.sampling.sample import prefix, sample
from slml.sampling.split import CIRCLE, Part, Split, condition, mask, plot_split, rotate, seed_start, split
from slml.tables.catalog import Catalog, Snapshot
from slml.tables.engine import open_engine
from slml.tables.rowhash import ROW_HASH, row_hash
from slml.workspace import Workspace

SHARES = {"train": 0.64, "valid": 0.16, "test": 0.2}
ROWS = 5_000


def trips(rows: int = ROWS) -> pa.Table:
    """Trips by car: each car has several, which share the row hash; two of them are equal in everything."""
    random = np.random.default_rng(0)
    begun = [datetime(2023, 1, 1) + timedelta(hours=int(h)) for h in random.integers(0, 24 * 60, rows)]
    table = pa.table(
        {
            "car": pa.array([f"car {n}" for n in random.integers(0, rows // 3, rows)]),
            "fare": pa.array(random.gamma(4, 4, rows).round(2), mask=random.random(rows) < 0.1),
            "begun": pa.array(begun, pa.timestamp("us")),
            "day": pa.array([moment.date() for moment in begun], pa.date32()),
            "zoned": pa.array(begun, pa.timestamp("us", "UTC")),
            "trip": pa.array(range(rows)),
        }
    )
    return pa.concat_tables([table, table.slice(7, 1)])


@pytest.fixture
def tables(workspace: Workspace):
    """Something that stores a table as cleaning does, and an engine to read it."""
    catalog = Catalog(workspace)

    def store(name: str, table: pa.Table, ordered: bool = True, pieces: int = 1) -> Snapshot:
        table = table.append_column(ROW_HASH, row_hash([table["car"]]))
        table = table.sort_by(ROW_HASH) if ordered else table
        size = -(-table.num_rows // pieces)
        for n in range(pieces):
            snapshot = catalog.table(name).append(table.slice(n * size, size))
        return snapshot

    with open_engine(workspace) as engine:
        yield store, engine


def members(engine, expression) -> list[int]:
    return sorted(engine.read(expression)["trip"].to_pylist())


def test_parts_are_disjoint_complete_and_of_their_size(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    parts = split(snapshot, engine, SHARES, seed=3)
    part_rows = {name: engine.read(part.filter(engine.table(snapshot))) for name, part in parts.parts.items()}
    assert sorted(trip for rows in part_rows.values() for trip in rows["trip"].to_pylist()) == sorted(
        trips()["trip"].to_pylist()
    )
    assert {name: rows.num_rows for name, rows in part_rows.items()} == parts.rows
    assert parts.total == ROWS + 1
    for name, share in SHARES.items():
        assert parts.rows[name] / parts.total == pytest.approx(share, abs=0.04)
    cars = [set(rows["car"].to_pylist()) for rows in part_rows.values()]
    assert not cars[0] & cars[1]
    assert not cars[0] & cars[2]
    assert not cars[1] & cars[2]


def test_neither_the_order_of_rows_nor_the_files_matter(tables) -> None:
    store, engine = tables
    rows = trips()
    mixed = rows.take(np.random.default_rng(1).permutation(rows.num_rows))
    one, many = store("one", rows), store("many", mixed, ordered=False, pieces=7)
    assert len(many.files) == 7
    first, second = split(one, engine, SHARES, seed=5), split(many, engine, SHARES, seed=5)
    assert first.parts == second.parts
    assert first.rows == second.rows
    for name, part in first.parts.items():
        assert members(engine, part.filter(engine.table(one))) == members(engine, part.filter(engine.table(many))), name
    for count in (1, 17, 500):
        expected = engine.read(sample(one, engine, rows=count, seed=2))
        assert engine.read(sample(many, engine, rows=count, seed=2)) == expected, "the same rows in the same order"


def test_a_seed_means_the_same_for_ever() -> None:
    """These numbers are part of every run ever recorded: they must not change."""
    assert [seed_start(seed) for seed in (0, 1, 42)] == [8147104208329303767, 3980143261097177850, 283244664701664340]
    assert rotate([(0, CIRCLE // 5)], seed_start(0)) == (
        (0, 768406578845483120),
        (8147104208329303767, 9223372036854775808),
    )


def test_another_seed_gives_another_split(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    tests = [set(members(engine, split(snapshot, engine, SHARES, seed).part("test").filter(engine.table(snapshot))))
             for seed in (0, 1)]  # fmt: skip
    assert len(tests[0] & tests[1]) < 0.9 * len(tests[0])


def test_json_there_and_back(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    for time in ("", "begun", "day"):
        parts = split(snapshot, engine, SHARES, time=time)
        assert Split.from_json(parts.to_json()) == parts
        assert "valid" in parts._repr_html_()


@pytest.mark.parametrize("time", ["begun", "day", "zoned"])
def test_by_time_later_rows_are_tested_and_equal_times_stay_together(tables, time: str) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    parts = split(snapshot, engine, SHARES, time=time)
    part_rows = [engine.read(part.filter(engine.table(snapshot)))[time].to_pylist() for part in parts.parts.values()]
    assert max(part_rows[0]) < min(part_rows[1])
    assert max(part_rows[1]) < min(part_rows[2])
    assert sum(map(len, part_rows)) == parts.total == sum(parts.rows.values())
    for name, share in SHARES.items():
        assert parts.rows[name] / parts.total == pytest.approx(share, abs=0.02), "a day holds 1.7 % of the rows"


def test_by_time_the_cut_is_the_nearest_there_is(tables) -> None:
    """Of 100 rows 70 have one time: the cut for 64 rows comes after these 70, not before them."""
    store, engine = tables
    hours = [0] * 70 + [1] * 15 + [30] * 15
    times = pa.array([datetime(2023, 1, 1) + timedelta(hours=hour) for hour in hours], pa.timestamp("us"))
    table = pa.table({"car": [f"car {n}" for n in range(100)], "trip": range(100), "begun": times})
    parts = split(store("few", table), engine, {"train": 0.64, "test": 0.36}, time="begun")
    assert parts.rows == {"train": 70, "test": 30}
    assert parts.parts["test"].time_low == "2023-01-01T01:00:00"


def test_by_time_what_is_left_over_is_the_oldest(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    parts = split(snapshot, engine, {"train": 0.3, "test": 0.1}, time="begun")
    rows_of_part = engine.read(parts.part("test").filter(engine.table(snapshot)))["begun"].to_pylist()
    assert max(rows_of_part) == max(trips()["begun"].to_pylist())
    assert sum(parts.rows.values()) == pytest.approx(0.4 * parts.total, rel=0.01)


def test_the_engine_and_arrow_agree_about_every_part(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    table, (all_rows,) = engine.table(snapshot), engine.read(engine.table(snapshot)).combine_chunks().to_batches()
    parts = [
        Part(),
        Part(ranges=((0, 5), (CIRCLE // 2, CIRCLE))),
        Part(ranges=()),
        Part(time_column="begun", time_low="2023-01-03T00:00:00", time_high="2023-01-05T12:00:00"),
        Part(time_column="day", time_low="2023-01-03", time_high="2023-01-05"),
        Part(time_column="zoned", time_low="2023-01-03T00:00:00+00:00", time_high="2023-01-05T12:00:00+00:00"),
        Part(ranges=((0, CIRCLE // 3),), time_column="begun", time_low="2023-01-03", time_high="2023-02-05"),
    ]
    sizes = []
    for part in parts:
        rows_of_part = sorted(part.keep(all_rows)["trip"].to_pylist())
        assert rows_of_part == members(engine, part.filter(table)), part
        assert (
            len(rows_of_part)
            == engine.read(table.aggregate(n=table.count(where=condition(part, table))))["n"][0].as_py()
        )
        assert len(rows_of_part) == sum(mask(part, all_rows).to_pylist())
        sizes.append(len(rows_of_part))
    assert sizes[0] == ROWS + 1
    assert sizes[2] == 0
    assert all(0 < size < ROWS for size in (*sizes[1:2], *sizes[3:]))


def test_a_sample_has_exactly_the_rows_and_grows_by_inclusion(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    sizes = [1, 10, 100, 1_000, ROWS + 1]
    drawn = [members(engine, sample(snapshot, engine, rows=size, seed=4)) for size in sizes]
    assert [len(rows) for rows in drawn] == sizes
    for smaller, larger in itertools.pairwise(drawn):
        assert set(smaller) <= set(larger)
    assert len(members(engine, sample(snapshot, engine, share=1.0))) == ROWS + 1
    assert len(members(engine, sample(snapshot, engine, share=0.2))) == pytest.approx(0.2 * ROWS, rel=0.15)


def test_a_sample_of_a_part_stays_in_it(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    for time in ("", "begun"):
        part = split(snapshot, engine, SHARES, time=time).part("valid")
        inside = set(members(engine, part.filter(engine.table(snapshot))))
        for seed in (0, 9):
            drawn = members(engine, sample(snapshot, engine, rows=200, seed=seed, part=part))
            assert len(drawn) == 200
            assert set(drawn) <= inside
            assert set(members(engine, sample(snapshot, engine, share=0.5, seed=seed, part=part))) < inside


def test_a_sample_where_most_rows_share_a_key(tables) -> None:
    """The first guess at where the n-th row lies is far off; the answer is not."""
    store, engine = tables
    rows = trips(2_000)
    rows = rows.set_column(0, "car", pa.array(["car 0"] * 1_900 + [f"car {n}" for n in range(101)]))
    snapshot = store("skewed", rows)
    for seed in range(3):
        assert engine.read(sample(snapshot, engine, rows=150, seed=seed)).num_rows == 150


@given(st.integers(0, CIRCLE - 1), st.integers(1, CIRCLE), st.integers(-(2**70), 2**70))
def test_turning_keeps_the_width_and_turns_back(low: int, width: int, by: int) -> None:
    ranges = rotate([(low, low + width)], by)
    assert sum(end - begin for begin, end in ranges) == width
    assert all(0 <= begin < end <= CIRCLE for begin, end in ranges)
    assert rotate(ranges, -by) == rotate([(low, low + width)], 0)


@given(st.floats(0.001, 1), st.integers(0, 100))
def test_a_larger_share_contains_a_smaller_one(share: float, seed: int) -> None:
    part = Part(ranges=((5, CIRCLE // 3), (CIRCLE // 2, CIRCLE)))
    small, large = prefix(part, share / 2, seed), prefix(part, share, seed)
    for low, high in small.ranges:
        assert any(begin <= low and high <= end for begin, end in large.ranges)


@pytest.mark.parametrize(
    "shares", [{}, {"train": 0.0, "test": 1.0}, {"train": -1.0}, {"train": 0.9, "test": 0.2}, {"train": float("nan")}]
)
def test_shares_that_make_no_split(tables, shares: dict) -> None:
    store, engine = tables
    with pytest.raises(UsageError, match="expected:"):
        split(store("trips", trips(50)), engine, shares)


def test_too_few_rows(tables) -> None:
    store, engine = tables
    with pytest.raises(SamplingError, match=r"too few rows[\s\S]*at least 10 rows in each part[\s\S]*'test'"):
        split(store("trips", trips(30)), engine, SHARES)
    with pytest.raises(SamplingError, match="at most 51 rows"):
        sample(store("few", trips(50)), engine, rows=52)


def test_one_time_only_cannot_be_split_by_time(tables) -> None:
    store, engine = tables
    table = trips(100)
    table = table.set_column(2, "begun", pa.array([datetime(2023, 1, 1)] * table.num_rows, pa.timestamp("us")))
    with pytest.raises(SamplingError, match="0 rows in"):
        split(store("still", table), engine, SHARES, time="begun")


def test_columns_that_cannot_decide(tables) -> None:
    store, engine = tables
    table = trips(100)
    some = pa.array([None, *table["begun"].to_pylist()[1:]], pa.timestamp("us"))
    snapshot = store("trips", table.set_column(2, "begun", some))
    with pytest.raises(SamplingError, match=r"1 rows have no 'begun'[\s\S]*NotNull"):
        split(snapshot, engine, SHARES, time="begun")
    with pytest.raises(SamplingError, match="holds no times"):
        split(snapshot, engine, SHARES, time="car")
    with pytest.raises(SamplingError, match="did you mean 'begun'"):
        split(snapshot, engine, SHARES, time="begin")


def test_a_raw_table_has_no_hash_to_go_by(workspace: Workspace) -> None:
    snapshot = Catalog(workspace).table("raw").append(trips(50))
    with open_engine(workspace) as engine:
        for draw in (lambda: split(snapshot, engine, SHARES), lambda: sample(snapshot, engine, rows=5)):
            with pytest.raises(SamplingError, match="clean the table first"):
                draw()


def test_calls_that_are_wrong(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips(100))
    for wrong in ({}, {"rows": 5, "share": 0.5}, {"rows": 0}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(UsageError):
            sample(snapshot, engine, **wrong)
    with pytest.raises(UsageError, match="did you mean 'train'"):
        split(snapshot, engine, {"train": 0.5, "test": 0.5}).part("trian")


def test_plots(tables) -> None:
    store, engine = tables
    snapshot = store("trips", trips())
    assert plot_split(split(snapshot, engine, SHARES)).name == "polar"
    assert len(plot_split(split(snapshot, engine, SHARES, time="day")).patches) == 3


def test_dates_as_edges_are_dates(tables) -> None:
    store, engine = tables
    part = split(store("trips", trips()), engine, SHARES, time="day").part("test")
    assert date.fromisoformat(part.time_low) < date.fromisoformat(part.time_high)


def test_a_real_month(shared_data, workspace: Workspace) -> None:
    """Some of its trips begin years before the month: the cuts are found all the same."""
    raw = pq.read_table(shared_data / "nyc_green" / "green_tripdata_2023-01.parquet")
    raw = raw.select(["lpep_pickup_datetime", "PULocationID", "fare_amount"])
    raw = raw.append_column(ROW_HASH, row_hash(raw.columns)).sort_by(ROW_HASH)
    snapshot = Catalog(workspace).table("green").append(raw)
    with open_engine(workspace) as engine:
        for time, off in (("", 0.01), ("lpep_pickup_datetime", 0.0002)):
            parts = split(snapshot, engine, SHARES, time=time)
            assert sum(parts.rows.values()) == raw.num_rows == 68_211
            for name, share in SHARES.items():
                assert parts.rows[name] / parts.total == pytest.approx(share, abs=off)
        drawn = engine.read(sample(snapshot, engine, rows=5_000, part=parts.part("test")))
        assert drawn.num_rows == 5_000
        assert min(drawn["lpep_pickup_datetime"].to_pylist()) >= datetime.fromisoformat(parts.part("test").time_low)
