"""A browser, and services that a page can be seen on: the real one, and a small one that can be made to misbehave."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from slml.serving.form import input_columns
from slml.serving.page import HEADERS, render_page

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots go: the folder that SLML_TEST_OUTPUT names, or a temporary one."""
    folder = Path(os.environ.get("SLML_TEST_OUTPUT") or tmp_path_factory.mktemp("page"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Visit:
    """One tab, with all that the browser complained about and all addresses it asked."""

    def __init__(self, context: BrowserContext):
        self.tab: Page = context.new_page()
        self.tab.set_default_timeout(10_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))

    def answer(self) -> str:
        """The prediction, once that of the last change has come."""
        expect(self.tab.locator("#answer")).to_have_attribute("aria-busy", "false", timeout=15_000)
        return self.tab.locator("#value").inner_text()

    def says(self, text: str | re.Pattern) -> None:
        """Wait until the page says this of the prediction."""
        expect(self.tab.locator("#say")).to_have_text(text)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Go to a page: `visit(url, width=..., scheme=..., touch=..., password=...)`."""
    contexts = []

    def go(url: str, width: int = 1200, scheme: str = "light", touch: bool = False, password: str = "") -> Visit:
        more = {"http_credentials": {"username": "", "password": password}} if password else {}
        size = {"width": width, "height": 667 if touch else 900}
        contexts.append(
            browser.new_context(viewport=size, color_scheme=scheme, has_touch=touch, is_mobile=touch, **more)
        )
        visit = Visit(contexts[-1])
        visit.tab.goto(url)
        return visit

    yield go
    for context in contexts:
        context.close()


NUMBERS = {"int": int, "float": (int, float)}


class Small(ThreadingHTTPServer):
    """A service of a model that adds what it is given: small enough to be told to fail, late or locked."""

    daemon_threads = True

    def __init__(self, facts: dict, key: str = "", prefix: str = "/", classes: list[str] | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.facts, self.key, self.prefix, self.classes = facts, key, prefix, classes
        self.status = 200  # of an answer, until told otherwise
        self.late = 0.0  # seconds until one is given
        self.rows: list[dict] = []  # that were asked for
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.prefix}"

    def predict(self, row: dict) -> tuple[int, dict]:
        """The status and the answer for one row."""
        self.rows.append(row)
        wrong = []
        for column in input_columns(self.facts["contract"]):
            value, kind = row.get(column["name"]), NUMBERS.get(column["type"], object)
            if (value is None and not column.get("nullable", True)) or (
                value is not None and not isinstance(value, kind)
            ):
                wanted = {"int": "an integer", "float": "a number"}.get(column["type"], "a value")
                wrong.append({"row": 0, "field": column["name"], "expected": wanted, "came": json.dumps(value)})
        if wrong:
            return 422, {"error": "The rows do not fit the contract.", "fields": wrong}
        total = sum(value for value in row.values() if isinstance(value, (int, float)))
        if self.classes:
            return 200, {"predictions": [[0.75, 0.25]], "classes": self.classes, "version": "small@1"}
        seen = self.facts["profile"]["columns"]
        numbers = {
            name: value for name, value in row.items() if isinstance(value, (int, float)) and "min" in seen[name]
        }
        outside = [name for name, value in numbers.items() if not seen[name]["min"] <= value <= seen[name]["max"]]
        found = {"predictions": [total], "version": "small@1", "request": "1"}
        return 200, found | ({"outside": [outside]} if outside else {})


class Handler(BaseHTTPRequestHandler):
    """What the small service answers to one request."""

    server: Small

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at the page."""

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        found = self.path.rstrip("/") == self.server.prefix.rstrip("/")
        self.reply(200 if found else 404, render_page(self.server.facts) if found else b"", HEADERS)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, answer = self.server.status, {"error": "told to fail"}
        if self.path != f"{self.server.prefix}predict":
            status = 404
        elif self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            status = 401
        elif status == 200:
            time.sleep(self.server.late)
            status, answer = self.server.predict(asked["rows"][0])
        self.reply(status, json.dumps(answer).encode(), {"content-type": "application/json"})


@pytest.fixture
def small() -> Iterator[Callable[..., Small]]:
    """Start a small service: `small(facts, key=..., prefix=...)`."""
    started = []

    def start(facts: dict, **more: object) -> Small:
        started.append(Small(facts, **more))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
