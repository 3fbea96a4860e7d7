"""The request log under what happens to logs: full disks, storage that is gone, kills, and whatever a client sends."""

import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from timeit import repeat

import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from slml.contract import Column, Contract
from slml.serving.log import RequestLog
from slml.serving.log_reader import read_log
from slml.serving.log_rows import LOG_COLUMNS, log_folder
from slml.workspace import Workspace

TYPES = {"trip": "text", "miles": "float", "riders": "int", "shared": "bool", "day": "date", "at": "timestamp"}
CONTRACT = Contract(
    name="trips",
    columns=[
        *(Column(name=name, type=kind) for name, kind in TYPES.items()),
        Column(name="passenger", type="text", personal=True),
        Column(name="fare", type="float"),
    ],
    target="fare",
    task="regression",
)
TRIP = {"trip": "t1", "miles": 3, "riders": 2, "shared": True, "day": "2024-05-01", "at": "2024-05-01T08:30:00"}


def log_at(workspace: Workspace, name: str = "taxi", **how: float) -> RequestLog:
    """The log of a model in a workspace."""
    return RequestLog(log_folder(workspace.root, workspace.project, name), CONTRACT, **how)


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_numbers_come_back_as_the_contract_has_them_and_persons_do_not(workspace: Workspace) -> None:
    log = log_at(workspace)
    log.put(
        [{**TRIP, "passenger": "Ann", "fare": 9.5, "more": [1]}, {}], [9.73, 3.25], "r1", 3, outside=[["miles"], []]
    )
    assert log.close()
    table = read_log(workspace, "taxi").read()
    assert table.schema.names == [*TYPES, *LOG_COLUMNS]
    first, second = table.to_pylist()
    came = {"miles": 3.0, "riders": 2, "shared": True, "day": date(2024, 5, 1), "at": datetime(2024, 5, 1, 8, 30)}
    assert {name: first[name] for name in came} == came
    assert (first["_prediction"], first["_row"], first["_outside"], first["_version"]) == (9.73, 0, ["miles"], 3)
    assert all(second[name] is None for name in TYPES)
    assert not any(b"Ann" in file.read_bytes() for file in Path(workspace.root).rglob("*.parquet"))


