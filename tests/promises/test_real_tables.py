"""The generic pipeline on real public tables, through the command line, as a user would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slml.contract import Between, Category, Column, Contract, Numeric, TimeParts

from support import REPOSITORY

pytestmark = pytest.mark.slow
SLML = Path(sys.executable).parent / "slml"
ADULT = (
    "age,workclass,fnlwgt,education,education_num,marital_status,occupation,relationship,race,sex,"
    "capital_gain,capital_loss,hours_per_week,native_country,income"
)


def run_table(root: Path, **parameters: object) -> dict:
    """The summary of `slml pipeline run pipelines/table.yaml`, once it balances and beats a constant."""
    options = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
    done = subprocess.run(
        [SLML, "pipeline", "run", "pipelines/table.yaml", "--json", *options],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=580, env={**os.environ, "SLML_ROOT": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["rows_in"] == summary["rows_kept"] + summary["rows_quarantined"] + summary["rows_rejected"]
    assert sum(summary["splits"].values()) == summary["rows_kept"]
    metric = "rmse" if "rmse" in summary["test"] else "log_loss"
    assert summary["test"][metric] < 0.8 * summary["baselines"]["constant"][metric]
    print(json.dumps({key: summary[key] for key in ("rows_in", "rows_kept", "test", "baselines", "seconds")}))
    return summary


def test_nyc_coordinates(shared_data: Path, tmp_path: Path) -> None:
    """Two spellings of time, and passengers as 1 and as 2.0, in three files of one glob."""
    result = run_table(tmp_path, source=f"{shared_data}/nyc_coordinates/*.csv", target="fare_amount", max_seconds=12)
    assert result["rows_in"] == 7333 + 4706 + 1572
    assert result["rows_kept"] > 0.98 * result["rows_in"]


def test_nyc_green_fare(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "nyc_green" / "green_tripdata_2023-01.parquet"
    result = run_table(tmp_path, source=source, target="fare_amount", max_seconds=90)
    assert result["rows_in"] == 68_211
    assert any("total_amount" in note for note in result["notes"]), "the total gives the fare away"
    assert result["test"]["rmse"] <= 1.05 * result["baselines"]["hist_gradient_boosting"]["rmse"]


def test_chicago(shared_data: Path, tmp_path: Path) -> None:
    result = run_table(tmp_path, source=shared_data / "chicago_taxi" / "data.csv", target="fare", max_seconds=12)
    assert result["rows_in"] == 15_002
    assert result["test"]["rmse"] < 1.1 * result["baselines"]["linear"]["rmse"]


def test_california(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "california_housing" / "housing.csv"
    result = run_table(tmp_path, source=source, target="median_house_value", max_seconds=120)
    assert result["rows_in"] == 20_640
    assert result["test"]["rmse"] <= 51_000  # USD


def test_adult(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "adult" / "adult-train.csv"
    result = run_table(tmp_path, source=source, columns=ADULT, target="income", task="binary", max_seconds=12)
    assert result["rows_in"] == 32_561
    assert result["test"]["accuracy"] > 0.85


def test_bike_sharing(shared_data: Path, tmp_path: Path) -> None:
    result = run_table(tmp_path, source=shared_data / "bike_sharing" / "hour.csv", target="cnt", max_seconds=12)
    assert result["rows_in"] == 17_379
    assert any("casual" in note and "registered" in note for note in result["notes"]), "together they give cnt away"
    assert result["test"]["rmse"] > 10, "a smaller error means that the leak was used"


def test_nyc_green_duration(shared_data: Path, tmp_path: Path) -> None:
    """How long a trip takes is no column of the table: the contract computes it, and bounds it with reasons."""
    contract = Contract(
        name="green_durations",
        columns=(
            Column("lpep_pickup_datetime", "timestamp", nullable=False),
            Column("lpep_dropoff_datetime", "timestamp", nullable=False),
            Column("PULocationID", "int", nullable=False),
            Column("DOLocationID", "int", nullable=False),
            Column("trip_distance", "float", unit="miles", nullable=False),
            Column(
                "minutes", "float", unit="min", nullable=False,
                sql="(epoch(lpep_dropoff_datetime) - epoch(lpep_pickup_datetime)) / 60",
            ),
        ),
        time="lpep_pickup_datetime",
        target="minutes",
        task="regression",
        rules=(
            Between("minutes", 0.5, 180, reason="a fare of half a minute is a mistake; the city is crossed in 3 hours"),
            Between("trip_distance", 0.1, 100, reason="shorter trips were called off; the city is 35 miles across"),
            Between(
                "lpep_pickup_datetime", "2023-01-01", "2023-01-31T23:59:59", reason="the file is that of January 2023"
            ),
        ),
        features=(
            TimeParts("lpep_pickup_datetime"),
            Category("PULocationID"),
            Category("DOLocationID"),
            Numeric("trip_distance"),
        ),
    )  # fmt: skip
    path = tmp_path / "durations.contract.json"
    contract.save(str(path))
    source = shared_data / "nyc_green" / "green_tripdata_2023-01.parquet"
    result = run_table(tmp_path, source=source, contract=path, max_seconds=60)
    assert result["rows_in"] == 68_211
    assert not result["proposed"]
    assert 0.93 < result["rows_kept"] / result["rows_in"] < 0.96, "3,300 zero distances and some impossible durations"
    assert result["test"]["rmse"] < 1.05 * result["baselines"]["hist_gradient_boosting"]["rmse"]
