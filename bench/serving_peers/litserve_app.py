"""LitServe with ONNX Runtime, one worker."""

import litserve
from common import PORT, predict, session


class Api(litserve.LitAPI):
    """The graph as LitServe wants it."""

    def setup(self, device: str) -> None:
        self.graph = session()

    def decode_request(self, request: dict) -> dict:
        return request

    def predict(self, row: dict) -> list[float]:
        return predict(self.graph, row)

    def encode_response(self, predictions: list[float]) -> dict:
        return {"predictions": predictions}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(port=PORT, host="127.0.0.1", num_api_servers=1, log_level="error", generate_client_file=False)
