"""A small table with every kind of feature and a target for each task."""

import numpy as np
import pyarrow as pa

from slml import contract as c

TARGETS = {"regression": "y", "binary": "yes", "multiclass": "letter"}  # task -> column


def rows_of_tasks(rows: int = 400) -> pa.Table:
    "The same rows at every call; numbers have missing values."
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    return pa.table(
        {
            "x": pa.array(x, mask=rng.random(rows) < 0.1),
            "k": np.array(["a", "b"])[rng.integers(0, 2, rows)],
            "zone": rng.integers(0, 40, rows),
            "t": pa.array(rng.integers(0, 2**31, rows) * 10**6, pa.timestamp("us")),
            **{name: rng.normal(center, 0.05, rows) for name, center in (("lat", 38.9), ("to_lat", 38.9))},
            **{name: rng.normal(center, 0.05, rows) for name, center in (("lon", -77.0), ("to_lon", -77.0))},
            "y": 1000 + 50 * x,
            "yes": x > 0,
            "letter": np.array(["p", "q", "r"])[np.digitize(x, [-0.5, 0.5])],
        }
    )


def contract_of(task: str) -> c.Contract:
    "What the table is for a task."
    types = {"x": "float", "k": "text", "zone": "int", "t": "timestamp", "y": "float", "yes": "bool", "letter": "text"}
    types |= dict.fromkeys(("lat", "lon", "to_lat", "to_lon"), "float")
    return c.Contract(
        name="small",
        columns=[c.Column(name=name, type=kind) for name, kind in types.items()],
        target=TARGETS[task],
        task=task,
        features=[
            c.Numeric(column="x"),
            c.Category(column="k"),
            c.Category(column="zone"),
            c.TimeParts(column="t"),
            c.Distance(latitude="lat", longitude="lon", to_latitude="to_lat", to_longitude="to_lon"),
        ],
    )
