"""FastAPI with a pydantic model and ONNX Runtime or torch: the third word says which."""

import sys

import uvicorn
from common import BUNDLE, NAMES, PORT, predict, session
from fastapi import FastAPI
from pydantic import create_model

Row = create_model("Row", **dict.fromkeys(NAMES, (float, ...)))
app = FastAPI()

if sys.argv[3] == "torch":
    import torch
    from torch import nn

    torch.set_num_threads(1)
    layers = [layer for n in (8, 256, 256) for layer in (nn.Linear(n, 256), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Linear(256, 1)).eval()

    @app.post("/predict")
    async def answer(row: Row) -> dict:
        """One request."""
        with torch.inference_mode():
            return {"predictions": network(torch.tensor([[getattr(row, n) for n in NAMES]]))[0].tolist()}

else:
    GRAPH = session()

    @app.post("/predict")
    async def answer(row: Row) -> dict:
        """One request."""
        return {"predictions": predict(GRAPH, row.model_dump())}


@app.get("/health")
async def health() -> dict:
    """Whether it is up."""
    return {"bundle": str(BUNDLE)}


uvicorn.run(app, port=PORT, log_level="error", access_log=False)
