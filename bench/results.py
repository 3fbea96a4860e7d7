"""Where benchmarks keep what they measured: one JSON file each in bench/results, which the docs' page is made from."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import psutil

FOLDER = Path(__file__).parent / "results"


def write_results(
    name: str,  # of the file
    title: str,  # what was measured
    header: Sequence[str],
    rows: Sequence[Sequence[object]],  # one list a line, as many cells as the header has
    note: str = "",  # how to read it
) -> Path:
    """Keep a table of results, with the machine and the day."""
    FOLDER.mkdir(exist_ok=True)
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"
    facts = {"title": title, "measured": date.today().isoformat(), "machine": machine, "note": note}
    path = FOLDER / f"{name}.json"
    table = {"header": list(header), "rows": [[str(cell) for cell in row] for row in rows]}
    path.write_text(json.dumps(facts | table, indent=1, ensure_ascii=False) + "\n")
    return path