def test_a_put_takes_less_than_three_microseconds(workspace: Workspace) -> None:
    log, rows, predictions = log_at(workspace), [TRIP], [9.73]
    seconds = min(repeat(lambda: log.put(rows, predictions, "r1", 3), number=500, repeat=100)) / 500
    assert log.close()
    assert seconds < 3e-6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("2024-05-01T08:30:00+02:00"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
json_rows = st.lists(st.dictionaries(st.sampled_from([*TYPES, "passenger", "x"]), json_values), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[tuple[Workspace, RequestLog]]:
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace(root=root, project="test")
        log = log_at(workspace, rows=1, seconds=0)
        yield workspace, log
        log.close()


@limits(max_examples=100, deadline=None)
@given(rows=json_rows)
def test_whatever_a_client_sends_is_a_row_of_the_log(fuzzed: tuple[Workspace, RequestLog], rows: list[dict]) -> None:
    """Never a lost row, and a number that is there is the number that was sent."""
    workspace, log = fuzzed
    before = log.written_rows
    log.put(rows, [1.0] * len(rows), "r1", 1)
    assert log.flush(30)
    assert (log.written_rows, log.dropped_rows) == (before + len(rows), 0), log.error
    stored = read_log(workspace, "taxi").files[-1]
    for sent, kept in zip(rows, pa.parquet.read_table(stored).to_pylist(), strict=True):
        if kept["riders"] is not None and isinstance(sent["riders"], int | float):
            assert kept["riders"] == sent["riders"]
        if isinstance(sent.get("miles"), float):
            assert kept["miles"] == sent["miles"] or math.isnan(sent["miles"])
        if isinstance(sent.get("trip"), str) and not any("\ud800" <= c <= "\udfff" for c in sent["trip"]):
            assert kept["trip"] == sent["trip"]


def test_a_number_is_no_time(fuzzed: tuple[Workspace, RequestLog]) -> None:
    """Arrow would count it from 1970, up to dates that Python cannot read."""
    workspace, log = fuzzed
    log.put([{"day": 700_000_000, "at": 2**62}, {"day": 3.5, "at": True}], [1.0, 1.0], "r1", 1)
    assert log.flush(30)
    rows = pa.parquet.read_table(read_log(workspace, "taxi").files[-1]).to_pylist()
    assert [(row["day"], row["at"]) for row in rows] == [(None, None), (None, None)]


def test_many_threads_and_every_row_is_counted(workspace: Workspace) -> None:
    log = log_at(workspace, rows=500, seconds=0.01, max_waiting=1_000)
    threads = [threading.Thread(target=lambda: [log.put([TRIP], [1.0], "r", 1) for _ in range(5_000)]) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert log.close()
    assert log.written_rows + log.dropped_rows == 20_000
    assert read_log(workspace, "taxi").read().num_rows == log.written_rows > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_costs_rows_and_nothing_else(small_disk: Path) -> None:
    workspace = Workspace(root=str(small_disk / "root"), project="test")
    log = log_at(workspace, rows=1_000, seconds=0.05, max_waiting=20_000)
    sent, end = 0, time.monotonic() + 60
    while not (log.failing and log.dropped_rows):
        assert time.monotonic() < end
        log.put([{**TRIP, "trip": os.urandom(40).hex()}], [9.73], f"r{sent}", 3)
        sent += 1
    assert "No space left" in log.error
    assert log.waiting_rows <= 20_000
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert log.close(30), "with room, all that was kept is written"
    window = read_log(workspace, "taxi")
    assert window.read().num_rows == log.written_rows == sent - log.dropped_rows
    assert not window.skipped, "no file was there by half"
    assert not list(small_disk.rglob("*.part"))


def test_a_storage_outage_is_survived_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated S3 goes away and comes back; in between come more rows than there is room for."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="served")
    workspace = Workspace(root="s3://served/x", project="test", catalog_uri="sqlite://", tracking_uri="sqlite://")
    log = log_at(workspace, rows=500, seconds=0.05, max_waiting=5_000)
    log.put([TRIP], [9.73], "r0", 3)
    until(lambda: log.written_rows == 1)
    server.stop()
    used = psutil.Process().memory_info().rss
    for n in range(200_000):
        log.put([{**TRIP, "trip": f"t{n}"}], [9.73], f"r{n}", 3)
    until(lambda: log.failing)
    assert log.waiting_rows <= 5_000
    assert log.dropped_rows == 200_000 - log.waiting_rows
    assert psutil.Process().memory_info().rss - used < 60e6
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    kept = log.waiting_rows
    assert log.close(60), log.error
    window = read_log(workspace, "taxi")
    assert (window.read().num_rows, window.skipped) == (1 + kept, {})
    server.stop()


WRITE = """
import itertools, sys, time; from slml.serving.log import RequestLog
contract = {"columns": [{"name": "n", "type": "int"}, {"name": "passenger", "type": "text", "personal": True}]}
log = RequestLog(sys.argv[1], contract, rows=50, seconds=0.01)
for n in itertools.count():
    log.put([{"n": n, "passenger": "Ann"}], [1.0], f"r{n}", 1)
    if n % 20 == 0:
        time.sleep(0.001)
    if n == 100:
        print("begun", flush=True)
"""


def test_killed_while_it_writes_leaves_no_half_file(workspace: Workspace) -> None:
    for wanted in (3, 12, 30):
        command = [sys.executable, "-c", WRITE, log_folder(workspace.root, "test", "taxi")]
        process, folder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), Path(workspace.root, "served")
        assert process.stdout.readline() == "begun\n"
        until(lambda wanted=wanted, folder=folder: len(list(folder.rglob("*.parquet"))) >= wanted)
        process.kill()
        process.communicate(timeout=30)
        window = read_log(workspace, "taxi")
        rows = window.read().to_pylist()
        assert window.skipped == {}
        assert len({(row["_request"], row["_time"]) for row in rows}) == len(rows), "no row is there twice"


def test_files_that_are_cut_off_or_gone_are_skipped_and_named(workspace: Workspace) -> None:
    log = log_at(workspace)
    for n in range(6):
        log.put([{**TRIP, "trip": f"t{n}"}], [9.73], f"r{n}", 3, at=1714521600.0 + 3600 * n)
    assert log.close()
    window = read_log(workspace, "taxi")
    empty, half, middle, gone = map(Path, window.files[:4])
    empty.write_bytes(b"")
    half.write_bytes(half.read_bytes()[:-20])
    data = middle.read_bytes()
    middle.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    gone.unlink()
    assert window.read()["trip"].to_pylist() == ["t4", "t5"]
    assert list(window.skipped) == window.files[:4]
    assert window.skipped[str(gone)] == "it is gone"


def test_a_clock_that_goes_back_loses_nothing(workspace: Workspace) -> None:
    log, times = log_at(workspace), [1714521600.0, 1714525300.0, 1714521700.0, 1714435200.0]
    for n, at in enumerate(times):
        log.put([TRIP], [9.73], f"r{n}", 3, at=at)
    assert log.close()
    rows = read_log(workspace, "taxi").read().to_pylist()
    assert {row["_request"]: row["_time"].timestamp() for row in rows} == {f"r{n}": at for n, at in enumerate(times)}
    day = read_log(workspace, "taxi", since=datetime(2024, 4, 30, tzinfo=UTC), until=datetime(2024, 5, 1, tzinfo=UTC))
    assert [row["_request"] for row in day.read().to_pylist()] == ["r3"]
