"""Starlette with ONNX Runtime, behind granian or uvicorn: the third word says which."""

import sys

from common import PORT, predict, session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

GRAPH = session()


async def answer(request: Request) -> JSONResponse:
    """One request."""
    return JSONResponse({"predictions": predict(GRAPH, await request.json())})


async def health(request: Request) -> JSONResponse:
    """Whether it is up."""
    return JSONResponse({})


app = Starlette(routes=[Route("/predict", answer, methods=["POST"]), Route("/health", health)])

if sys.argv[3] == "uvicorn":
    import uvicorn

    uvicorn.run(app, port=PORT, log_level="error", access_log=False)
else:
    import asyncio
    import signal

    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    async def main() -> None:
        server = Server(app, port=PORT, interface=Interfaces.ASGI, log_enabled=False, http=HTTPModes.http1)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        await server.serve()

    asyncio.run(main())
