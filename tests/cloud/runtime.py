"""Lambda's runtime on this machine: what a function and its extensions ask, and nothing of what is around them.

What it follows, in the Lambda developer guide (docs.aws.amazon.com):

- Runtime API: `invocation/next` waits for a request, `invocation/ID/response` and `.../error` take what became of it,
  `init/error` ends the start
- Extensions API: who has registered is told of each request by `event/next`; a function is frozen only when the runtime
  and all extensions have asked for the next one; frozen is SIGSTOP here
- a registered function is told to end by SIGTERM, and has half a second"""

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RUNTIME, EXTENSION = "/2018-06-01/runtime", "/2020-01-01/extension"


class Runtime:
    """One copy of a function; `command` starts it, told the address of this API."""

    def __init__(self, command: Callable[[str], Sequence[str]], environment: Mapping[str, str], freezes: bool = True):
        self.freezes = freezes
        self.requests: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.told: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.waiting, self.extensions, self.change = set(), set(), threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        api = f"127.0.0.1:{self.server.server_port}"
        self.process = subprocess.Popen(
            command(api),
            env={**environment, "AWS_LAMBDA_RUNTIME_API": api},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        runtime = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def reply(self, status: int, body: bytes = b"{}", **headers: str) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                if self.path == f"{RUNTIME}/invocation/next":
                    id, body = runtime.next("runtime", runtime.requests)
                    deadline = str(int(time.time() * 1000) + 10_000)
                    arn = "arn:aws:lambda:eu-central-1:123456789012:function:taxi:live"
                    self.reply(
                        200, body, Lambda_Runtime_Aws_Request_Id=id, Lambda_Runtime_Deadline_Ms=deadline,
                        Lambda_Runtime_Invoked_Function_Arn=arn, Content_Type="application/json",
                    )  # fmt: skip
                elif self.path == f"{EXTENSION}/event/next":
                    name = self.headers["Lambda-Extension-Identifier"]
                    assert name in runtime.extensions
                    self.reply(
                        200, json.dumps({"eventType": "INVOKE", "requestId": runtime.next(name, runtime.told)}).encode()
                    )
                else:
                    self.reply(404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path == f"{EXTENSION}/register":
                    name = self.headers["Lambda-Extension-Name"]
                    assert json.loads(body) == {"events": ["INVOKE"]}, "an extension inside of the runtime has no other"
                    runtime.extensions.add(name)
                    self.reply(200, Lambda_Extension_Identifier=name)
                elif self.path.startswith(f"{RUNTIME}/"):
                    runtime.answers.put((self.path.rsplit("/", 1)[-1], body))
                    self.reply(202)
                else:
                    self.reply(404)

        return Handler

    def next(self, who: str, what: queue.Queue) -> object:
        """Somebody asks for the next request."""
        with self.change:
            self.waiting.add(who)
            self.change.notify_all()
        return what.get()

    def rest(self, seconds: float = 30) -> None:
        """Wait until all have asked for the next request; then the function is frozen."""
        with self.change:
            ended = lambda: self.process.poll() is not None  # noqa: E731
            assert self.change.wait_for(lambda: ended() or self.waiting >= {"runtime", *self.extensions}, seconds)
        assert self.process.poll() is None, self.process.stdout.read()

    def freeze(self) -> None:
        if self.freezes:
            os.kill(self.process.pid, signal.SIGSTOP)

    def invoke(self, event: Mapping[str, object], id: str = "1") -> tuple[str, dict]:
        """One request: the function thaws, answers and, once all is done, is frozen again."""
        self.rest()
        os.kill(self.process.pid, signal.SIGCONT)
        with self.change:
            self.waiting.clear()
        for _ in self.extensions:
            self.told.put(id)
        self.requests.put((id, json.dumps(event).encode()))
        kind, body = self.answers.get(timeout=30)
        self.rest()
        self.freeze()
        return kind, json.loads(body)

    def failure(self, seconds: float = 30) -> str:
        """What a function says that does not start."""
        assert self.process.wait(seconds) != 0
        return self.process.stdout.read()

    def end(self) -> float:  # seconds that it took
        """The copy is not needed any more."""
        begun = time.monotonic()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            if self.extensions:
                self.process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.5)
            self.process.kill()
            self.process.wait(10)
        seconds = time.monotonic() - begun
        self.server.shutdown()
        self.server.server_close()
        return seconds


def event(method: str, path: str, body: str = "", **headers: str) -> dict[str, object]:
    """What a function URL makes of a request."""
    about = {"http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7"}}
    told = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    found = {"version": "2.0", "rawPath": path, "rawQueryString": "", "headers": told, "requestContext": about}
    return found | ({"body": body, "isBase64Encoded": False} if body else {})
