"""Training sees every row of its part once an epoch, in an order that can be had again."""

import threading
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from slml.errors import StorageError, TrainingError, UsageError
from slml.features.encoder import Batch
from slml.sampling.split import CIRCLE, Part, rotate
from slml.tables.rowhash import ROW_HASH, row_hash
from slml.training.loader import Loader, read_ahead

ROWS = 10_000
WHOLE = Part()
WRAPPED = Part(ranges=rotate([(0, CIRCLE // 3)], CIRCLE - CIRCLE // 6))  # both ends of the circle
TIMED = Part(time_column="begun", time_low="2023-01-03T00:00:00", time_high="2023-01-20T12:00:00")
BOTH = WRAPPED.model_copy(update=TIMED.model_dump(exclude={"ranges"}))
PARTS = pytest.mark.parametrize("part", [WHOLE, WRAPPED, TIMED, BOTH], ids=["whole", "wrapped", "timed", "both"])
STREAMED = 1_000  # a buffer much smaller than the part
SIZES = pytest.mark.parametrize("buffer_rows", [STREAMED, 1_048_576], ids=["streamed", "memory"])


@pytest.fixture(scope="session")
def table() -> pa.Table:
    random = np.random.default_rng(0)
    begun = [datetime(2023, 1, 1) + timedelta(minutes=int(m)) for m in random.integers(0, 60 * 24 * 30, ROWS)]
    data = pa.table(
        {
            "trip": pa.array(range(ROWS)),
            "fare": random.gamma(4, 4, ROWS),
            "place": pa.array([{"zone": int(n)} for n in random.integers(0, 9, ROWS)]),  # a nested column in between
            "begun": pa.array(begun, pa.timestamp("us")),
        }
    )
    return data.append_column(ROW_HASH, row_hash([data["trip"]])).sort_by(ROW_HASH)


@pytest.fixture
def files(table: pa.Table, tmp_path: Path) -> list[str]:
    """Three files, as cleaning writes them: each in the order of the hash, with several row groups."""
    paths = [str(tmp_path / f"{n}.parquet") for n in range(3)]
    for n, path in enumerate(paths):
        pq.write_table(table.take(np.arange(n, ROWS, 3)), path, row_group_size=700)
    return paths


def encode(rows: pa.RecordBatch) -> Batch:
    """What stands for the encoder here: the trip's number as input and target."""
    trip = torch.from_numpy(rows.column("trip").to_numpy(zero_copy_only=False).copy())
    return Batch({"trip": trip, "pair": torch.stack([trip, -trip], 1)}, trip)


def trips(batches) -> list[int]:
    return [trip for batch in batches for trip in batch.target.tolist()]


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "slml-read-ahead"]


@PARTS
@SIZES
def test_an_epoch_is_exactly_the_part(files, table, part: Part, buffer_rows: int) -> None:
    loader = Loader(files, part, encode, batch_rows=64, buffer_rows=buffer_rows)
    wanted = [t for batch in table.to_batches() for t in part.keep(batch)["trip"].to_pylist()]
    batches = list(loader.iter_epoch(0))
    assert Counter(trips(batches)) == Counter(wanted)
    assert len(wanted) == loader.rows
    assert len(batches) == len(loader)
    assert {len(batch.target) for batch in batches[:-1]} == {64}
    assert all(torch.equal(batch.inputs["pair"][:, 1], -batch.target) for batch in batches), "rows stay together"
    assert Counter(trips(loader.in_order())) == Counter(wanted)


@SIZES
def test_the_order_follows_from_seed_and_epoch(files, buffer_rows: int) -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return trips(Loader(files, WRAPPED, encode, 64, seed=seed, buffer_rows=buffer_rows).iter_epoch(number))

    first = epoch(0, 0)
    assert epoch(0, 0) == first
    assert epoch(0, 1) != first
    assert epoch(1, 0) != first
    assert epoch(-1, 0) != first
    used = Loader(files, WRAPPED, encode, 64, buffer_rows=buffer_rows)
    assert trips(used.iter_epoch(1)) != first
    assert trips(used.iter_epoch(0)) == first, "it does not depend on the epochs before"
    indices = np.argsort(first)
    assert abs(np.corrcoef(indices, np.arange(len(indices)))[0, 1]) < 0.1, "shuffled"


@PARTS
@SIZES
def test_an_epoch_is_taken_up_again_at_any_batch(files, part: Part, buffer_rows: int) -> None:
    loader = Loader(files, part, encode, batch_rows=96, seed=3, buffer_rows=buffer_rows)
    batches = list(loader.iter_epoch(2))
    for start in (0, 1, 9, 10, 11, len(batches) - 1, len(batches)):
        rest = list(Loader(files, part, encode, 96, seed=3, buffer_rows=buffer_rows).iter_epoch(2, start))
        assert trips(rest) == trips(batches[start:]), start


def test_a_part_that_fits_is_read_and_encoded_once(files) -> None:
    encoded = []
    loader = Loader(files, WRAPPED, lambda rows: encoded.append(rows.num_rows) or encode(rows), 64)
    first = trips(loader.iter_epoch(0))
    for file in files:
        Path(file).unlink()
    assert sorted(trips(loader.iter_epoch(1))) == sorted(first) == sorted(trips(loader.in_order()))
    assert sum(encoded) == loader.rows, "each row once"


def test_a_streamed_part_is_encoded_once_an_epoch(files) -> None:
    encoded = []
    loader = Loader(
        files, WRAPPED, lambda rows: encoded.append(rows.num_rows) or encode(rows), 64, buffer_rows=STREAMED
    )
    trips(loader.iter_epoch(0))
    assert sum(encoded) == loader.rows
    encoded.clear()
    trips(loader.iter_epoch(0, start=loader.rows // 64 - 1))
    assert sum(encoded) < 2 * STREAMED, "what is left out is not encoded"


def test_only_row_groups_of_the_part_are_read(files) -> None:
    whole, narrow = Loader(files, WHOLE, encode), Loader(files, Part(ranges=((0, CIRCLE // 50),)), encode)
    assert len(whole.source.blocks) == 15
    assert len(narrow.source.blocks) == 3
    later = Part(time_column="begun", time_low="2024-01-01T00:00:00", time_high="2025-01-01T00:00:00")
    assert Loader(files, later, encode).source.blocks == ()


def test_only_the_columns_asked_for_are_read(files) -> None:
    columns_read = set()
    list(
        Loader(
            files, TIMED, lambda rows: columns_read.update(rows.schema.names) or encode(rows), columns=["trip"]
        ).in_order()
    )
    assert columns_read == {"trip", "begun"}


def test_files_without_statistics_are_filtered_all_the_same(table, tmp_path) -> None:
    path = str(tmp_path / "plain.parquet")
    pq.write_table(table, path, write_statistics=False, row_group_size=1_000)
    wanted = [t for batch in table.to_batches() for t in BOTH.keep(batch)["trip"].to_pylist()]
    loader = Loader([path], BOTH, encode)
    assert sorted(trips(loader.iter_epoch(0))) == sorted(wanted)
    assert loader.rows == len(wanted)


def test_missing_times_are_in_no_part(table, tmp_path) -> None:
    path = str(tmp_path / "gaps.parquet")
    begun = pa.array([None, *table["begun"].to_pylist()[1:]], pa.timestamp("us"))
    pq.write_table(table.set_column(3, "begun", begun), path)
    all_times = Part(time_column="begun", time_low="2022-01-01T00:00:00", time_high="2024-01-01T00:00:00")
    assert Loader([path], all_times, encode).rows == ROWS - 1


def test_uris_and_dates(table, tmp_path) -> None:
    days = table.append_column("day", table["begun"].cast(pa.date32()))
    pq.write_table(days, tmp_path / "days.parquet")
    part = Part(time_column="day", time_low="2023-01-05", time_high="2023-01-06")
    loader = Loader([f"file://{tmp_path}/days.parquet"], part, encode)
    wanted = sum(day.isoformat() == "2023-01-05" for day in days["day"].to_pylist())
    assert loader.rows == len(trips(loader.iter_epoch(0))) == wanted > 0


@SIZES
def test_an_error_in_the_encoder_reaches_the_training_loop(files, buffer_rows: int) -> None:
    calls = []

    def failing(rows: pa.RecordBatch) -> Batch:
        calls.append(1)
        if len(calls) == 3:
            raise TrainingError("The target is null in 1 row.")
        return encode(rows)

    with pytest.raises(TrainingError, match="null in 1 row"):
        list(Loader(files, WHOLE, failing, buffer_rows=buffer_rows).iter_epoch(0))
    assert not readers()


def test_a_loop_that_stops_early_leaves_no_thread(files) -> None:
    batches = Loader(files, WHOLE, encode, 64, buffer_rows=STREAMED).iter_epoch(0)
    next(batches)
    assert readers()
    batches.close()
    assert not readers()
    for _ in Loader(files, WHOLE, encode, 64, buffer_rows=STREAMED).iter_epoch(0):
        break
    assert not readers()


def test_reading_ahead_is_bounded() -> None:
    made = []
    items = read_ahead((made.append(n) or n for n in range(1_000)), depth=2)
    assert next(items) == 0
    threading.Event().wait(0.2)
    assert len(made) <= 5
    items.close()


def test_what_cannot_be_loaded(files, tmp_path) -> None:
    with pytest.raises(StorageError, match=r"cannot be read[\s\S]*nowhere.parquet"):
        Loader([str(tmp_path / "nowhere.parquet")], WHOLE, encode)
    (tmp_path / "text.parquet").write_text("fare,trip\n1,2\n")
    with pytest.raises(StorageError, match="cannot be read"):
        Loader([str(tmp_path / "text.parquet")], WHOLE, encode)
    with pytest.raises(TrainingError, match="did you mean 'fare'"):
        Loader(files, WHOLE, encode, columns=["fares"])
    with pytest.raises(TrainingError, match="no row to load"):
        list(Loader(files, Part(ranges=()), encode).iter_epoch(0))
    with pytest.raises(UsageError, match="at least 1"):
        Loader(files, WHOLE, encode, batch_rows=0)


def test_a_damaged_file_says_which(files) -> None:
    loader = Loader(files, WHOLE, encode)
    content = bytearray(Path(files[1]).read_bytes())
    content[200:40_000] = bytes(39_800)
    Path(files[1]).write_bytes(content)
    with pytest.raises(StorageError, match=r"1\.parquet is damaged"):
        list(loader.iter_epoch(0))
