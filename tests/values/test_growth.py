"""A file that has grown: its old rows are told, and with a key only new ones are added. What is stored can be read."""

import pytest
from typer.testing import CliRunner

from slml.errors import UsageError
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=str(tmp_path / "workspace"))


def _write(path, rows: int, more: str = "") -> str:
    path.write_text("id,day,eur\n" + "".join(f"{i},2024-01-{1 + i % 28:02d},{i}.5\n" for i in range(rows)) + more)
    return str(path)


def test_grown_file_is_told(tmp_path, workspace):
    assert not ingest_files(_write(tmp_path / "a.csv", 40), "t", workspace).notes
    report = ingest_files(_write(tmp_path / "a.csv", 60), "t", workspace)
    (note,) = report.notes
    assert report.stored == 60
    assert note.startswith("40 of 60 rows were in the table before")
    assert "key=" in note
    assert note.occurrences == 40
    assert Catalog(workspace).table("t").snapshot().notes == (note,)
    assert not ingest_files(_write(tmp_path / "b.csv", 0, "900,2024-01-01,1.5\n"), "t", workspace).notes


def test_key_adds_new_rows_only(tmp_path, workspace):
    ingest_files(_write(tmp_path / "a.csv", 40), "t", workspace, key=["id"])
    grown = _write(tmp_path / "a.csv", 60, "7,2024-01-08,99.5\n60,2024-01-01,1.5\n60,2024-01-01,1.5\n")
    report = ingest_files(grown, "t", workspace, key=["id"])
    assert (report.rows, report.stored, report.rejected, report.known) == (63, 21, 1, 41)
    with open_engine(workspace) as engine:
        snapshot = Catalog(workspace).table("t").snapshot()
        assert sorted(engine.read(engine.table(snapshot))["id"].to_pylist()) == list(range(61))
        rejects = engine.read(engine.table(Catalog(workspace).table("t__rejects").snapshot())).to_pylist()
    assert [(row["line"], row["column"], row["value"]) for row in rejects] == [(62, "id", "7")]
    assert "other values" in rejects[0]["reason"]
    again = ingest_files(_write(tmp_path / "a.csv", 20), "t", workspace, key=["id"])
    assert (again.stored, again.known) == (0, 20)


def test_key_that_is_no_column(tmp_path, workspace):
    with pytest.raises(UsageError, match="did you mean 'id'"):
        ingest_files(_write(tmp_path / "a.csv", 3), "t", workspace, key=["idd"])
    assert Catalog(workspace).tables() == []


def test_append_and_replace_exclude_each_other(tmp_path, monkeypatch):
    from slml.cli.app import app
    from slml.cli.tables import ingest_command  # noqa: F401 - registers the command

    result = CliRunner().invoke(app, ["ingest", _write(tmp_path / "a.csv", 3), "t", "--append", "--replace"])
    assert result.exit_code != 0
    assert isinstance(result.exception, UsageError | SystemExit)


@pytest.mark.parametrize("sign", ["\0", "\x01", "\x1b", "\x7f", "\u2028"])
def test_names_that_no_table_holds(tmp_path, workspace, sign):
    (tmp_path / "a.csv").write_text(f"id,na{sign}me\n" + "".join(f"{i},x{i}\n" for i in range(50)), newline="")
    report = ingest_files(str(tmp_path / "a.csv"), "t", workspace)
    assert any("called 'na_me'" in note or "called 'na me'" in note for note in report.notes)
    with open_engine(workspace) as engine:
        snapshot = Catalog(workspace).table("t").snapshot()
        assert engine.read(engine.table(snapshot)).num_rows == 50
