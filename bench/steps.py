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
from results import write_results

from slml import Catalog, Workspace, audit, clean, open_engine, sample, split
from slml.display import text_table
from slml.features.encoder import Encoder
from slml.tables.ingest import ingest_files
from slml.taxi import contract, generate
from slml.training.loader import Loader

HEADER = ("step", "seconds", "rows/s", "peak MiB")


def measure(rows: int, folder: Path) -> list[list[str]]:
    """All steps, one after the other; a line of the table for each."""
    lines = []

    def step(name: str, work: Callable[[], object], count: int = rows) -> object:
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append([name, f"{seconds:.2f}", f"{count / seconds:,.0f}", f"{peak:,.0f}"])
        return result

    workspace, taxi = Workspace(root=str(folder / "slml"), project="bench"), contract()
    generated = step("generate", lambda: generate(folder / "trips", rows))
    files = [str(file) for file in generated.files]
    step("ingest", lambda: ingest_files(f"{folder}/trips/*.txt", "raw", workspace))
    step("DuckDB read_csv to Parquet", lambda: to_parquet(files, folder / "peer.parquet"))
    catalog = Catalog(workspace)
    with open_engine(workspace) as engine:
        raw = catalog.snapshot("raw")
        step("audit", lambda: audit(raw, taxi, engine))
        step("clean", lambda: clean(raw, taxi, catalog, engine, kept="kept", quarantine="out"))
        kept = catalog.snapshot("kept")
        parts = step("split", lambda: split(kept, engine, {"train": 0.64, "valid": 0.16, "test": 0.2}), kept.rows)
        sampled = step("sample of 10,000", lambda: engine.read(sample(kept, engine, rows=10_000)), kept.rows)
        encoder = Encoder.fit(sampled, taxi)
        train = Loader(kept.files, parts.part("train"), encoder, 4096, columns=encoder.columns)
        for epoch in (1, 2):
            step(f"loader, epoch {epoch}", lambda n=epoch: sum(len(b.target) for b in train.iter_epoch(n)), train.rows)
    step("pandas read_csv", lambda: [pd.read_csv(file, sep="|", low_memory=False) for file in files])
    return lines


def to_parquet(files: list[str], path: Path) -> None:
    """What a script would do instead of an ingest: no rejects, no ledger, types by a sample."""
    duckdb.sql(f"copy (from read_csv({files!r}, delim='|', ignore_errors=true)) to '{path}'")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(rows, Path(folder))
    title, note = f"Steps on {rows:,} synthetic trips", "In one process, one after the other; peak memory so far."
    write_results("steps", title, HEADER, lines, note)
    print(text_table(HEADER, lines))


if __name__ == "__main__":
    main()
