"""A service answers as its model does, names what is wrong with a request, and goes on whatever happens around it."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slml.registry.bundle import Bundle
from slml.serving import arrow
from slml.serving.check import free_port, over_http, running_service
from slml.serving.predictor import Predictor
from slml.serving.service import ARROW, ServedVersions, Service

from support.services import CONTRACT, PLUS_ONE, TRIP, TWO_CLASSES, Client, Registry, make, trips, variant

INPUTS = ["miles", "people", "zone", "lat", "lon", "began", "shared"]


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("bundles") / "1")


@pytest.fixture(scope="session")
def second(first: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return variant(first, tmp_path_factory.mktemp("bundles") / "2", PLUS_ONE)


@pytest.fixture(scope="session")
def url(first: Bundle) -> Iterator[str]:
    """A service of one bundle, without a log."""
    with running_service(first.uri) as url:
        yield url


def eventually(holds: Callable[[], object], seconds: float = 20) -> object:
    """What becomes true within some seconds."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)
    return found


def as_rows(table: pa.Table) -> list[dict]:
    return json.loads(json.dumps(table.to_pylist(), default=datetime.isoformat))


# --- what is predicted


def test_over_http_is_what_torch_predicted(first: Bundle, tmp_path: Path) -> None:
    apart = np.abs(over_http(first, first.rows) - first.expected_predictions)
    assert apart.max() / np.abs(first.expected_predictions).max() < 1e-5
    target = {"column": "paid", "task": "binary", "classes": ("card", "cash")}
    classes = variant(first, tmp_path / "classes", TWO_CLASSES, target, target="paid", task="binary")
    predicted = over_http(classes, classes.rows)
    assert predicted.shape == (classes.rows.num_rows, 2)
    assert np.abs(predicted - classes.expected_predictions).max() < 1e-5


def test_rows_alone_and_together_are_predicted_alike(first: Bundle, url: str) -> None:
    rows, client = as_rows(trips(150).select(INPUTS)), Client(url)
    together = client.predict({"rows": rows})[1]["predictions"]
    alone = [client.predict(row)[1]["predictions"][0] for row in rows]
    assert np.allclose(together, alone, rtol=1e-6, atol=1e-6)
    assert np.allclose(together, first.predict(trips(150)), rtol=1e-5)


def test_many_clients_at_once_get_their_own_answers(first: Bundle, url: str) -> None:
    rows, expected = as_rows(trips(64).select(INPUTS)), first.predict(trips(64))
    wrong: list[int] = []

    def ask(place: int) -> None:
        client = Client(url)
        for number in range(place, 64 * 4, 8):
            status, answer = client.predict(rows[number % 64])
            if status != 200 or abs(answer["predictions"][0] - expected[number % 64]) > 1e-4:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_arrow_and_json_agree(first: Bundle, url: str) -> None:
    table, client = trips(150).select([*INPUTS, "trip"]), Client(url)
    status, content = client.predict(arrow.stream(table), **{"content-type": ARROW})
    answer = arrow.read_stream(content)
    assert status == 200
    assert answer.schema.metadata[b"version"].decode() == f"trips@{first.hash[:8]}"
    assert np.allclose(answer["prediction"], client.predict({"rows": as_rows(table)})[1]["predictions"], rtol=1e-5)


def test_moments_are_read_in_the_contract_s_format_too(url: str) -> None:
    client = Client(url)
    ways = ("2023-05-01T10:00:00", "2023-05-01 10:00", "05/01/2023 10:00", "2023-05-01T10:00:00.000")
    answers = {client.predict({**TRIP, "began": way})[1]["predictions"][0] for way in ways}
    assert len(answers) == 1


# --- what is refused

BAD = {
    "miles": (121, "from 0"),
    "people": (2.5, "a whole number"),
    "zone": ("nyc", "a text that matches [A-Z]{2}"),
    "began": ("31/12/2023 10:00", "a moment, such as 2023-03-01T10:00:00 or as %m/%d/%Y %H:%M"),
    "shared": ("yes", "true or false"),
    "paid": ("Card", "one of card, cash"),
    "lat": (91, "a point within latitude 38.0 to 42.0 and longitude -78.0 to -72.0"),
    "milse": (1, "did you mean 'miles'?"),
    "fare": (9.5, "nothing: it is what is predicted"),
}


def test_every_bad_field_is_named(url: str) -> None:
    bad = {**TRIP, **{name: value for name, (value, _) in BAD.items()}}
    status, answer = Client(url).predict({"rows": [TRIP, bad]})
    assert status == 422
    assert {f["row"] for f in answer["fields"]} == {1}
    found = {f["field"]: f["expected"] for f in answer["fields"]}
    assert set(found) == set(BAD)
    for name, (_, expected) in BAD.items():
        assert expected in found[name]


