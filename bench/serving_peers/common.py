"""What the peers share: the graph in ONNX Runtime with one thread, as the service has it, and a request for it."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

PORT, BUNDLE = int(sys.argv[1]) if sys.argv[1:] else 0, Path(sys.argv[2]) if sys.argv[2:] else Path()
NAMES = ("miles", "minutes", "people", "tip", "lat", "lon", "to_lat", "to_lon")


def session() -> ort.InferenceSession:
    """The graph, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(BUNDLE / "model.onnx", options, providers=["CPUExecutionProvider"])


def predict(graph: ort.InferenceSession, row: dict[str, float]) -> list[float]:
    """One row through the graph, the way everybody writes it."""
    return graph.run(None, {name: np.array([row[name]], np.float32) for name in NAMES})[0].tolist()
