"""What users do wrong, and what goes wrong under them: one clear message, nothing half written, the next call works."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from slml.cli import main
from slml.errors import StorageError
from slml.models.model import write_tensors
from slml.tables.catalog import Catalog
from slml.workspace import Workspace

from support import REPOSITORY

SLML = Path(sys.executable).parent / "slml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the workspace of the command line under it."""
    monkeypatch.setenv("SLML_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("SLML_PROJECT", "test")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_text(capsys: pytest.CaptureFixture, arguments: list[str], code: int) -> str:
    """What a call of the command line says on stderr, once it has ended with this code and without a traceback."""
    assert main(arguments) == code
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def houses(path: Path, rows: int = 400, price: str | None = None) -> Path:
    """A table from which a price can be learned, or one whose price is always the same text."""
    sizes = [(n % 7, n * 37 % 101 + 0.5) for n in range(rows)]
    prices = [50_000 * rooms + 1_000 * area if price is None else price for rooms, area in sizes]
    lines = [f"{n},{rooms},{area},{prices[n]}" for n, (rooms, area) in enumerate(sizes)]
    path.write_text("\n".join(["id,rooms,area,price", *lines]) + "\n")
    return path


def test_a_missing_file_is_a_wrong_call(folder: Path, capsys: pytest.CaptureFixture) -> None:
    houses(folder / "houses.csv")
    message = error_text(capsys, ["ingest", "house.csv", "houses"], code=2)
    assert "house.csv" in message
    assert "did you mean 'houses.csv'?" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.csv", b"", "empty.csv"),
        ("header.csv", b"id,price\n", "header.csv"),
        ("cut.parquet", b"PAR1 and then nothing", "cut.parquet"),
        ("cut.csv.gz", b"\x1f\x8b\x08\x00garbage", "cut.csv.gz"),
        ("cut.zip", b"PK\x03\x04garbage", "cut.zip"),
    ],
)
def test_a_file_that_holds_no_table(
    folder: Path, capsys: pytest.CaptureFixture, name: str, content: bytes, expected: str
) -> None:
    (folder / name).write_bytes(content)
    assert expected in error_text(capsys, ["ingest", name, "t"], code=1)
    assert Catalog(Workspace()).tables() == [], "nothing is half written"
    houses(folder / "houses.csv")
    assert main(["ingest", "houses.csv", "t"]) == 0, "and the next call works"


def test_mixed_schemas_are_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "in").mkdir()
    houses(folder / "in" / "a.csv")
    (folder / "in" / "b.csv").write_text("id,rooms,colour\n1,2,red\n")
    message = error_text(capsys, ["ingest", "in", "t"], code=1)
    assert "b.csv" in message
    assert "colour" in message


def test_a_broken_quote_costs_its_line_and_no_other(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "quotes.csv").write_text('id,name\n1,"a"\n2,"b\n3,"c"\n4,"d"\n')
    assert main(["ingest", "quotes.csv", "t", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == report["stored"] + report["rejected"]
    assert report["rejected"] >= 1
    assert report["stored"] >= 2


def test_a_column_that_the_file_lacks(folder: Path, capsys: pytest.CaptureFixture) -> None:
    houses(folder / "houses.csv")
    assert main(["ingest", "houses.csv", "houses"]) == 0
    contract = {"name": "houses", "columns": [{"name": "prices", "type": "float"}], "target": "prices"}
    (folder / "houses.json").write_text(json.dumps(contract))
    message = error_text(capsys, ["audit", "houses", "houses.json"], code=1)
    assert "prices" in message
    assert "did you mean 'price'?" in message


@pytest.mark.parametrize("price", ["5", ""])
def test_a_target_with_nothing_to_learn(folder: Path, capsys: pytest.CaptureFixture, price: str) -> None:
    houses(folder / "houses.csv", price=price)
    assert main(["ingest", "houses.csv", "houses"]) == 0
    assert "price" in error_text(capsys, ["contract", "infer", "houses", "--target", "price"], code=1)


def test_wrong_names_are_met_with_the_closest(folder: Path, capsys: pytest.CaptureFixture) -> None:
    houses(folder / "houses.csv")
    assert main(["ingest", "houses.csv", "houses"]) == 0
    assert "did you mean 'houses'?" in error_text(capsys, ["query", "select * from hauses"], code=1)
    assert "did you mean 'price'?" in error_text(capsys, ["contract", "infer", "houses", "--target", "prize"], code=1)
    train = str(REPOSITORY / "nbs/jobs/train.ipynb")
    message = error_text(
        capsys, ["run", train, "-p", "split=s", "-p", "contract=c", "-p", "epoch=3", "-p", "seed=x"], code=2
    )
    assert "did you mean 'epochs'?" in message
    assert "seed" in message
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [], "nothing was started"


def test_too_few_rows_for_a_split(folder: Path, capsys: pytest.CaptureFixture) -> None:
    houses(folder / "houses.csv", rows=12)
    table = str(REPOSITORY / "pipelines/table.yaml")
    message = error_text(capsys, ["pipeline", "run", table, "-p", "source=houses.csv", "-p", "target=price"], code=1)
    assert "The step 'split' failed" in message
    assert "at least 10 rows in each part" in message
    assert main(["runs", "--json"]) == 0
    runs = {run["job"]: run for run in json.loads(capsys.readouterr().out)}
    assert [runs[job]["status"] for job in ("ingest", "audit", "split")] == ["done", "done", "failed"]
    executed = json.loads(Path(runs["split"]["executed"]).read_text())
    assert any("papermill-error" in str(cell["metadata"]) for cell in executed["cells"]), "the failing cell is marked"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SLML_ROOT", str(small_disk / "root"))
    random = os.urandom(6_000_000)
    pq.write_table(
        pa.table({"x": [random[n : n + 60].hex() for n in range(0, len(random), 60)]}), tmp_path / "x.parquet"
    )
    message = error_text(capsys, ["ingest", str(tmp_path / "x.parquet"), "t"], code=1)
    assert "No space left" in message
    assert Catalog(Workspace()).tables() == []
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert main(["ingest", str(tmp_path / "x.parquet"), "t"]) == 0, "with room, the next call works"


def test_a_full_disk_is_named_by_whoever_writes_tensors(small_disk: Path) -> None:
    write_tensors({"weights": torch.ones(10)}, f"{small_disk}/model.pt")
    with pytest.raises(StorageError, match="No space left"):
        write_tensors({"weights": torch.ones(2_000_000)}, f"{small_disk}/model.pt")
    assert len(torch.load(f"{small_disk}/model.pt", weights_only=True)["weights"]) == 10, "the old file stands"
    assert [path.name for path in small_disk.iterdir()] == ["model.pt"]


def test_ctrl_c_leaves_nothing_running_and_the_next_call_goes_on(folder: Path) -> None:
    houses(folder / "houses.csv", rows=2_000)
    table = str(REPOSITORY / "pipelines/table.yaml")
    arguments = [SLML, "pipeline", "run", table, "-p", "source=houses.csv", "-p", "target=price", "-p", "max_seconds=5"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    output = ""
    for line in process.stderr:
        output += line
        if line.split()[:2] == ["train", "running"]:
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            break
    output += process.communicate(timeout=60)[1]
    assert process.returncode == 1, output
    assert "Interrupted." in output
    assert "Traceback" not in output
    processes = subprocess.run(["pgrep", "-f", str(folder / "root")], capture_output=True, text=True).stdout
    assert not processes, "nothing is left running"
    again = subprocess.run([*arguments, "--json"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows_in"] == 2_000
    assert again.stderr.count("cached") == 3, "what was done is not run again"
