"""The service beside others: requests a second, latency, start, memory, size, many rows, and a year's troubles at once.

python bench/serving.py [--seconds 5] [--rounds 3] [--only slml,granian] [--soak MINUTES]

One server process each, wrk on loopback, the 8-input MLP 3 x 256. Peers that are not in the project's environment are
installed into one of the bench's own (--peers, or ~/.cache/slml-bench-serving); those that are absent are named.
"""

import argparse
import asyncio
import contextlib
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from slml.contract import Between, Column, Contract, InsideBox, Numeric
from slml.errors import SlmlError
from slml.registry.aliases import Pointer, State, read_state, write_change
from slml.registry.bundle import Bundle, Lineage
from slml.serving import arrow
from slml.serving.check import free_port

HERE = Path(__file__).parent
PEERS = HERE / "serving_peers"
NAMES = ("miles", "minutes", "people", "tip", "lat", "lon", "to_lat", "to_lon")
ROW = {
    "miles": 5.1,
    "minutes": 4.2,
    "people": 5.5,
    "tip": 5.0,
    "lat": 39.2,
    "lon": -77.1,
    "to_lat": 39.0,
    "to_lon": -76.5,
}
JSON = "application/json"
CONNECTIONS = (1, 16, 64)


def make(folder: Path, seed: int = 0, network: str = "mlp") -> Bundle:
    """The bundle that all serve: numbers with bounds and boxes, so that the service has something to check."""
    from slml.features.encoder import Encoder
    from slml.models.model import build_model
    from slml.registry.export import export

    random = np.random.default_rng(0)
    middle = {name: 39.0 if "lat" in name else -77.0 if "lon" in name else 5.0 for name in NAMES}
    table = pa.table({n: random.normal(m, 1, 5000) for n, m in middle.items()} | {"fare": random.gamma(2, 5, 5000)})
    box = {"south": 30, "north": 50, "west": -90, "east": -60, "reason": "the map"}
    contract = Contract(
        name="trips",
        columns=[Column(name=n, type="float", nullable=n != "miles") for n in table.column_names],
        target="fare",
        task="regression",
        rules=[
            *(Between(n, -100, 500, reason="the region") for n in ("miles", "minutes", "people", "tip")),
            InsideBox("lat", "lon", name="origin", **box),
            InsideBox("to_lat", "to_lon", name="destination", **box),
        ],
        features=[Numeric(column=n) for n in NAMES],
    )
    encoder = Encoder.fit(table, contract)
    model = build_model(contract, encoder, encoder(table), network, width=256, depth=3, embedding=0, seed=seed).eval()
    lineage = Lineage(snapshots={"train": "trips@1"}, runs={"train": "1"}, seed=seed)
    return export(model, encoder, contract, table, str(folder), lineage=lineage, metrics={})


# --- servers


def servers(bundle: Bundle, work: Path, python: Path) -> dict[str, tuple[list[str], str, dict]]:
    """Name -> command without port, path, and the body that it takes."""

    def peer(script: str, *words: str) -> list[str]:
        return [str(python), str(PEERS / script), "{port}", bundle.uri, *words]

    own = [sys.executable, "-m", "slml.serving", bundle.uri, "--root", str(work), "--port", "{port}"]
    os.environ["BENCH_BUNDLE"] = bundle.uri  # BentoML hands no words on
    records = {"dataframe_records": [ROW]}
    bento = [str(python), "-m", "bentoml", "serve", "bentoml_app:Trips", "--port", "{port}", "--host", "127.0.0.1"]
    mlflow = ["-m", "mlflow", "models", "serve", "-m", bundle.uri, "--env-manager", "local", "-p", "{port}", "-w", "1"]
    return {
        "slml": (own, "/predict", ROW),
        "granian": (peer("bare_granian.py"), "/predict", ROW),
        "asyncio": (peer("bare_asyncio.py"), "/predict", ROW),
        "granian + Starlette": (peer("starlette_app.py", "granian"), "/predict", ROW),
        "uvicorn + Starlette": (peer("starlette_app.py", "uvicorn"), "/predict", ROW),
        "FastAPI + ONNX Runtime": (peer("fastapi_app.py", "onnx"), "/predict", ROW),
        "FastAPI + torch": (peer("fastapi_app.py", "torch"), "/predict", ROW),
        "LitServe": (peer("litserve_app.py"), "/predict", ROW),
        "MLflow": ([str(python), *mlflow], "/invocations", records),
        "BentoML": (bento, "/predict", ROW),
    }  # fmt: skip


