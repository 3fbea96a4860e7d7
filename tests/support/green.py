"""Trips of New York's green taxis as a model sees them, and faults planted into them; for tests and benchmarks."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from slml.contract import Between, Category, Column, Contract, Numeric, TimeParts
from slml.quality.column_profile import as_type

CODES = ("RatecodeID", "PULocationID", "DOLocationID", "passenger_count", "payment_type", "trip_type")
CONTRACT = Contract(
    name="green",
    columns=[
        Column(name="lpep_pickup_datetime", type="timestamp"),
        *(Column(name=name, type="int") for name in CODES),
        Column(name="store_and_fwd_flag", type="text"),
        Column(name="trip_distance", type="float", unit="mile"),
        Column(name="minutes", type="float", unit="minute"),
        Column(name="fare_amount", type="float", unit="USD"),
    ],
    time="lpep_pickup_datetime",
    target="fare_amount",
    task="regression",
    rules=[
        Between("fare_amount", low=0.5, high=300, reason="no trip of the city costs more"),
        Between("trip_distance", low=0.01, high=100, reason="the city is 60 miles across"),
        Between("minutes", low=0.5, high=180, reason="nobody rides for longer"),
    ],
    features=[
        TimeParts(column="lpep_pickup_datetime"),
        *(Category(column=name) for name in (*CODES, "store_and_fwd_flag")),
        Numeric(column="trip_distance"),
        Numeric(column="minutes"),
    ],
)


def month(folder: Path, name: str) -> pa.Table:
    """The valid trips of a month such as 2023-02, as the contract types them, in the order of their beginning."""
    raw = pq.read_table(folder / "nyc_green" / f"green_tripdata_{name}.parquet")
    start, end = (raw[f"lpep_{end}_datetime"] for end in ("pickup", "dropoff"))
    minutes = pc.divide(pc.subtract(end, start).cast(pa.int64()), 60e6)
    raw = raw.append_column("minutes", minutes)
    table = pa.table({c.name: as_type(raw[c.name].combine_chunks(), c) for c in CONTRACT.columns})
    valid = pc.equal(pc.strftime(start, format="%Y-%m"), name)
    for rule in CONTRACT.rules:
        value = table[rule.column]
        valid = pc.and_(valid, pc.and_(pc.greater_equal(value, rule.low), pc.less_equal(value, rule.high)))
    return table.filter(valid).sort_by("lpep_pickup_datetime")


def exchanged(table: pa.Table, **columns: pa.Array) -> pa.Table:
    """The table with other values in some columns."""
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def since(table: pa.Table, start: datetime | None) -> np.ndarray:
    """Which rows a fault that begins then concerns."""
    if start is None:
        return np.ones(len(table), bool)
    return pc.greater_equal(table["lpep_pickup_datetime"], start).to_numpy()


def unit(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The distance in km."""
    miles = table["trip_distance"].to_numpy()
    return exchanged(table, trip_distance=pa.array(np.where(rows, miles * 1.609344, miles)))


def renamed(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Payment by card, 1, becomes 11."""
    kind = table["payment_type"]
    return exchanged(table, payment_type=pc.if_else(pc.and_(pa.array(rows), pc.equal(kind, 1)), 11, kind))


def nulled(table: pa.Table, rows: np.ndarray, share: float = 0.2, column: str = "trip_distance") -> pa.Table:
    """A fifth of the distances are lost."""
    lost = rows & (np.random.default_rng(0).random(len(table)) < share)
    return exchanged(table, **{column: pc.if_else(pa.array(lost), None, table[column])})


def swapped(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Pick-up and drop-off zones are exchanged."""
    up, down, here = table["PULocationID"], table["DOLocationID"], pa.array(rows)
    return exchanged(table, PULocationID=pc.if_else(here, down, up), DOLocationID=pc.if_else(here, up, down))


def hourless(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Nothing between five and six in the afternoon."""
    late = pc.equal(pc.hour(table["lpep_pickup_datetime"]), 17).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(~(rows & late)))


# fault -> how it is planted, and the columns in which it must be found
FAULTS = {
    "unit": (unit, {"trip_distance"}),
    "renamed": (renamed, {"payment_type"}),
    "nulls": (nulled, {"trip_distance"}),
    "swapped": (swapped, {"PULocationID", "DOLocationID"}),
    "missing hours": (hourless, {"lpep_pickup_datetime"}),
}


def _inputs(table: pa.Table) -> np.ndarray:
    """What the model of fares sees: every input as a number, the hour among them."""
    names = [name for name in table.column_names if name in (*CODES, "trip_distance", "minutes")]
    hour = pc.hour(table["lpep_pickup_datetime"]).to_numpy()
    return np.stack([table[name].cast(pa.float64()).to_numpy() for name in names] + [hour.astype(float)], 1)


class FareModel:
    """A quick model of the fare, trained on the greater part of a month; the rest tells its error."""

    def __init__(self, table: pa.Table):
        from sklearn.ensemble import HistGradientBoostingRegressor

        from slml.monitoring.performance import ExpectedError, errors

        test = np.arange(len(table)) % 4 == 0
        train = table.filter(pa.array(~test))
        self.model = HistGradientBoostingRegressor(max_iter=80, random_state=0)
        self.model.fit(_inputs(train), train["fare_amount"].to_numpy())
        tested = self.serve(table.filter(pa.array(test)))
        self.expected = ExpectedError.fit(*errors("regression", tested["fare_amount"], tested["_prediction"]))

    def serve(self, table: pa.Table) -> pa.Table:
        """The table with the model's predictions, as a request log has them."""
        return table.append_column("_prediction", pa.array(self.model.predict(_inputs(table))))
