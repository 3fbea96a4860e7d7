"""What is proposed for a table that nobody has described, and what is said about it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from slml.contract import Between, Column, Contract, Distance, ParsesAs
from slml.errors import ContractError
from slml.quality.audit import audit
from slml.quality.infer import coordinates, infer
from slml.tables.catalog import Catalog, Snapshot
from slml.tables.engine import Engine, open_engine
from slml.workspace import Workspace

ROWS = 400


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace for all tests here: each replaces the rows of its only table."""
    return Workspace(root=str(tmp_path_factory.mktemp("infer")), project="test")


@pytest.fixture(scope="module")
def engine(workspace: Workspace) -> Iterator[Engine]:
    with open_engine(workspace) as opened:
        yield opened


def store(workspace: Workspace, data: pa.Table | dict) -> Snapshot:
    table = data if isinstance(data, pa.Table) else pa.table(data)
    return Catalog(workspace).table("t").replace(table)


def said(contract: Contract, *words: str) -> bool:
    return any(all(w in note for w in words) for note in contract.notes)


def features(contract: Contract) -> set[str]:
    return {c for f in contract.features for c in f.columns}


def test_texts_get_the_type_that_nearly_all_of_them_read_as(workspace: Workspace, engine: Engine) -> None:
    random = np.random.default_rng(0)
    numbers = [f"{v:.2f}" for v in random.gamma(2, 5, ROWS)]
    contract = infer(store(workspace, {
        "price": ["NULL" if i % 40 == 0 else v for i, v in enumerate(numbers)],
        "half": ["n/a" if i % 2 == 0 else v for i, v in enumerate(numbers)],
        "iso": [f"2019-01-{1 + i % 28:02d} 08:00:00" for i in range(ROWS)],
        "month_first": [f"01/{1 + i % 28:02d}/2019 08:00" for i in range(ROWS)],
        "either": [f"{1 + i % 12:02d}/{1 + i % 9:02d}/2019" for i in range(ROWS)],
        "code": [1.0 + i % 4 for i in range(ROWS)],
        "words": [["clear", "mist", "?"][i % 3] for i in range(ROWS)],
    }), engine)  # fmt: skip
    types = {c.name: (c.type, c.format) for c in contract.columns}
    assert types["price"] == ("float", "")
    assert contract.column("price").nulls == ("NULL",)
    assert contract.column("price").nullable
    assert said(contract, "'price'", "'NULL' in 10 rows", "null")
    assert types["half"][0] == "float"
    assert not said(contract, "quarantined")
    assert types["iso"][0] == "timestamp"
    assert types["month_first"] == ("timestamp", "%m/%d/%Y %H:%M")
    assert types["either"] == ("text", "")
    assert said(contract, "'either'", "not guessed")
    assert types["code"] == ("int", "")
    assert types["words"] == ("text", "")
    assert said(contract, "'words'", "'?'", "133 rows")


def test_texts_of_nan_are_gaps_and_cost_no_row(workspace: Workspace, engine: Engine) -> None:
    count = ["NaN" if i % 10 == 0 else str(i % 90) for i in range(ROWS)]
    price = ["nan" if i % 2 == 0 else f"{i / 7:.2f}" for i in range(ROWS)]
    snapshot = store(workspace, {"count": count, "price": price})
    contract = infer(snapshot, engine)
    assert [(c.type, c.nullable) for c in contract.columns] == [("float", True), ("float", True)]
    assert not said(contract, "quarantined")
    assert audit(snapshot, contract, engine).clean_rows == ROWS


def test_a_proposal_throws_nothing_away_on_ordinary_data(workspace: Workspace, engine: Engine) -> None:
    random = np.random.default_rng(1)
    tails = {"normal": random.normal(0, 1, 5000), "lognormal": random.lognormal(0, 1.5, 5000),
             "pareto": random.pareto(1.5, 5000),
             "zeros": np.where(random.random(5000) < 0.9, 0, random.gamma(2, 9, 5000))}  # fmt: skip
    snapshot = store(workspace, tails)
    contract = infer(snapshot, engine)
    assert all(r.reason for r in contract.rules if isinstance(r, Between))
    assert audit(snapshot, contract, engine).clean_rows >= 0.995 * 5000
    absurd = {n: np.append(v[:-1], 1e9) for n, v in tails.items()}
    assert audit(store(workspace, absurd), contract, engine).clean_rows < 5000