def peers_python(folder: Path) -> Path:
    """An environment with what the peers need beside the project's own packages; made once."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    site = next(folder.glob("lib/python*/site-packages"))
    own = Path(np.__file__).parents[1]
    (site / "project.pth").write_text(f"{own}\n")
    constraints = ["-c", str(HERE.parent / "constraints.txt")]
    for name in ("uvicorn[standard]", "litserve", "bentoml>=1.4"):
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name]
        for words in ([*command, *constraints], command):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if subprocess.run(words, capture_output=True, timeout=300).returncode == 0:
                    break
    ready.touch()
    return python


@contextlib.contextmanager
def running(command: list[str], path: str, body: dict, seconds: float = 60) -> Iterator[tuple[psutil.Process, int]]:
    """A server until the block ends. Raises `TimeoutError` where it does not answer."""
    port = free_port()
    words = [word.replace("{port}", str(port)) for word in command]
    environment = os.environ | {"PYTHONPATH": str(PEERS)}
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen(words, cwd=PEERS, env=environment, stdout=said, stderr=said)
        try:
            end = time.monotonic() + seconds
            while not answers(port, path, body):
                if process.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    last = (said.read().decode(errors="replace").strip() or "it did not answer in time").splitlines()[
                        -1
                    ]
                    raise TimeoutError(last[:150])
                time.sleep(0.002)
            yield process, port
        finally:
            end_all(process)


def end_all(process: psutil.Process) -> None:
    """End a server and the processes that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = process.children(recursive=True)
        process.terminate()
        psutil.wait_procs([process], timeout=10)
        for one in [process, *children]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    psutil.wait_procs([process], timeout=10)


