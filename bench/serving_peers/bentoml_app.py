"""BentoML with ONNX Runtime, one worker; started by `bentoml serve bentoml_app:Trips`."""

import os
import sys
from pathlib import Path

import bentoml

sys.argv[1:] = ["0", os.environ["BENCH_BUNDLE"]]
sys.path.insert(0, str(Path(__file__).parent))
from common import predict, session  # noqa: E402


@bentoml.service(workers=1)
class Trips:
    """The graph as BentoML wants it."""

    def __init__(self) -> None:
        self.graph = session()

    @bentoml.api(route="/predict")
    def answer(self, miles: float, minutes: float, people: float, tip: float, lat: float, lon: float, to_lat: float, to_lon: float) -> dict:  # fmt: skip  # noqa: E501
        return {"predictions": predict(self.graph, {k: v for k, v in locals().items() if k != "self"})}
