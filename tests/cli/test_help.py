"""What `slml --help` and the help of each command say, and the old names that still work."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from slml.cli import app


def commands(group, path=()):
    for name, command in group.commands.items():
        yield pytest.param(command, id=" ".join((*path, name)))
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("command", list(commands(get_command(app))))
def test_each_command_has_a_sentence_and_one_example(command):
    first, *rest = command.help.split("\n\n")
    assert re.fullmatch(r"[A-Z].*\.", first.replace("\n", " "))
    assert [part.count("`") for part in rest if part.startswith("Example: `slml ")] == [2]


@pytest.mark.parametrize("command", list(commands(get_command(app))))
def test_each_argument_and_option_is_explained(command):
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


def test_the_old_name_of_prune_works_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setenv("SLML_ROOT", str(tmp_path))
    new, old = (CliRunner().invoke(app, [name, "--json"]) for name in ("prune", "clean"))
    assert (new.exit_code, new.stderr) == (0, "")
    assert (old.exit_code, old.stdout) == (0, new.stdout)
    assert "is now called slml prune" in old.stderr


def test_help_does_not_list_the_old_name():
    page = CliRunner().invoke(app, ["--help"]).output
    assert "prune" in page
    assert " clean " not in page
