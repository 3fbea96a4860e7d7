"""granian with RSGI, msgspec and ONNX Runtime, and nothing else."""

import asyncio
import signal

import msgspec
from common import PORT, predict, session
from granian.constants import HTTPModes
from granian.server.embed import Server

GRAPH, DECODE, ENCODE = session(), msgspec.json.Decoder(dict[str, float]).decode, msgspec.json.Encoder().encode
HEADERS = [("content-type", "application/json")]


async def app(scope: object, protocol: object) -> None:
    """One request."""
    body = await protocol()
    protocol.response_bytes(200, HEADERS, ENCODE({"predictions": predict(GRAPH, DECODE(body))}) if body else b"{}")


async def main() -> None:
    server = Server(app, port=PORT, log_enabled=False, http=HTTPModes.http1, websockets=False)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    await server.serve()


asyncio.run(main())