@pytest.mark.parametrize("name", [n for n in BAD if n not in ("milse", "fare", "began", "shared")])
def test_arrow_names_the_same_fields(url: str, name: str) -> None:
    table = trips(50).select([*INPUTS, "paid"])
    values = table[name].to_pylist()
    values[7] = BAD[name][0]
    bad = table.set_column(table.column_names.index(name), name, pa.array(values))
    status, answer = Client(url).predict(arrow.stream(bad), **{"content-type": ARROW})
    assert status == 422
    assert [(f["row"], f["field"]) for f in answer["fields"]] == [(7, name)]


def test_the_time_s_own_bounds_do_not_end_the_service(url: str) -> None:
    assert Client(url).predict({**TRIP, "began": "2031-01-01T00:00:00"})[0] == 200


def test_what_may_be_null_may_be_left_out(url: str) -> None:
    client = Client(url)
    short = {name: TRIP[name] for name in ("miles", "lat", "lon")}
    nulls = {**dict.fromkeys(TRIP), **short}
    assert client.predict(short)[1]["predictions"] == client.predict(nulls)[1]["predictions"]
    assert {f["field"] for f in client.predict({})[1]["fields"]} == {"miles", "lat", "lon"}


def test_what_training_has_not_seen_is_answered_and_flagged(url: str) -> None:
    client = Client(url)
    status, answer = client.predict({"rows": [TRIP, {**TRIP, "miles": 100, "zone": "QQ", "people": 99}]})
    assert status == 200
    assert answer["outside"][0] == []
    assert set(answer["outside"][1]) == {"miles", "zone", "people"}
    assert "outside" not in client.predict(TRIP)[1]
    table = pa.table({name: [TRIP[name], TRIP[name]] for name in ("miles", "lat", "lon")} | {"zone": ["NY", "QQ"]})
    found = arrow.read_stream(client.predict(arrow.stream(table), **{"content-type": ARROW})[1])
    assert found["outside"].to_pylist() == [[], ["zone"]]


# --- the other paths


def test_the_other_paths(url: str, first: Bundle) -> None:
    client = Client(url)
    assert client("/health") == (200, {"status": "alive"})
    assert client("/ready")[1] == {"ready": True, "version": f"trips@{first.hash[:8]}"}
    assert client("/schema")[1]["contract"]["name"] == "trips"
    row = client("/openapi.json")[1]["components"]["schemas"]["Row"]
    assert row["required"] == ["miles", "lat", "lon"]
    assert "fare" not in row["properties"]
    assert row["properties"]["miles"]["maximum"] == 120
    assert row["properties"]["paid"]["enum"] == ["card", "cash", None]
    assert b"<html" in client("/")[1]
    assert client("/health", method="HEAD") == (200, b"")
    assert client("/nothing")[0] == 404
    assert client("/predict")[0] == 405
    assert client("/health", b"")[0] == 405
    assert client.predict(b"miles\n2.5", **{"content-type": "text/csv"})[0] == 415


def test_metrics_are_told_by_version(url: str, first: Bundle) -> None:
    client = Client(url)
    client.predict({**TRIP, "miles": 100})
    text = client("/metrics")[1].decode()
    assert f'slml_rows_total{{role="champion",version="trips@{first.hash[:8]}"}}' in text
    assert 'slml_requests_total{path="/predict",status="200"}' in text
    assert "slml_seconds_bucket" in text
    assert f'slml_outside_total{{column="miles",version="trips@{first.hash[:8]}"}}' in text


def test_a_key_keeps_others_out(first: Bundle) -> None:
    os.environ["SLML_API_KEY"] = "open sesame"
    try:
        with running_service(first.uri) as url:
            client, basic = Client(url), base64.b64encode(b"ann:open sesame").decode()
            assert client.predict(TRIP)[0] == client("/metrics")[0] == client("/")[0] == 401
            assert client.predict(TRIP, authorization="Bearer open")[0] == 401
            for right in ({"authorization": "Bearer open sesame"}, {"x-api-key": "open sesame"}):
                assert client.predict(TRIP, **right)[0] == 200
            assert client("/", authorization=f"Basic {basic}")[0] == 200
            assert client("/health")[0] == client("/ready")[0] == 200
    finally:
        del os.environ["SLML_API_KEY"]


def test_the_same_without_a_server(first: Bundle) -> None:
    service = Service(ServedVersions(Predictor(first)))
    answer = service.answer("POST", "/predict", {}, json.dumps(TRIP).encode())
    assert answer.status == 200
    assert len(json.loads(answer.body)["predictions"]) == 1
    assert service.answer("POST", "/predict", {}, b"{").status == 400
    assert service.answer("GET", "/health", {}).status == 200
    assert service.answer("PUT", "/ready", {}).status == 405


