"""Whatever is sent to a service: it never fails, hangs or grows, and says what was wrong."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from slml.registry.bundle import Bundle
from slml.serving import arrow
from slml.serving.check import running_service
from slml.serving.predictor import Predictor
from slml.serving.service import ARROW, ServedVersions, Service

from support.services import CONTRACT, TRIP, Client, make, trips

BODY_SECONDS = 2.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("bundles") / "1")


@pytest.fixture(scope="module")
def url(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("root")
    with running_service(bundle.uri, "--root", str(root), "--body-seconds", str(BODY_SECONDS)) as url:
        yield url


@pytest.fixture(scope="module")
def service(bundle: Bundle) -> Service:
    return Service(ServedVersions(Predictor(bundle)))


DEEP = 50_000
BODIES = {
    "nothing": (b"", 400),
    "broken": (b'{"miles": 2.5', 400),
    "no JSON": (b"miles=2.5&zone=NY", 400),
    "not UTF-8": (b'{"zone": "\xff\xfe"}', 400),
    "half a surrogate": (b'{"miles": 2.5, "lat": 40, "lon": -74, "zone": "\\ud800"}', 400),
    "NaN": (b'{"miles": NaN, "lat": 40, "lon": -74}', 400),
    "Infinity": (b'{"miles": Infinity, "lat": 40, "lon": -74}', 400),
    "beyond a double": (b'{"miles": 1e999, "lat": 40, "lon": -74}', 400),
    "nested lists": (b"[" * DEEP + b"]" * DEEP, 400),
    "nested rows": (b'{"rows":' * DEEP + b"1" + b"}" * DEEP, 400),
    "a list": (b"[1, 2]", 422),
    "a number": (b"7", 422),
    "null": (b"null", 422),
    "rows of nothing": (b'{"rows": null}', 422),
    "rows of numbers": (b'{"rows": [1, null, "a", []]}', 422),
    "a key that is none": (b'{"rows": [], "key": 7}', 422),
    "more beside rows": (b'{"rows": [], "row": 1}', 422),
    "text for a number": (b'{"miles": "2.5", "lat": 40, "lon": -74}', 422),
    "a number of 400 digits": (b'{"miles": 1' + b"0" * 400 + b', "lat": 40, "lon": -74}', (400, 422)),
    "a whole number of 70 bits": (b'{"miles": 1, "lat": 40, "lon": -74, "people": 1180591620717411303424}', 422),
    "no such day": (b'{"miles": 1, "lat": 40, "lon": -74, "began": "2023-02-30T10:00:00"}', 422),
    "the year zero": (b'{"miles": 1, "lat": 40, "lon": -74, "began": "0000-01-01T00:00:00"}', 422),
    "a strange name": ('{"miles": 1, "lat": 40, "lon": -74, "\N{SNOWMAN}\\u0000": 1}'.encode(), 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_with_a_word(url: str, name: str) -> None:
    body, expected = BODIES[name]
    status, answer = Client(url).predict(body)
    assert status in (expected if isinstance(expected, tuple) else (expected,))
    assert answer["error"]
    assert status == 400 or answer["fields"]


def test_unicode_is_taken_as_it_is(url: str) -> None:
    status, answer = Client(url).predict({"rows": [{**TRIP, "rider": "\N{SNOWMAN} \0 Ünïcødé"}]})
    assert (status, len(answer["predictions"])) == (200, 1)
    status, answer = Client(url).predict({**TRIP, "zone": "\N{SNOWMAN}\N{SNOWMAN}"})
    assert (status, answer["fields"][0]["came"]) == (422, '"\N{SNOWMAN}\N{SNOWMAN}"')


def test_no_rows_are_no_fault(url: str) -> None:
    assert Client(url).predict({"rows": []})[1]["predictions"] == []
    empty = pa.schema([(name, pa.float64()) for name in ("miles", "lat", "lon")]).empty_table()
    assert Client(url).predict(arrow.stream(empty), **{"content-type": ARROW})[0] == 200


def test_a_large_body_is_answered_and_a_too_large_one_refused(url: str) -> None:
    rows = [TRIP] * 20_000
    status, answer = Client(url).predict({"rows": rows})
    assert (status, len(answer["predictions"])) == (200, 20_000)
    for size in (9_000_000, 12_000_000):
        status, answer = Client(url).predict(b'{"rows": [' + b" " * size + b"]}")
        assert status == 413
        assert "larger than" in answer["error"]


def test_a_body_in_chunks_is_held_to_the_same_limit(url: str) -> None:
    def exchange(pieces: list[bytes]) -> bytes:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
            head = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
            for piece in [*pieces, b""]:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            return connection.recv(4096)

    body = json.dumps(TRIP).encode()
    assert b" 200 OK" in exchange([body[:9], body[9:]])
    assert b" 413 " in exchange([b" " * 1_000_000] * 10)


def test_a_slow_client_holds_nobody_up(url: str) -> None:
    place = urlsplit(url)
    slow = [socket.create_connection((place.hostname, place.port), timeout=20) for _ in range(50)]
    for connection in slow:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
    begun = time.monotonic()
    assert Client(url).predict(TRIP)[0] == 200
    assert time.monotonic() - begun < BODY_SECONDS
    for connection in slow:
        assert b" 408 " in connection.recv(4096)
        connection.close()


# --- Arrow


def test_a_bad_stream_is_refused_with_a_word(url: str) -> None:
    def ask(body: bytes) -> tuple[int, dict]:
        return Client(url).predict(body, **{"content-type": ARROW})

    good = arrow.stream(trips(50).select(["miles", "lat", "lon"]))
    for body in (b"", b"miles", good[: len(good) // 2], b"\xff" * 1000):
        status, answer = ask(body)
        assert status == 400
        assert "not an Arrow stream" in answer["error"]
    wrong = pa.table({"miles": ["a"], "lat": [[1.0]], "milse": [1], "fare": [1.0]})
    status, answer = ask(arrow.stream(wrong))
    assert status == 422
    assert {f["field"] for f in answer["fields"]} == {"miles", "lat", "lon", "milse", "fare"}
    nulls = pa.table({"miles": [1.0, None, float("nan")], "lat": [40.0] * 3, "lon": [-74.0] * 3})
    assert [(f["row"], f["field"]) for f in ask(arrow.stream(nulls))[1]["fields"]] == [(1, "miles"), (2, "miles")]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_stream_with_a_changed_byte_never_breaks_the_service(service: Service, cut: int, byte: int) -> None:
    body = bytearray(arrow.stream(trips(20).select(["miles", "lat", "lon", "zone"])))
    body[cut % len(body)] = byte
    assert service.answer("POST", "/predict", {"content-type": ARROW}, bytes(body)).status in (200, 400, 422)


# --- fuzzed

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*CONTRACT.names, "rows", "key"]) | st.text(max_size=6)


@settings(max_examples=400, deadline=None)
@given(body=st.dictionaries(NAMES, VALUES, max_size=12) | st.fixed_dictionaries({"rows": st.lists(VALUES, max_size=3)}))
def test_any_json_is_answered_or_refused(service: Service, body: dict) -> None:
    answer = service.answer("POST", "/predict", {}, json.dumps(body).encode())
    assert answer.status in (200, 400, 422), answer.body
    assert json.loads(answer.body)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(CONTRACT.names), VALUES, max_size=4))
def test_nearly_good_rows_are_answered_or_each_fault_is_named(service: Service, changes: dict) -> None:
    answer = service.answer("POST", "/predict", {}, json.dumps({**TRIP, **changes}).encode())
    said = json.loads(answer.body)
    if answer.status == 422:
        assert {f["field"] for f in said["fields"]} <= set(changes) | {"lat", "began"}  # of rules of two columns
        assert all(f["expected"] and f["came"] for f in said["fields"])
    else:
        assert answer.status == 200, said


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_answered_or_refused(service: Service, body: bytes) -> None:
    for headers in ({}, {"content-type": ARROW}):
        assert service.answer("POST", "/predict", headers, body).status in (200, 400, 422)


def test_the_service_keeps_its_own_openapi(url: str) -> None:
    """schemathesis makes good and bad requests of the service's own document, and holds the answers to it."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    seen: list[int] = []

    for operation in schema.get_all_operations():

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def run(case: schemathesis.Case) -> None:
            # JSON Schema has no words for a rule of two columns: a request may be good by it and break the rule
            response = case.call_and_validate(timeout=20, excluded_checks=[positive_data_acceptance])
            seen.append(response.status_code)

        run()
    assert 200 in seen
    assert not [status for status in seen if status >= 500]


def test_bad_requests_leave_nothing_behind(bundle: Bundle) -> None:
    """The memory of a service after some thousand refusals is what it was."""
    code = f"""
import gc, json
from slml.serving.predictor import Predictor
from slml.serving.service import ServedVersions, Service
service = Service(ServedVersions(Predictor.load({bundle.uri!r})))

def memory():
    gc.collect()
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) // 1024

def refuse(times):
    for n in range(times):
        bad = json.dumps({{"rows": [{{"miles": "x" * n, f"unknown{{n}}": n}}] * 3}}).encode()
        assert service.answer("POST", "/predict", {{}}, bad).status == 422
        assert service.answer("GET", f"/no/{{n}}", {{}}).status == 404

refuse(500)
before = memory()
refuse(3000)
print(memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 10
    assert not Path(bundle.uri, "core").exists()
