"""No server at all: asyncio's protocol, a request found by its blank line, msgspec and ONNX Runtime."""

import asyncio

import msgspec
from common import NAMES, PORT, predict, session

GRAPH, DECODE, ENCODE = session(), msgspec.json.Decoder(dict[str, float]).decode, msgspec.json.Encoder().encode


class Bare(asyncio.Protocol):
    """One connection; knows of HTTP as much as wrk sends."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.waiting = transport, b""

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while (end := self.waiting.find(b"\r\n\r\n")) >= 0:
            head = self.waiting[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.waiting) < end + 4 + length:
                return
            body, self.waiting = self.waiting[end + 4 : end + 4 + length], self.waiting[end + 4 + length :]
            said = ENCODE({"predictions": predict(GRAPH, DECODE(body))}) if body else b"{}"
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said)
            self.transport.write(head + said)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", PORT)
    await server.serve_forever()


assert len(NAMES) == 8
asyncio.run(main())
