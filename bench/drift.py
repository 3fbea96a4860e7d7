"""What monitoring finds, misses and costs, on real trips with planted faults, beside Evidently on the same windows.

python bench/drift.py                        all of it but Evidently
python bench/drift.py --evidently PYTHON     Evidently too, in an environment of its own, made by
                                             python -m venv DIR && DIR/bin/pip install evidently 'pandas<3' pyarrow
python bench/drift.py --only quiet smallest  parts of it
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BEGINS = datetime(2023, 2, 15)
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def memory() -> float:
    """The peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_result(start: float, result: dict) -> None:
    """The findings of a window, with time and memory, as a line of JSON."""
    print(json.dumps({"seconds": time.perf_counter() - start, "memory": memory(), **result}), flush=True)


def by_evidently(folder: Path) -> None:
    """Runs in Evidently's own environment: every window of a folder against the reference, by its preset for drift."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    codes = json.loads((folder / "codes.json").read_text())
    definition = DataDefinition(
        numerical_columns=["trip_distance", "minutes"],
        categorical_columns=codes,
        datetime_columns=["lpep_pickup_datetime"],
    )

    def dataset(path: Path) -> "Dataset":
        table = pd.read_parquet(path).astype(dict.fromkeys(codes, "object"))
        return Dataset.from_pandas(table, data_definition=definition)

    reference = dataset(folder / "reference.parquet")
    for path in sorted(folder.glob("window-*.parquet")):
        start = time.perf_counter()
        try:
            result = json.loads(Report([DataDriftPreset()]).run(dataset(path), reference).json())
            result = {"said": [column for metric in result["metrics"] if (column := drifted_column(metric))]}
        except Exception as error:  # whatever it is, it is what a user would see
            result = {"said": [f"{type(error).__name__}: {error}"[:120]]}
        print_result(start, result)


def drifted_column(metric: dict) -> str:
    """The column of one of Evidently's metrics, if by its own test and limit it has drifted."""
    config, value = metric["config"], metric["value"]
    if "ValueDrift" not in config["type"]:
        return ""
    below = "p_value" in config["method"]
    return config["column"] if (value < config["threshold"] if below else value >= config["threshold"]) else ""


def by_slml(folder: Path) -> None:
    """The same windows by slml, which has the profile of the reference only."""
    import pyarrow.parquet as pq

    from slml.monitoring.drift import drift
    from slml.quality.profile import Profile, profile

    from support import green

    full_profile = profile(pq.ParquetFile(folder / "reference.parquet").iter_batches(), green.CONTRACT)
    reference = Profile.from_json(full_profile.to_json())
    for path in sorted(folder.glob("window-*.parquet")):
        start = time.perf_counter()
        result = drift(reference, pq.read_table(path), green.CONTRACT)
        print_result(start, {"said": sorted({f"{f.column} {f.kind}" for f in result.alarming})})


