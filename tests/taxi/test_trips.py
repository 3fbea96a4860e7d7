"""The worked example: synthetic trips look like the published ones, and their dirt is found, all of it and no more."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from slml.contract import Contract
from slml.errors import UsageError
from slml.quality.audit import audit
from slml.quality.clean import clean
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.tables.ingest import ingest_files
from slml.taxi import contract, generate
from slml.taxi.dirt import KINDS
from slml.taxi.rules import rule_for_defect
from slml.taxi.trips import COLUMNS
from slml.workspace import Workspace

from support import REPOSITORY

ROWS = 20_000


def read(path: str) -> pd.DataFrame:
    """A raw file as text, nothing interpreted."""
    return pd.read_csv(path, sep="|", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory):
    """A month without planted dirt."""
    return generate(tmp_path_factory.mktemp("right"), ROWS, seed=3, dirt=0)


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory):
    """A dirty month: what was generated, its truth, the ledger, the quarantine, the audit and the kept rows."""
    folder = tmp_path_factory.mktemp("dirty")
    generated = generate(folder / "raw", ROWS, seed=5, dirt=0.14)
    workspace = Workspace(root=str(folder / "root"), project="test")
    report = ingest_files(generated.files[0], "trips", workspace)
    catalog = Catalog(workspace)
    snapshot = catalog.snapshot(report.snapshot)
    with open_engine(workspace) as engine:
        findings = audit(snapshot, contract(), engine)
        ledger = clean(snapshot, contract(), catalog, engine, "kept", "quarantine")
        quarantine = engine.read(engine.table(catalog.snapshot(ledger.quarantine_snapshot))).to_pandas()
        kept_rows = engine.read(engine.table(catalog.snapshot(ledger.kept_snapshot))).to_pandas()
    quarantine["OBJECTID"] = quarantine["OBJECTID"].astype(int)
    truth = pq.read_table(generated.truth).to_pandas()
    return SimpleNamespace(
        generated=generated,
        truth=truth,
        report=report,
        findings=findings,
        ledger=ledger,
        quarantine=quarantine,
        kept_rows=kept_rows,
    )


def test_the_columns_are_those_of_the_published_files(trips, shared_data: Path) -> None:
    written = Path(trips.files[0]).read_text().splitlines()[0].split("|")
    assert written == list(COLUMNS)
    dictionary = (shared_data / "dc_taxi" / "README_DC_Taxicab_trip.txt").read_text(errors="replace")
    for name in COLUMNS:
        assert name in dictionary
    real = (shared_data / "dc_taxi" / "malamudj_2023_head_tail.txt").read_text().splitlines()
    assert set(real[0].split("|")) <= set(COLUMNS)


def test_values_are_spelled_as_in_the_published_files(trips, shared_data: Path) -> None:
    """The print-out of 2023 and the synthetic file match the same patterns, column by column."""
    patterns = {
        "OBJECTID": r"\d+",
        "FAREAMOUNT": r"\d+\.\d\d|NaN|",
        "ORIGINZIP": r"\d{5}|\dD[A-Z]",
        "MILEAGE": r"\d+\.\d{5}",
        "DURATION": r"\d+\.0",
        "ORIGIN_BLOCK_LATITUDE": r"3\d\.\d{6}|NaN|",
        "ORIGIN_BLOCK_LONGITUDE": r"-7\d\.\d{6}|NaN|",
        "ORIGINDATETIME_TR": r"\d\d/\d\d/\d{4} \d\d:00",
        "DESTINATIONDATETIME_TR": r"\d\d/\d\d/\d{4} \d\d:00",
    }
    for frame in (read(trips.files[0]), read(str(shared_data / "dc_taxi" / "malamudj_2023_head_tail.txt"))):
        for column, pattern in patterns.items():
            assert frame[column].str.fullmatch(pattern).all(), column


def test_what_is_missing_by_nature_is_missing_as_often_as_in_2023(trips) -> None:
    frame = read(trips.files[0])
    assert frame["FAREAMOUNT"].isin(["", "NaN"]).mean() == pytest.approx(0.0734, abs=0.006)
    assert frame["ORIGIN_BLOCK_LATITUDE"].isin(["", "NaN"]).mean() == pytest.approx(0.162, abs=0.01)
    assert (frame["ORIGIN_BLOCK_LATITUDE"].isin(["", "NaN"]) == frame["ORIGIN_BLOCK_LONGITUDE"].isin(["", "NaN"])).all()


def test_right_rows_make_sense(trips) -> None:
    frame = read(trips.files[0]).replace({"": None, "NaN": None}).dropna()
    numbers = frame[[*COLUMNS[3:9], "MILEAGE", "DURATION"]].astype(float)
    assert np.allclose(numbers[list(COLUMNS[3:8])].sum(axis=1), numbers["TOTALAMOUNT"], atol=0.001)
    steps = (numbers["FAREAMOUNT"] - 3.25) / 0.27
    assert np.allclose(steps, steps.round(), atol=1e-6)  # the meter of the District
    speed = numbers["MILEAGE"] / numbers["DURATION"] * 3600
    assert speed.between(1.5, 60).all()
    moments = [pd.to_datetime(frame[name], format="%m/%d/%Y %H:%M") for name in COLUMNS[-2:]]
    assert (moments[0] <= moments[1]).all()
    assert moments[0].dt.strftime("%Y-%m").eq("2023-03").all()
    assert frame["OBJECTID"].astype(int).is_monotonic_increasing


def test_the_fare_is_more_than_a_line_can_learn(trips) -> None:
    """Otherwise a network would have nothing to win, and the example nothing to show."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import LinearRegression

    frame = read(trips.files[0]).replace({"": None, "NaN": None}).dropna()
    time = pd.to_datetime(frame["ORIGINDATETIME_TR"], format="%m/%d/%Y %H:%M")
    point = frame[[c for c in COLUMNS if c.startswith(("ORIGIN_BLOCK_L", "DESTINATION_BLOCK_L"))]].astype(float)
    distance = np.hypot(point.iloc[:, 0] - point.iloc[:, 2], 0.78 * (point.iloc[:, 1] - point.iloc[:, 3]))
    x = np.c_[point, distance, time.dt.hour, time.dt.day_of_week]
    y, n = frame["FAREAMOUNT"].astype(float).to_numpy(), len(frame) * 4 // 5
    order = np.random.default_rng(0).permutation(len(frame))

    def error(model) -> float:
        model.fit(x[order[:n]], y[order[:n]])
        return float(np.abs(model.predict(x[order[n:]]) - y[order[n:]]).mean())

    boosted = error(HistGradientBoostingRegressor(max_iter=80, learning_rate=0.2, random_state=0))
    linear = error(LinearRegression())
    assert boosted < 0.7 * linear, (boosted, linear)


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (generate(tmp_path / name, 3000, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert Path(one.files[0]).read_bytes() == Path(two.files[0]).read_bytes()
    assert Path(one.files[0]).read_bytes() != Path(other.files[0]).read_bytes()
    assert pq.read_table(one.truth).equals(pq.read_table(two.truth))


def test_every_month_is_a_file_that_starts_at_one(tmp_path: Path) -> None:
    generated = generate(tmp_path, 900, files=3, first="2023-11")
    assert [Path(file).name for file in generated.files] == [
        "taxi_synthetic_2023_11.txt", "taxi_synthetic_2023_12.txt", "taxi_synthetic_2024_01.txt",
    ]  # fmt: skip
    frames = [read(file) for file in generated.files]
    assert sum(map(len, frames)) == 900
    assert all(frame["OBJECTID"].iloc[0] == "1" for frame in frames)


def test_dates_in_the_other_order_can_always_be_told(tmp_path: Path) -> None:
    """With two months of files, a day that is one of them is not planted: nobody could find it."""
    generated = generate(tmp_path, 20_000, files=2, dirt={"day_first_in_another_month": 0.5})
    truth = pq.read_table(generated.truth).to_pandas()
    frame = pd.concat([read(file).assign(file=Path(file).name) for file in generated.files])
    frame["OBJECTID"] = frame["OBJECTID"].astype(int)
    planted = truth[~truth["natural"]].merge(frame, on=["file", "OBJECTID"])
    assert len(planted) > 1000
    read_month_first = planted["ORIGINDATETIME_TR"].str[:2].astype(int)
    assert read_month_first.le(12).all()
    assert not read_month_first.isin([3, 4]).any()


def test_all_rows_are_stored_and_accounted_for(month) -> None:
    assert month.report.rows == month.report.stored == ROWS
    assert month.report.rejected == 0
    assert month.ledger.rows_in == ROWS == month.ledger.kept + month.ledger.quarantined
    assert month.findings.clean_rows == month.ledger.kept == len(month.kept_rows)
    assert len(month.quarantine) == month.ledger.quarantined


def test_what_is_quarantined_is_what_is_dirty(month) -> None:
    dirty = month.truth.drop_duplicates("line")
    assert len(dirty) == month.generated.dirty_rows
    assert Counter(month.quarantine["OBJECTID"]) == Counter(dirty["OBJECTID"])


def test_each_planted_defect_is_found_by_its_rule(month) -> None:
    planted = month.truth[~month.truth["natural"]]
    assert set(planted["kind"]) == set(KINDS)
    assert planted["line"].is_unique
    broken = month.quarantine.set_index("OBJECTID")["broken"]
    for kind, column, number in zip(planted["kind"], planted["column"], planted["OBJECTID"], strict=True):
        assert rule_for_defect(kind, column) in list(broken[number]), (kind, column, list(broken[number]))


def test_each_natural_gap_is_found_by_its_rule(month) -> None:
    natural = month.truth[month.truth["natural"]]
    rules = natural.groupby("OBJECTID")["kind"].apply(lambda kinds: {rule_for_defect(kind, "") for kind in kinds})
    broken = month.quarantine.set_index("OBJECTID")["broken"]
    for number, expected in rules.items():
        assert expected <= set(broken[number])


def test_what_is_kept_is_right(month) -> None:
    """The kept rows, typed by the contract, are the clean rows of the file, value by value."""
    frame = read(month.generated.files[0])
    frame["OBJECTID"] = frame["OBJECTID"].astype(int)
    right = frame.drop(index=month.truth["line"] - 2)
    pairs = right.merge(month.kept_rows, on="OBJECTID", suffixes=("", "_kept"))
    assert len(pairs) == len(right) == len(month.kept_rows)
    for name in ("FAREAMOUNT", "MILEAGE", "DURATION", "ORIGIN_BLOCK_LATITUDE", "DESTINATION_BLOCK_LONG"):
        assert (pairs[name].astype(float) == pairs[f"{name}_kept"]).all()
    assert (
        pd.to_datetime(pairs["ORIGINDATETIME_TR"], format="%m/%d/%Y %H:%M") == pairs["ORIGINDATETIME_TR_kept"]
    ).all()
    assert month.kept_rows["row_hash"].is_monotonic_increasing


def test_the_contract_of_the_pipeline_is_the_one_of_the_example() -> None:
    stored = REPOSITORY / "pipelines" / "taxi.contract.json"
    assert stored.read_text() == contract().to_json(), "write it again: contract().save('pipelines/taxi.contract.json')"
    assert Contract.load(str(stored)) == contract()


def test_no_feature_is_known_only_after_the_trip() -> None:
    used = {name for feature in contract().features for name in feature.columns}
    assert not used & {"MILEAGE", "DURATION", "DESTINATIONDATETIME_TR", *COLUMNS[3:9]}


def test_the_sample_is_synthetic_and_says_so() -> None:
    files = sorted((REPOSITORY / "data" / "sample").iterdir())
    assert files
    assert all("synthetic" in file.name for file in files)
    assert len(read(str(next(f for f in files if f.suffix == ".txt")))) <= 200
    assert "synthetic" in (REPOSITORY / "data" / "README.md").read_text()
    assert sum(file.stat().st_size for file in (REPOSITORY / "data").rglob("*") if file.is_file()) < 200_000


def test_the_command_writes_and_tells(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "slml.taxi", "--rows", "500", "--out", str(tmp_path / "raw"), "--seed", "4"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "500 synthetic trips in taxi_synthetic_2023_03.txt" in done.stdout
    wrong = subprocess.run([*call, "--first", "March"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "2023-03" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_unknown_dirt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="negative_fare"):
        generate(tmp_path, 10, dirt={"negativ_fare": 0.1})
    with pytest.raises(UsageError, match=r"0\.9 at most"):
        generate(tmp_path, 10, dirt=1.5)
    assert not list(tmp_path.iterdir())
