"""Notebooks are clean: what is stored in them is the same on every machine and on every day, and reads as text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import REPOSITORY

NOTEBOOKS = sorted(p for p in (REPOSITORY / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
# What a stored output must not hold, and why it gets there.
UNWANTED = {
    "an HTTP log": r"\"(GET|POST|PUT|PATCH|DELETE|HEAD) \S+ HTTP/\d",
    "a colour code": r"\x1b\[",
    "a temporary or private path": r"(/private)?/tmp/|/var/folders/|/home/(?!ada|ann)\w+|/root/|/Users/\w+",
    # Examples have times before June 2026, when nobody could have run them yet.
    "the time of its execution": (
        r"\b(2026-(0[6-9]|1[0-2])|202[7-9]-\d\d)-\d\d(T\d\d:\d\d| \d\d:\d\d:\d\d\.\d)"
        r"|\b(2026(0[6-9]|1[0-2])|202[7-9]\d\d)\d\d-\d{6}\b"
    ),
    "the date of a log": r"\b\d\d/(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)/20\d\d|\[I 20\d\d-",
    "a traceback": r"Traceback \(most recent call last\)",
    "an address in memory": r" at 0x[0-9a-f]{6,}",
}


def outputs(path: Path) -> Iterator[tuple[int, str]]:
    """The number of a cell and each text that it stores, pictures left out."""
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield number, "\n".join(["Traceback (most recent call last)", *output["traceback"]])
            yield number, "".join(output.get("text", ""))
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield number, content if isinstance(content, str) else "".join(map(str, content))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(REPOSITORY / "nbs").as_posix())
def test_stored_outputs_are_the_same_everywhere(path: Path) -> None:
    for number, text in outputs(path):
        for what, pattern in UNWANTED.items():
            match = re.search(pattern, text)
            assert not match, f"cell {number} stores {what}: {text[max(match.start() - 40, 0) : match.end() + 40]!r}"


def test_job_notebooks_stand_alone_in_their_folder() -> None:
    """nbs/jobs holds jobs and nothing else, and no job stands elsewhere."""
    for path in NOTEBOOKS:
        tags = [tag for cell in json.loads(path.read_text())["cells"] for tag in cell["metadata"].get("tags", [])]
        assert ("parameters" in tags) == (path.parent.name == "jobs"), path
