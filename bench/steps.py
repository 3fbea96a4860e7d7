"""How long each step takes on synthetic trips, beside what others need for the same.

    python bench/steps.py --rows 1000000

Prints seconds, rows a second and the process's peak memory so far, one line a step.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
from rich.console import Console
from rich.table import Table

from slml import Catalog, Workspace, audit, clean, open_engine, sample, split
from slml.features.encoder import Encoder
from slml.tables.ingest import ingest_files
from slml.taxi import contract, generate
from slml.training.loader import Loader


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """The seconds that a call takes, and what it gives."""
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def measure(rows: int, folder: Path) -> Table:
    """All steps, one after the other, as a table."""
    table = Table("step", "seconds", "rows/s", "peak MiB", title=f"{rows:,} synthetic trips", title_justify="left")

    def step(name: str, work: Callable[[], object], count: int = rows) -> object:
        seconds, found = timed(work)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        table.add_row(name, f"{seconds:.2f}", f"{count / seconds:,.0f}", f"{peak:,.0f}")
        return found

    workspace, taxi = Workspace(root=str(folder / "slml"), project="bench"), contract()
    made = step("generate", lambda: generate(folder / "trips", rows))
    files = [str(file) for file in made.files]
    step("ingest", lambda: ingest_files(f"{folder}/trips/*.txt", "raw", workspace))
    step("  DuckDB read_csv to Parquet", lambda: to_parquet(files, folder / "peer.parquet"))
    catalog = Catalog(workspace)
    with open_engine(workspace) as engine:
        raw = catalog.snapshot("raw")
        step("audit", lambda: audit(raw, taxi, engine))
        step("clean", lambda: clean(raw, taxi, catalog, engine, kept="kept", quarantine="out"))
        kept = catalog.snapshot("kept")
        parts = step("split", lambda: split(kept, engine, {"train": 0.64, "valid": 0.16, "test": 0.2}), kept.rows)
        few = step("sample of 10,000", lambda: engine.read(sample(kept, engine, rows=10_000)), kept.rows)
        encoder = Encoder.fit(few, taxi)
        train = Loader(kept.files, parts.part("train"), encoder, 4096, columns=encoder.columns)
        for epoch in (1, 2):
            step(f"loader, epoch {epoch}", lambda n=epoch: sum(len(b.target) for b in train.iter_epoch(n)), train.rows)
    step("  pandas read_csv", lambda: [pd.read_csv(file, sep="|", low_memory=False) for file in files])
    return table


def to_parquet(files: list[str], path: Path) -> None:
    """What a script would do instead of an ingest: no rejects, no ledger, types by a sample."""
    duckdb.sql(f"copy (from read_csv({files!r}, delim='|', ignore_errors=true)) to '{path}'")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        Console().print(measure(rows, Path(folder)))


if __name__ == "__main__":
    main()
