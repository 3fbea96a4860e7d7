"""A small table of waves with a model and loaders over it, the same at every call."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from slml import contract as c
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.sampling.split import Part
from slml.training.loader import Loader

RULES = c.Contract(
    name="waves",
    columns=[c.Column(name=name, type="float") for name in ("x", "z", "y")],
    target="y",
    task="regression",
    features=[c.Numeric(column="x"), c.Numeric(column="z")],
)


def write_rows(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, rows in (("train", 2000), ("valid", 500)):
        x, z = rng.normal(size=(2, rows))
        pq.write_table(
            pa.table({"x": x, "z": z, "y": np.sin(2 * x) + z**2}), folder / f"{name}.parquet", row_group_size=300
        )


def made(folder: str, kind: type[Loader] = Loader) -> tuple:
    "A small model and loaders over the files, the same at every call."
    rows = pq.read_table(f"{folder}/train.parquet")
    encoder = Encoder.fit(rows, RULES)
    model = build_model(RULES, encoder, encoder(rows), width=32, dropout=0.2, seed=1)
    return model, *(kind([f"{folder}/{name}.parquet"], Part(), encoder, 128) for name in ("train", "valid"))