def test_the_process_stays_light(first: Bundle) -> None:
    """Neither torch nor MLflow nor pandas, ever; pyarrow and pydantic not before they are asked for."""
    code = f"""
import json, sys
from slml.serving.predictor import Predictor
from slml.serving.serve import HiddenPackage
sys.meta_path.insert(0, HiddenPackage("pandas"))
from slml.serving.service import ARROW, Service, ServedVersions
service = Service(ServedVersions(Predictor.load({first.uri!r})))
assert service.answer("POST", "/predict", {{}}, {json.dumps(TRIP).encode()!r}).status == 200
assert not {{"torch", "mlflow", "pydantic", "pyarrow", "ibis", "prometheus_client"}} & set(sys.modules)
from slml.serving import arrow
rows = arrow.stream(service.versions.champion.bundle.rows[:1])
assert service.answer("POST", "/predict", {{"content-type": ARROW}}, rows).status in (200, 422)
assert service.answer("GET", "/metrics", {{}}).status == service.answer("GET", "/", {{}}).status == 200
assert not {{"torch", "mlflow", "pandas", "ibis", "matplotlib"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- versions


class Load:
    """Requests without a pause, and every answer that was not a prediction."""

    def __init__(self, url: str, clients: int = 4):
        self.url, self.faults, self.answers, self.versions = url, [], 0, set()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def _run(self) -> None:
        client = Client(self.url)
        while not self._end.is_set():
            try:
                status, answer = client.predict(TRIP)
            except OSError as error:
                self.faults.append(repr(error))
                client = Client(self.url)
                continue
            self.answers += 1
            if status == 200:
                self.versions.add(answer["version"])
            else:
                self.faults.append((status, answer))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(20)


def test_a_version_is_followed_and_taken_back_without_a_failed_request(
    first: Bundle, second: Bundle, tmp_path: Path
) -> None:
    registry = Registry(tmp_path, first, second)
    registry.set("register", 1)
    with running_service("trips@champion", *registry.words) as url, Load(url) as load:
        client = Client(url)
        eventually(lambda: "trips@1" in load.versions)
        registry.set("promote", 2)
        eventually(lambda: client.predict(TRIP)[1]["version"] == "trips@2")
        registry.set("rollback", 1)
        eventually(lambda: client.predict(TRIP)[1]["version"] == "trips@1")
    assert not load.faults
    assert load.answers > 50
    assert load.versions == {"trips@1", "trips@2"}


def test_a_version_that_cannot_be_used_changes_nothing_and_is_told(
    first: Bundle, second: Bundle, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(second.uri, damaged)
    graph = bytearray((damaged / "model.onnx").read_bytes())
    graph[-100] ^= 1
    (damaged / "model.onnx").write_bytes(graph)
    columns = (c.model_copy(update={"nullable": False} if c.name == "people" else {}) for c in CONTRACT.columns)
    more = variant(first, tmp_path / "more", PLUS_ONE, columns=tuple(columns))
    target = {"column": "paid", "task": "binary", "classes": ("card", "cash")}
    other = variant(first, tmp_path / "other", TWO_CLASSES, target, target="paid", task="binary")
    bad = [Bundle(str(damaged), second.hash, {}), more, other]
    registry = Registry(tmp_path / "root", first, *bad, second)
    registry.set("register", 1)
    with running_service("trips@champion", *registry.words) as url, Load(url, 1) as load:
        client = Client(url)
        for version, word in ((2, "was changed"), (3, "also needs people"), (4, "its contract is another")):
            registry.set("promote", version)
            said = eventually(lambda: client("/ready")[1].get("trouble", {}).get("registry", ""))
            said = eventually(
                lambda w=word: w in (s := client("/ready")[1].get("trouble", {}).get("registry", "")) and s
            )
            assert client.predict(TRIP)[1]["version"] == "trips@1"
            assert said
        assert 'slml_trouble{what="registry"} 1.0' in client("/metrics")[1].decode()
        registry.set("promote", 5)
        eventually(lambda: client.predict(TRIP)[1]["version"] == "trips@5")
        assert "trouble" not in client("/ready")[1]
    assert not load.faults


def test_a_storage_outage_stops_no_answer(first: Bundle, second: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "root", first, second)
    registry.set("register", 1)
    with running_service("trips@champion", *registry.words) as url, Load(url, 1) as load:
        client = Client(url)
        eventually(lambda: load.answers)
        (tmp_path / "root").rename(tmp_path / "away")
        (tmp_path / "root").write_text("no folder any more")
        eventually(lambda: client("/ready")[1].get("trouble", {}).get("registry"))
        assert client.predict(TRIP)[0] == client("/ready")[0] == 200
        (tmp_path / "root").unlink()
        (tmp_path / "away").rename(tmp_path / "root")
        registry.set("promote", 2)
        eventually(lambda: client.predict(TRIP)[1]["version"] == "trips@2")
        assert "registry" not in client("/ready")[1].get("trouble", {})
    assert not load.faults


def test_what_monitoring_says_is_on_the_page(first: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path, first)
    registry.set("register", 1)
    said = {"at": "2026-03-01T06:00:00", "verdict": "fix the feed", "columns": [{"column": "miles", "score": 1.7}]}
    (tmp_path / "models/demo/trips/monitor.json").write_text("half a")
    with running_service("trips@champion", *registry.words, "--drift", "0.05") as url:
        client = Client(url)
        eventually(lambda: client("/ready")[1].get("trouble", {}).get("drift"))
        assert b"fix the feed" not in client("/")[1].lower()
        (tmp_path / "models/demo/trips/monitor.json").write_text(json.dumps(said))
        eventually(lambda: b"fix the feed" in client("/")[1].lower())
        assert "drift" not in client("/ready")[1].get("trouble", {})


def test_a_canary_keeps_to_its_share_and_its_keys(first: Bundle, second: Bundle, tmp_path: Path) -> None:
    registry = Registry(tmp_path, first, second)
    registry.set("canary", 1, canary=(2, 30))
    with running_service("trips@champion", *registry.words) as url:
        client = Client(url)
        assert client("/ready")[1]["canary"] == {"version": "trips@2", "percent": 30.0}

        def who(key: str) -> str:
            return client.predict({"rows": [TRIP], "key": key})[1]["version"]

        found = {key: who(key) for key in map(str, range(300))}
        assert 0.2 < list(found.values()).count("trips@2") / 300 < 0.4
        assert all(who(key) == version for key, version in list(found.items())[:50])
        assert len({client.predict(TRIP)[1]["version"] for _ in range(20)}) == 1  # the same row, the same version


def test_the_log_holds_what_was_asked_by_role_and_without_persons(
    first: Bundle, second: Bundle, tmp_path: Path
) -> None:
    registry = Registry(tmp_path, first, second)
    registry.set("shadow", 1, shadow=2)
    with running_service("trips@champion", *registry.words) as url:
        client = Client(url)
        answers = [client.predict({**TRIP, "trip": n, "rider": "Ann"})[1] for n in range(20)]
        table = pa.table({"miles": [1.0, 2.0], "lat": [40.0, 40.0], "lon": [-74.0, -74.0]})
        client.predict(arrow.stream(table), **{"content-type": ARROW})
        eventually(lambda: b'role="shadow",version="trips@2"} 22.0' in client("/metrics")[1])
    logged = pq.read_table(tmp_path / "served" / "demo" / "trips").to_pylist()
    assert len(logged) == 44
    assert "rider" not in logged[0]
    assert "fare" not in logged[0]
    by_role = {role: [row for row in logged if row["_role"] == role] for role in ("champion", "shadow")}
    assert {row["_version"] for row in by_role["shadow"]} == {2}
    said = {answer["request"]: answer["predictions"][0] for answer in answers}
    kept = {row["_request"]: row["_prediction"] for row in by_role["champion"] if row["trip"] is not None}
    assert kept == pytest.approx(said)
    assert {row["_request"] for row in by_role["shadow"]} == {row["_request"] for row in by_role["champion"]}


# --- the process


def test_no_request_is_lost_on_sigterm(first: Bundle) -> None:
    port = free_port()
    words = [sys.executable, "-m", "slml.serving", first.uri, "--port", str(port)]
    process = subprocess.Popen(words)
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        try:
            return Client(url)("/health")[0] == 200
        except OSError:
            return False

    eventually(up)
    lost: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        client = Client(url)
        while not ended.is_set():
            try:
                if client.predict(TRIP)[0] != 200:
                    lost.append("refused")
            except ConnectionRefusedError:  # nobody listens any more: this request was never taken
                return
            except OSError as error:
                lost.append(repr(error))
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    eventually(lambda: Client(url)("/ready")[0] == 503, 5)
    assert process.wait(15) == 0
    ended.set()
    for thread in threads:
        thread.join(10)
    assert not lost


def test_a_service_that_cannot_start_says_why(first: Bundle, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "slml.serving", *words], capture_output=True, text=True, timeout=60
        )
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        return done.stderr

    registry = Registry(tmp_path, first)
    assert "There is no version 'trips@champion'" in said("trips@champion", *registry.words)
    registry.set("register", 1)
    assert "did you mean 'trips@champion'?" in said("trips@champoin", *registry.words)
    shutil.copytree(first.uri, tmp_path / "damaged")
    (tmp_path / "damaged" / "contract.json").write_bytes(b"{}")
    assert "contract.json" in said(str(tmp_path / "damaged"))
    assert "manifest.json" in said(str(tmp_path / "no"))
    with running_service(first.uri) as url:
        assert "cannot start" in said(first.uri, "--port", url.rpartition(":")[2])