def best_time(work: Callable[[], object], times: int = 3) -> float:
    """The best of some runs, seconds."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def scan(rows: int) -> None:
    """A table profiled and compared, beside the bare scan of the same columns."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from slml.contract import Category, Column, Contract
    from slml.monitoring.drift import drift
    from slml.quality.profile import profile
    from slml.tables.duckdb import DuckDBEngine

    names = {"when": "timestamp", "from": "int", "to": "int", "people": "float", "miles": "float", "degrees": "float",
             "paid": "text", "fare": "float"}  # fmt: skip
    contract = Contract(
        name="wide",
        columns=[Column(name=name, type=kind) for name, kind in names.items()],
        features=[Category(column=name) for name in ("from", "to", "paid")],
    )

    def block(seed: int, n: int) -> pa.Table:
        rng = np.random.default_rng(seed)
        return pa.table(
            {
                "when": pa.array((1_672_531_200 + rng.integers(0, 31 * 86_400, n)) * 1_000_000, pa.timestamp("us")),
                "from": rng.zipf(1.4, n) % 263 + 1, "to": rng.integers(1, 264, n),
                "people": rng.choice(6, n, p=[0.05, 0.7, 0.1, 0.05, 0.05, 0.05]).astype(float),
                "miles": np.round(rng.gamma(1.5, 2, n), 2), "degrees": rng.normal(38.9, 0.05, n),
                "paid": np.array(["cash", "card", "other"])[rng.choice(3, n, p=[0.3, 0.6, 0.1])],
                "fare": np.round(rng.gamma(2, 8, n) + 3, 1),
            }
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/wide.parquet"
        with pq.ParquetWriter(file, block(0, 1).schema) as writer:
            for seed in range(max(rows // 500_000, 1)):
                writer.write_table(block(seed, min(rows, 500_000)))
        with DuckDBEngine("2GB", 2, Path(folder)) as engine:

            def bare() -> None:
                for _ in engine.batches(engine.table([file])):
                    pass

            def compared() -> None:
                drift(reference, profile(engine.batches(engine.table([file])), contract), contract)

            reference = profile(block(99, 100_000), contract)
            alone, whole = best_time(bare), best_time(compared)
        print(f"{rows:,} rows: scan {alone:.2f} s, profiled and compared {whole:.2f} s, {whole / alone:.2f} times")


def months() -> dict:
    """The real months, the model, and what a bundle holds of them."""
    from slml.quality.profile import profile

    from support import green

    folder = Path(os.environ.get("SLML_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        sys.exit(f"The real trips are not here: no folder {folder}; name another one in SLML_TEST_DATA.")
    tables = {name: green.month(folder, name) for name in ("2022-01", "2022-02", "2023-01", "2023-02")}
    model = green.FareModel(tables["2023-01"])
    return {"tables": tables, "model": model, "reference": profile(model.serve(tables["2023-01"]), green.CONTRACT)}


def real(case: dict) -> None:
    """A month each, day by day."""
    from slml.monitoring.episodes import build_timeline

    from support import green

    for name in ("2023-02", "2022-01", "2022-02"):
        start = time.perf_counter()
        served, expected = case["model"].serve(case["tables"][name]), case["model"].expected
        timeline = build_timeline(case["reference"], served, green.CONTRACT, expected, case["tables"]["2023-01"])
        print(f"{name} ({time.perf_counter() - start:.1f} s) {timeline}")


def planted(case: dict) -> None:
    """Each fault from the 15th on: the days on which it was found, and how it was named."""
    from slml.monitoring.episodes import build_timeline

    from support import green

    february = case["tables"]["2023-02"]
    for fault, (plant, columns) in green.FAULTS.items():
        table = case["model"].serve(plant(february, green.since(february, BEGINS))).drop_columns(["fare_amount"])
        timeline = build_timeline(case["reference"], table, green.CONTRACT)
        late = [w for w in timeline.windows if w.start >= BEGINS]
        named = sum(columns <= {f.column for f in w.diagnosis.drift.alarming if f.kind == fault} for w in late)
        early = sum(w.diagnosis.action != "nothing" for w in timeline.windows if w.start < BEGINS)
        since = {f"{e.first:%Y-%m-%d}" for e in timeline.episodes if e.kind == fault}
        print(f"{fault}: named rightly on {named} of {len(late)} days, alarms before {early}, dated {', '.join(since)}")


def stretches(table: object, many: int, rows: int) -> Iterator[object]:
    """Windows that begin at equal distances."""
    import numpy as np

    for start in np.linspace(0, len(table) - rows, many).astype(int):
        yield table[start : start + rows]


def quiet(case: dict) -> None:
    """Alarms in untouched windows of two pairs of months; limits were adjusted with a look at both."""
    from slml.monitoring.drift import drift
    from slml.monitoring.episodes import learn_limits
    from slml.monitoring.limits import LIMITS
    from slml.quality.profile import profile

    from support import green

    tables = case["tables"]
    for first, second in (("2023-01", "2023-02"), ("2022-01", "2022-02")):
        reference = profile(tables[first], green.CONTRACT)
        windows = [w for rows in (1_000, 2_500, 5_000, 10_000) for w in stretches(tables[second], 50, rows)]
        profiles = [profile(window, green.CONTRACT) for window in windows]
        learned_limits = learn_limits(LIMITS, reference, tables[first], green.CONTRACT)
        for name, limits in (
            ("general limits", LIMITS),
            ("limits learned from the training", learned_limits),
        ):
            alarms = [drift(reference, window, green.CONTRACT, limits).alarming for window in profiles]
            print(f"{second} against {first}, {name}: {sum(map(bool, alarms))} of {len(windows)} untouched windows")


def smallest(case: dict) -> None:
    """The smallest share of changed rows that is found in nine of ten windows, with limits learned from January."""
    import numpy as np
    import pyarrow as pa

    from slml.monitoring.drift import drift
    from slml.monitoring.episodes import learn_limits
    from slml.monitoring.limits import LIMITS
    from slml.quality.profile import profile

    from support import green

    tables = case["tables"]
    limits = learn_limits(LIMITS, case["reference"], tables["2023-01"], green.CONTRACT)
    long = pa.concat_tables([tables["2023-02"], tables["2023-01"]])  # 100,000 rows are more than a month has
    for fault in ("nulls", "renamed", "unit", "swapped"):
        plant, columns = green.FAULTS[fault]
        smallest = {}
        for rows in (1_000, 10_000, 100_000):
            for share in SHARES:
                hits = 0
                windows = list(stretches(long, 10 if rows < 100_000 else 3, rows))
                for i, window in enumerate(windows):
                    touched = np.random.default_rng(i).random(rows) < share
                    changed = plant(window, touched, share=1.0) if fault == "nulls" else plant(window, touched)
                    alarms = drift(case["reference"], profile(changed, green.CONTRACT), green.CONTRACT, limits).alarming
                    hits += bool(columns & {f.column for f in alarms})
                if hits >= 0.9 * len(windows):
                    smallest[rows] = f"{share:.1%}"
                    break
        print(
            f"{fault}: "
            + ", ".join(f"{rows:,} rows {smallest.get(rows, 'never')}" for rows in (1_000, 10_000, 100_000))
        )


def beside(case: dict, python: str) -> None:
    """Days of February, untouched and with each fault, by slml and by Evidently."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from support import green

    january, february = case["tables"]["2023-01"], case["tables"]["2023-02"]
    names = [c.name for c in green.CONTRACT.columns if c.name != "fare_amount"]
    of_day = pc.day(february["lpep_pickup_datetime"])
    days = {f"{day:02d}": february.filter(pc.equal(of_day, day)) for day in range(1, 29)}
    windows = {f"untouched {day}": table for day, table in days.items()}
    for fault, (plant, _) in green.FAULTS.items():
        for day in ("15", "18", "22"):
            windows[f"{fault} {day}"] = plant(days[day], green.since(days[day], None))
    windows |= {f"untouched month {name}": case["tables"][name] for name in ("2023-02", "2022-01", "2022-02")}
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(january.select(names), f"{folder}/reference.parquet")
        Path(folder, "codes.json").write_text(json.dumps([*green.CODES, "store_and_fwd_flag"]))
        for i, table in enumerate(windows.values()):
            pq.write_table(table.select(names), f"{folder}/window-{i:03d}.parquet")
        ours, theirs = run(sys.executable, folder, "slml"), run(python, folder, "evidently")
    for name, our, their in zip(windows, ours, theirs, strict=True):
        print(f"{name}: slml {', '.join(our['said']) or '-'} | Evidently {', '.join(their['said']) or '-'}")
    for who, took in (("slml", ours), ("Evidently", theirs)):
        seconds, most = sorted(t["seconds"] for t in took), max(t["memory"] for t in took)
        print(f"{who}: median {seconds[len(seconds) // 2]:.3f} s a window, {sum(seconds):.1f} s in all, {most:.0f} MB")


def run(python: str, folder: str, who: str) -> list[dict]:
    """One of the two in a process of its own."""
    command = [python, __file__, "--folder", folder, "--who", who]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        sys.exit(f"{who} failed: {done.stderr[-1500:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


PARTS = ("scan", "real", "planted", "quiet", "smallest", "beside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the table that is scanned")
    parser.add_argument("--evidently", default="", help="the python of an environment that has Evidently")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--who", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY / "tests"))
    if arguments.folder:
        (by_slml if arguments.who == "slml" else by_evidently)(Path(arguments.folder))
        return
    if "scan" in arguments.only:
        scan(arguments.rows)
    rest = {"real": real, "planted": planted, "quiet": quiet, "smallest": smallest}
    case = months() if set(arguments.only) - {"scan"} else {}
    for name, part in rest.items():
        if name in arguments.only:
            print(f"\n{part.__doc__}")
            part(case)
    if "beside" in arguments.only:
        beside(case, arguments.evidently) if arguments.evidently else print(
            "Evidently: name its python with --evidently."
        )


if __name__ == "__main__":
    main()
