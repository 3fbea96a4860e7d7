"""Batch prediction beside the training loader, on the same snapshot, in one run.

    python bench/predict.py --rows 1000000

Prints rows a second, as a share of the loader's first epoch (which reads the files), and the peak memory of each, taken
in a process of its own. The models are not trained: the speed of a graph does not depend on its weights.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slml import Catalog, Workspace, clean, open_engine, sample
from slml.contract import Contract, Numeric
from slml.features.encoder import Encoder
from slml.registry.bundle import Bundle, Lineage
from slml.tables.catalog import Snapshot
from slml.tables.ingest import ingest_files
from slml.taxi import contract, generate

PLAIN = [Numeric(column=name) for name in ("ORIGIN_BLOCK_LATITUDE", "ORIGIN_BLOCK_LONGITUDE")]
PLAIN += [Numeric(column=name) for name in ("DESTINATION_BLOCK_LAT", "DESTINATION_BLOCK_LONG", "MILEAGE", "DURATION")]
PLAIN += [Numeric(column=name) for name in ("TOLLAMOUNT", "EXTRAFAREAMOUNT")]


def bundles(taxi: Contract, rows: object, folder: Path) -> list[Path]:
    """The graphs to run: the example's own, an MLP of 8 plain inputs, and a linear one."""
    from slml.models.model import build_model
    from slml.registry.export import export

    plain, shape = taxi.replace(features=PLAIN), {"width": 256, "depth": 3}
    wanted = {"taxi": (taxi, {}), "mlp_8_3x256": (plain, shape), "linear": (taxi, {"network": "linear"})}
    lineage = Lineage(snapshots={"train": "kept@1"}, runs={"train": "bench"}, seed=0)
    for name, (spec, how) in wanted.items():
        encoder = Encoder.fit(rows, spec)
        model = build_model(spec, encoder, encoder(rows), **how).eval()
        export(model, encoder, spec, rows, str(folder / name), lineage=lineage, metrics={})
    return [folder / name for name in wanted]


def loading(bundle: Bundle, snapshot: Snapshot, workspace: Workspace) -> Callable[[], None]:
    """Every row once, shuffled and encoded, as in the first epoch of a training."""
    from slml.sampling.split import Part
    from slml.training.loader import Loader

    def work() -> None:
        loader = Loader(snapshot.files, Part(), bundle.encoder, 4096, columns=bundle.encoder.columns)
        assert sum(len(batch.target) for batch in loader.iter_epoch(1)) == snapshot.rows

    return work


def predicting(bundle: Bundle, snapshot: Snapshot, workspace: Workspace) -> Callable[[], None]:
    """Every row once, into a table."""
    from slml.serving.batch import predict_snapshot

    def work() -> None:
        table = Catalog(workspace).table(f"predicted_{time.time_ns()}")
        with workspace.scratch() as folder:
            done = predict_snapshot(bundle, "taxi@1", snapshot, table, str(folder), cores=workspace.cores)
        assert done.added == snapshot.rows

    return work


def alone(what: str, bundle: str, root: str) -> None:
    """One measurement in this process: seconds and peak MiB on standard output."""
    workspace = Workspace(root=root, project="bench")
    loaded, snapshot = Bundle.load(bundle), Catalog(workspace).snapshot("kept")
    loaded.predict(loaded.rows)  # the session and the imports are not what is measured
    work = {"loader": loading, "predict": predicting}[what](loaded, snapshot, workspace)
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(seconds, int(peak.split()[1]) / 1024)


def measured(what: str, bundle: Path, root: str, tries: int = 3) -> tuple[float, float]:
    """The best of several processes: seconds, MiB."""
    command = [sys.executable, __file__, "--alone", what, str(bundle), root]
    told = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(tries)]
    return min(tuple(map(float, text.split())) for text in told)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        return alone(*given.alone)
    with tempfile.TemporaryDirectory() as folder:
        root, taxi = f"{folder}/slml", contract()
        workspace = Workspace(root=root, project="bench")
        catalog = Catalog(workspace)
        generate(Path(folder, "trips"), given.rows)
        ingest_files(f"{folder}/trips/*.txt", "raw", workspace)
        with open_engine(workspace) as engine:
            clean(catalog.snapshot("raw"), taxi, catalog, engine, kept="kept", quarantine="out")
            rows = engine.read(sample(catalog.snapshot("kept"), engine, rows=10_000))
        count = catalog.snapshot("kept").rows
        table = Table("model", "work", "rows/s", "of the loader", "peak MiB", title=f"{count:,} trips, best of 3")
        for bundle in bundles(taxi, rows, Path(folder, "bundles")):
            (loader, before), (predict, after) = (measured(what, bundle, root) for what in ("loader", "predict"))
            table.add_row(bundle.name, "loader", f"{count / loader:,.0f}", "", f"{before:,.0f}")
            table.add_row("", "predict", f"{count / predict:,.0f}", f"{loader / predict:.2f}", f"{after:,.0f}")
        Console().print(table)
    return None


if __name__ == "__main__":
    main()
