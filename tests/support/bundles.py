"""A bundle for tests that are not about training."""

import io

import msgspec
import numpy as np
import onnx.parser
import pyarrow as pa
import pyarrow.parquet as pq

from slml.contract import Column, Contract, Numeric
from slml.features.encoder import Encoder
from slml.quality.profile import profile
from slml.registry.bundle import MLMODEL, PREDICTION, Bundle, Lineage, write_bundle


def by_hand(place: str) -> Bundle:
    """A model that can be checked by hand: 3.25 to begin with, and 2.16 for each mile."""
    trips = pa.table({"miles": [1.0, 2.5, 10.0, 4.0], "fare": [5.5, 8.5, 25.0, 12.0]})
    predicted = pa.array(np.float32(3.25) + np.float32(2.16) * trips["miles"].to_numpy().astype(np.float32))
    columns = [Column(name="miles", type="float"), Column(name="fare", type="float")]
    contract = Contract(name="fare", columns=columns, target="fare", task="regression", features=[Numeric("miles")])
    graph = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        fares (float[batch] miles) => (float[batch] fare) <float entry = {3.25}, float per_mile = {2.16}> {
            distance = Mul(miles, per_mile)
            fare = Add(distance, entry)
        }
    """)
    pq.write_table(trips.select(["miles"]).append_column(PREDICTION, predicted), parity := io.BytesIO())
    lineage = Lineage(snapshots={"train": "trips@5132"}, runs={"train": "a41f"}, seed=0)
    return write_bundle(
        place,
        {
            "model.onnx": graph.SerializeToString(),
            "encoder.json": Encoder.fit(trips, contract).model_dump_json().encode(),
            "contract.json": contract.to_json().encode(),
            "parity.parquet": parity.getvalue(),
            "metrics.json": b"{}",
            "lineage.json": msgspec.json.encode(lineage),
            "profile.json": profile(trips.append_column("prediction", predicted), contract).to_json().encode(),
            "MLmodel": MLMODEL,
        },
    )