def answers(port: int, path: str, body: dict) -> bool:
    """Whether a server predicts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": JSON})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


# --- measured


def wrk(port: int, path: str, body: bytes, kind: str, connections: int, seconds: int, work: Path) -> dict[str, float]:
    """What wrk sees: requests a second, and percentiles in ms."""
    (work / "body").write_bytes(body)
    lua = f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{kind}"\n'
    (work / "post.lua").write_text(f'{lua}wrk.body = io.open("{work}/body", "rb"):read("*a")\n')
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(work / "post.lua")]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, timeout=seconds + 30
    )
    said = done.stdout
    count = {"errors": r"Non-2xx or 3xx responses: (\d+)", "rps": r"Requests/sec:\s+([\d.]+)"}
    found = {name: float(m[1]) if (m := re.search(p, said)) else 0.0 for name, p in count.items()}
    if socket := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said):
        found["errors"] += sum(map(int, socket.groups()))
    for place in (50, 99):
        value, unit = re.search(rf"\n\s+{place}%\s+([\d.]+)(us|ms|s)", said).groups()
        found[f"p{place}"] = float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
    return found


def compare(kinds: dict, names: list[str], seconds: float, rounds: int, work: Path) -> dict[str, dict]:
    """All servers, each alone at its work; the service and its bare server in turns, as the machine may change."""
    table: dict[str, dict] = {}
    pair = [name for name in ("slml", "granian") if name in names]
    groups = [pair, *([name] for name in names if name not in pair)]
    for group in (g for g in groups if g):
        with contextlib.ExitStack() as stack:
            up = {}
            for name in group:
                try:
                    up[name] = stack.enter_context(running(*kinds[name]))[1]
                except (TimeoutError, OSError) as error:
                    print(f"{name}: absent ({error})", flush=True)
            found: dict[tuple[str, int], list[dict]] = {}
            for _ in range(rounds):
                for connections in CONNECTIONS:
                    for name, port in up.items():
                        _, path, body = kinds[name]
                        data = json.dumps(body).encode()
                        wrk(port, path, data, JSON, connections, 1, work)
                        one = wrk(port, path, data, JSON, connections, seconds, work)
                        found.setdefault((name, connections), []).append(one)
        for (name, connections), ones in found.items():
            middle = {key: statistics.median(one[key] for one in ones) for key in ones[0]}
            middle["best"], middle["errors"] = max(one["rps"] for one in ones), sum(one["errors"] for one in ones)
            table.setdefault(name, {})[connections] = middle
        for name in up:
            print(line(name, table[name]), flush=True)
    return table


def line(name: str, found: dict[int, dict]) -> str:
    cells = [
        f"{f['rps']:10,.0f}{f['best']:10,.0f}{f['p50']:8.2f}{f['p99']:8.2f}{f['errors']:5.0f}" for f in found.values()
    ]
    return f"{name:24s}" + "".join(cells)


def head() -> str:
    first = "".join(f"{f'{n} connection' + 's' * (n > 1):>41s}" for n in CONNECTIONS)
    second = "".join(f"{'req/s':>10s}{'best':>10s}{'p50 ms':>8s}{'p99 ms':>8s}{'err':>5s}" for _ in CONNECTIONS)
    return f"{'':24s}{first}\n{'':24s}{second}"


def start(kind: tuple, times: int = 5) -> tuple[float, float]:
    """Seconds from the start of the process to its first prediction, the least of some; MB at rest."""
    least, memory = 9e9, 0.0
    for _ in range(times):
        begun = time.perf_counter()
        with running(*kind) as (process, _):
            least = min(least, time.perf_counter() - begun)
            time.sleep(4)
            memory = process.memory_info().rss / 2**20
    return least, memory


def sizes(names: tuple[str, ...]) -> dict[str, float]:
    """MB of some packages as they are installed."""
    found = {}
    for name in names:
        files = importlib.metadata.files(name) or []
        found[name] = sum(p.stat().st_size for f in files if (p := Path(f.locate())).is_file()) / 2**20
    return found


BASE = (
    "onnxruntime",
    "flatbuffers",
    "packaging",
    "protobuf",
    "numpy",
    "granian",
    "click",
    "msgspec",
    "fsspec",
    "prometheus_client",
)
MORE = ("pyarrow", "pydantic", "pydantic_core")


def many_rows(kind: tuple, seconds: float, work: Path, rows: int = 1000) -> float:
    """Rows a second in Arrow requests of so many rows."""
    random = np.random.default_rng(0)
    middle = {name: 39.0 if "lat" in name else -77.0 if "lon" in name else 5.0 for name in NAMES}
    body = arrow.stream(pa.table({name: random.normal(m, 0.5, rows) for name, m in middle.items()}))
    with running(*kind) as (_, port):
        wrk(port, "/predict", body, "application/vnd.apache.arrow.stream", 4, 2, work)
        return max(
            wrk(port, "/predict", body, "application/vnd.apache.arrow.stream", 4, seconds, work)["rps"] * rows
            for _ in range(3)
        )


# --- a soak


class Soak(asyncio.Protocol):
    """A client that asks at its times, and counts what did not come back as a prediction."""

    done, failed, slow = 0, 0, 0.0
    body = json.dumps(ROW).encode()
    ask = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.waiting = transport, None

    def data_received(self, data: bytes) -> None:
        Soak.done += 1
        Soak.slow = max(Soak.slow, time.perf_counter() - self.since)
        Soak.failed += not data.startswith(b"HTTP/1.1 200")
        if self.waiting and not self.waiting.done():
            self.waiting.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting and not self.waiting.done():
            Soak.failed += 1
            self.waiting.set_result(None)

    async def run(self, every: float, end: float) -> None:
        """Ask every so many seconds; one that is late is asked at once."""
        loop, due = asyncio.get_running_loop(), time.perf_counter()
        while (now := time.perf_counter()) < end:
            if now < due:
                await asyncio.sleep(due - now)
            due += every
            self.waiting, self.since = loop.create_future(), time.perf_counter()
            self.transport.write(self.ask + self.body)
            await asyncio.wait_for(self.waiting, 30)


async def soak(minutes: float, root: Path, first: Bundle, second: Bundle, port: int, process: psutil.Process) -> None:
    """2,000 requests a second, and in the middle all that goes wrong in a year."""
    loop, begun, seconds = asyncio.get_running_loop(), time.perf_counter(), minutes * 60
    clients = [(await loop.create_connection(Soak, "127.0.0.1", port))[1] for _ in range(16)]
    tasks = [asyncio.create_task(client.run(16 / 2000, begun + seconds)) for client in clients]
    full = Full(root / "served")
    events = [
        (0.2, "version 2", lambda: change(root, "promote", second, 2)),
        (0.35, "rollback to 1", lambda: change(root, "rollback", first, 1)),
        (0.5, f"the log's disk is full ({full.how})", full.begin),
        (0.62, "and has room again", full.end),
        (0.7, "storage away", lambda: away(root)),
        (0.82, "storage back", lambda: back(root)),
        (0.9, "version 2 again", lambda: change(root, "promote", second, 2)),
    ]
    for share, what, do in [*events, (1.0, "end", lambda: None)]:
        while time.perf_counter() < begun + share * seconds:
            await asyncio.sleep(0.05)
        do()
        memory = process.memory_info().rss / 2**20
        counts = f"{Soak.done:9,} answers  {Soak.failed} failed  {memory:5.0f} MB"
        print(f"  {time.perf_counter() - begun:6.0f} s  {counts}  {what}", flush=True)
    await asyncio.gather(*tasks, return_exceptions=True)
    ready, metrics = await asyncio.to_thread(get, port, "/ready"), await asyncio.to_thread(get, port, "/metrics")
    log = re.findall(r'slml_log_total\{what="(\w+)"\} ([\d.e+]+)', metrics)
    told = ", ".join(f"{name} {float(value):,.0f}" for name, value in log)
    print(f"  the longest answer {Soak.slow * 1000:.0f} ms; {ready}; log: {told}")


def get(port: int, path: str) -> str:
    """What a service says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