def test_the_same_rows_give_the_same_contract(workspace: Workspace, engine: Engine) -> None:
    random = np.random.default_rng(2)
    data = pa.table({"a": random.normal(0, 1, 3000), "b": random.normal(0, 1, 3000), "y": random.normal(0, 1, 3000)})
    shuffled = data.take(pa.array(random.permutation(3000)))
    assert infer(store(workspace, data), engine, target="y") == infer(store(workspace, shuffled), engine, target="y")


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([i % 2 for i in range(ROWS)], "binary"),
        (["yes" if i % 3 else "no" for i in range(ROWS)], "binary"),
        ([["a", "b", "c"][i % 3] for i in range(ROWS)], "multiclass"),
        ([i % 5 for i in range(ROWS)], "multiclass"),
        ([i % 90 for i in range(ROWS)], "regression"),
        ([i * 0.37 % 7 for i in range(ROWS)], "regression"),
    ],
)
def test_the_task_follows_from_the_target(workspace: Workspace, engine: Engine, values: list, task: str) -> None:
    x = np.random.default_rng(0).normal(0, 1, ROWS)
    assert infer(store(workspace, {"x": x, "y": values}), engine, target="y").task == task


@pytest.mark.parametrize(
    ("values", "target", "told"),
    [
        ([1.0] * ROWS, "y", "one value"),
        ([None] * ROWS, "y", "null in all 400 rows"),
        ([1.0] * ROWS, "yy", "did you mean 'y'"),
    ],
)
def test_a_target_that_cannot_be_learned(
    workspace: Workspace, engine: Engine, values: list, target: str, told: str
) -> None:
    snapshot = store(workspace, {"y": pa.array(values, pa.float64()), "x": list(range(ROWS))})
    with pytest.raises(ContractError, match=told):
        infer(snapshot, engine, target=target)


def test_keys_and_constants_make_no_features(workspace: Workspace, engine: Engine) -> None:
    random = np.random.default_rng(0)
    ids, sizes = (random.permutation(10 * ROWS)[:ROWS] for _ in range(2))
    snapshot = store(workspace, {"trip_id": ids, "same": ["x"] * ROWS, "size": sizes, "y": random.normal(0, 1, ROWS)})
    contract = infer(snapshot, engine, target="y")
    assert contract.key == ("trip_id",)
    assert said(contract, "'trip_id' is unique")
    assert features(contract) == {"size"}
    assert said(contract, "'same' has one value")
    with pytest.raises(ContractError, match="did you mean 'trip_id'"):
        infer(snapshot, engine, key=("trip_ids",))
    assert infer(snapshot, engine, key=("same",)).key == ("same",)
    assert said(infer(snapshot, engine, key=("same",)), "The key same repeats in 399")


