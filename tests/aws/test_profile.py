"""A profile in slml.toml is replaced, and everything else that people wrote there stays."""

import tomllib
from pathlib import Path

import pytest

from slml.aws.profile import edit_profile, write_profile
from slml.errors import SettingsError

OURS = """# settings of the fares team
[hpc]  # the cluster of the university
cores = 64

[batch]
# written by hand
root = "s3://old/taxi"  # ask Ann before you change it
stack = 'old'

# on a laptop
[default]
project = 'taxi'
cores = 2 # of eight
"""


def test_the_profile_is_written_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "slml.toml").write_text(
        "# ours\n[default]\ncores = 2\n\n[batch]\nroot = 'old'\n\n# theirs\n[hpc]\ncores = 9\n"
    )
    path = write_profile(tmp_path, "batch", {"root": "s3://b/taxi", "runner": "batch"})
    text = path.read_text()
    assert "# ours" in text
    assert "# theirs" in text
    assert tomllib.loads(text) == {
        "default": {"cores": 2}, "batch": {"root": "s3://b/taxi", "runner": "batch"}, "hpc": {"cores": 9},
    }  # fmt: skip


def test_comments_and_the_order_of_lines_survive(tmp_path: Path) -> None:
    (tmp_path / "slml.toml").write_text(OURS)
    values = {"root": "s3://new/taxi", "project": "taxi", "runner": "batch"}
    text = write_profile(tmp_path, "batch", values).read_text()
    added = 'project = "taxi"\nrunner = "batch"'
    assert text == OURS.replace("s3://old/taxi", "s3://new/taxi").replace("stack = 'old'", added)
    assert write_profile(tmp_path, "batch", values).read_text() == text


def test_a_new_profile_stands_at_the_end() -> None:
    assert edit_profile(OURS, "gpu", {"runner": "batch"}) == f'{OURS}\n[gpu]\nrunner = "batch"\n'
    assert edit_profile("", "gpu", {"runner": "batch"}) == '[gpu]\nrunner = "batch"\n'


@pytest.mark.parametrize(
    "text", ["batch = {root = 'a'}", "batch.root = 'a'", "[batch.more]\na = 1\n[batch]\nb = 2", "[[batch]]\nk = 2"]
)
def test_a_profile_is_replaced_however_it_is_spelled(text: str) -> None:
    edited = edit_profile(f"before = 1\n{text}\n[x]\ny = 2\n", "batch", {"root": 'é "b" \\ c'})
    assert tomllib.loads(edited) == {"before": 1, "batch": {"root": 'é "b" \\ c'}, "x": {"y": 2}}


def test_a_file_that_is_not_toml_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "slml.toml").write_text("[batch\n")
    with pytest.raises(SettingsError, match="by hand"):
        write_profile(tmp_path, "batch", {"root": "b"})
    assert (tmp_path / "slml.toml").read_text() == "[batch\n"