class Full:
    """A disk without room under a folder: a file system of its own where one may be mounted, else no folder at all."""

    def __init__(self, folder: Path):
        self.folder, self.how = folder, "a small file system"
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], capture_output=True
        ).returncode:
            self.how = "a file in place of the folder, since nothing can be mounted here"
        else:
            subprocess.run(["umount", str(folder)], check=True)

    def begin(self) -> None:
        """No room from now on."""
        if self.how.startswith("a small"):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(self.folder)], check=True)
        else:
            self.folder.rename(self.folder.with_name("served.away"))
            self.folder.write_text("")

    def end(self) -> None:
        """Room again."""
        if self.how.startswith("a small"):
            subprocess.run(["umount", str(self.folder)], check=True)
        else:
            self.folder.unlink()
            self.folder.with_name("served.away").rename(self.folder)


def change(root: Path, action: str, bundle: Bundle, version: int) -> None:
    """A change of the champion."""
    now = read_state(str(root), "bench", "trips").next(action, "bench")
    aliases = {"champion": Pointer(version, bundle.uri, bundle.hash)}
    write_change(str(root), "bench", "trips", State(now.number, now.at, now.who, "", action, aliases))


def away(root: Path) -> None:
    """The storage is gone: registry and log."""
    root.rename(root.with_name("away"))
    root.write_text("")


def back(root: Path) -> None:
    """The storage is there again."""
    root.unlink()
    root.with_name("away").rename(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--only", default="", help="servers, by names with commas")
    parser.add_argument(
        "--soak", type=float, default=0, metavar="MINUTES", help="only the soak, for so long (10 is right)"
    )
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "slml-bench-serving")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not here: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = make(work / "1")
        if given.soak:
            root = work / "root"
            change(root, "register", bundle, 1)
            second = make(work / "2", seed=1)
            words = ["trips@champion", "--root", str(root), "--project", "bench", "--port", "{port}"]
            with running([sys.executable, "-m", "slml.serving", *words], "/predict", ROW) as (process, port):
                print(f"{given.soak:g} minutes at 2,000 requests/s")
                asyncio.run(soak(given.soak, root, bundle, second, port, process))
            return
        python = peers_python(given.peers)
        kinds = servers(bundle, work / "root", python)
        names = given.only.split(",") if given.only else list(kinds)
        print(head(), flush=True)
        table = compare(kinds, names, given.seconds, given.rounds, work)
        if {"slml", "granian"} <= set(table):
            ratio = table["slml"][1]["p50"] / table["granian"][1]["p50"]
            print(f"p50 at one connection: {ratio:.2f} times bare granian's")
        seconds, memory = start(kinds["slml"])
        print(f"from process start to the first prediction {seconds:.2f} s; {memory:.0f} MB at rest")
        base, more = sizes(BASE), sizes(MORE)
        size, whole = sum(base.values()), sum({**base, **more}.values())
        print(f"installed: {size:.0f} MB; with what Arrow and the log need {whole:.0f} MB")
        linear = servers(make(work / "linear", network="linear"), work / "root", python)["slml"]
        for what, kind in (("the MLP", kinds["slml"]), ("a linear model", linear)):
            print(f"Arrow, 1,000 rows a request, {what}: {many_rows(kind, given.seconds, work):,.0f} rows/s")


if __name__ == "__main__":
    try:
        main()
    except SlmlError as error:
        raise SystemExit(str(error)) from None
