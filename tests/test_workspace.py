"""Settings files that cannot be read, and roots side by side."""

import pytest

from slml.errors import SettingsError, UsageError
from slml.monitoring.policy import load_retention
from slml.pipelines.project import create_project
from slml.runs.run import list_runs
from slml.storage import write_text
from slml.workspace import Workspace


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff", "no TOML"), (b"[default\n", "no TOML"), (b'root = "x"\n', "outside of a profile: root")],
)
def test_a_settings_file_that_cannot_be_used(tmp_path, monkeypatch, content, message):
    (tmp_path / "slml.toml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=message):
        Workspace()


def test_a_folder_in_place_of_the_settings(tmp_path, monkeypatch):
    (tmp_path / "slml.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="cannot be read"):
        Workspace()


def test_a_policy_that_is_no_text(tmp_path):
    (tmp_path / "monitor.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="no TOML"):
        load_retention(str(tmp_path / "monitor.toml"))


def test_hidden_roots_side_by_side_share_no_runs(tmp_path):
    """Pruning the runs of one profile would remove what a version of the other needs."""
    one, other = (Workspace(root=str(tmp_path / name)).uri("runs") for name in (".slml", ".slml-dev"))
    assert one == str(tmp_path / "runs")
    assert other == str(tmp_path / "runs-dev")


def test_a_file_that_is_no_record_is_no_run(tmp_path):
    workspace = Workspace(root=str(tmp_path / "root"))
    for n, text in enumerate(("[]", "null", "{", "{}", '{"id": "x"}')):
        write_text(f"{workspace.uri('runs')}/{n}/run.json", text)
    assert list_runs(workspace) == []


@pytest.mark.parametrize("name", ["", 'a"b', "a\\b", "a\nb"])
def test_a_name_that_no_project_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot be that of a project"):
        create_project(name)
    assert list(tmp_path.iterdir()) == []