@pytest.mark.parametrize(
    "names",
    [
        ("pickuplat", "pickuplon", "dropofflat", "dropofflon"),
        ("pickup_latitude", "pickup_longitude", "dropoff_latitude", "dropoff_longitude"),
        ("ORIGIN_LAT", "ORIGIN_LONG", "DESTINATION_LAT", "DESTINATION_LONG"),
        ("start_lat", "start_lng", "end_lat", "end_lng"),
        ("lat_from", "lon_from", "lat_to", "lon_to"),
    ],
)
def test_two_places_make_a_distance(workspace: Workspace, engine: Engine, names: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    order = [2, 3, 0, 1]  # where a trip ends stands first in the table
    snapshot = store(
        workspace, {names[i]: random.normal(38, 1, ROWS) for i in order} | {"y": random.normal(0, 1, ROWS)}
    )
    assert Distance(*names) in infer(snapshot, engine, target="y").features


def test_places_are_not_seen_everywhere() -> None:
    assert coordinates(["flat", "relation", "plate", "lonely"]) == []


def test_a_column_that_gives_the_class_away(workspace: Workspace, engine: Engine) -> None:
    random = np.random.default_rng(0)
    score, x = random.normal(0, 1, 2000), random.normal(0, 1, 2000)
    snapshot = store(workspace, {"score": score, "x": x, "word": np.where(score > 0, "hot", "cold").tolist(),
                                 "y": (score > 0).astype(int)})  # fmt: skip
    contract = infer(snapshot, engine, target="y")
    assert features(contract) == {"x"}
    assert said(contract, "Target leak", "'word' alone gives 'y' away", "put them back")


def test_an_empty_table_is_no_surprise(workspace: Workspace, engine: Engine) -> None:
    snapshot = store(workspace, pa.table({"x": pa.array([], pa.float64()), "y": pa.array([], pa.float64())}))
    assert infer(snapshot, engine).names == ("x", "y")
    with pytest.raises(ContractError, match="null in all 0 rows"):
        infer(snapshot, engine, target="y")


def test_bicycles_are_warned_of(workspace: Workspace, engine: Engine, shared_data: Path) -> None:
    snapshot = store(workspace, pa.csv.read_csv(shared_data / "bike_sharing" / "hour.csv"))
    contract = infer(snapshot, engine, target="cnt")
    assert said(contract, "Target leak", "casual + registered together give 'cnt' away")
    assert not {"casual", "registered", "instant"} & features(contract)
    assert (contract.key, contract.task, contract.time) == (("instant",), "regression", "dteday")
    assert Contract.from_json(contract.to_json()) == contract


def test_the_total_of_a_green_taxi_gives_its_fare_away(workspace: Workspace, engine: Engine, shared_data: Path) -> None:
    snapshot = store(workspace, pq.read_table(shared_data / "nyc_green" / "green_tripdata_2023-01.parquet"))
    contract = infer(snapshot, engine, target="fare_amount")
    assert said(contract, "Target leak", "total_amount", "tip_amount")
    assert {"trip_distance", "PULocationID", "payment_type"} <= features(contract)
    assert not {"total_amount", "tip_amount", "ehail_fee"} & features(contract)
    assert audit(snapshot, contract, engine).clean_rows >= 0.995 * snapshot.rows


def test_incomes(workspace: Workspace, engine: Engine, shared_data: Path) -> None:
    frame = pd.read_csv(shared_data / "adult" / "adult-train.csv", header=None, skipinitialspace=True, nrows=5000)
    frame.columns = [f"c{i}" for i in frame.columns[:-1]] + ["income"]
    contract = infer(store(workspace, pa.Table.from_pandas(frame, preserve_index=False)), engine, target="income")
    assert contract.task == "binary"
    assert said(contract, "'?'")
    assert not said(contract, "Target leak")
    assert len(features(contract)) == 14


def test_houses_lose_next_to_nothing(workspace: Workspace, engine: Engine, shared_data: Path) -> None:
    file = next((shared_data / "california_housing").glob("*.csv"))
    snapshot = store(workspace, pa.csv.read_csv(file))
    contract = infer(snapshot, engine, target="median_house_value")
    assert contract.task == "regression"
    assert not said(contract, "Target leak")
    assert audit(snapshot, contract, engine).clean_rows >= 0.999 * snapshot.rows
    assert contract.column("total_bedrooms") == Column("total_bedrooms", contract.column("total_bedrooms").type)
    assert not any(isinstance(r, ParsesAs) for r in contract.rules)


@pytest.mark.parametrize(
    ("values", "task", "told"),
    [
        ([f"name {i}" for i in range(ROWS)], "regression", "regression needs a number"),
        ([i % 3 for i in range(ROWS)], "binary", "has 3 values"),
        ([f"{i}x" for i in range(1200)], "", "has 1,200 values"),
        ([i % 3 for i in range(ROWS)], "regresion", "did you mean 'regression'"),
    ],
)
def test_a_task_that_does_not_fit(workspace: Workspace, engine: Engine, values: list, task: str, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        infer(store(workspace, {"y": values, "x": np.arange(len(values)) * 0.5}), engine, target="y", task=task)
