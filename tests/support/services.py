"""A small model behind HTTP, for the tests of the service."""

import http.client
import io
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx.parser
import pyarrow as pa
import pyarrow.parquet as pq

from slml.contract import Between, Category, Column, Contract, InsideBox, Matches, Numeric, OneOf, Ordered, TimeParts
from slml.features.encoder import Encoder, Target
from slml.models.model import build_model
from slml.registry.aliases import Canary, Pointer, State, read_state, write_change
from slml.registry.bundle import PREDICTION, Bundle, Lineage, open_session, run_session, write_bundle
from slml.registry.export import export

LINEAGE = Lineage(snapshots={"train": "trips@5132"}, runs={"train": "a41f"}, seed=0)
CONTRACT = Contract(
    name="trips",
    columns=[
        Column(name="trip", type="int"),
        Column(name="miles", type="float", unit="mile", nullable=False),
        Column(name="people", type="int"),
        Column(name="zone", type="text", description="where it began"),
        Column(name="lat", type="float", nullable=False),
        Column(name="lon", type="float", nullable=False),
        Column(name="began", type="timestamp", format="%m/%d/%Y %H:%M"),
        Column(name="ended", type="timestamp"),
        Column(name="shared", type="bool"),
        Column(name="paid", type="text"),
        Column(name="rider", type="text", personal=True),
        Column(name="fare", type="float", unit="USD"),
    ],
    key=["trip"],
    time="began",
    target="fare",
    task="regression",
    rules=[
        Between("miles", 0, 120, reason="the region"),
        Between("began", "2023-01-01", "2023-12-31", reason="the year of the table"),
        OneOf("paid", ("card", "cash"), reason="the dictionary"),
        Matches("zone", "[A-Z]{2}", reason="two letters"),
        InsideBox("lat", "lon", south=38, north=42, west=-78, east=-72, name="inside", reason="the map"),
        Ordered("began", "ended", reason="time goes on"),
    ],
    features=[
        *(Numeric(column=name) for name in ("miles", "people", "lat", "lon")),
        Category(column="zone"),
        Category(column="shared"),
        Category(column="people"),
        TimeParts(column="began"),
    ],
)
TRIP = {
    "miles": 2.5,
    "people": 2,
    "zone": "NY",
    "lat": 40.7,
    "lon": -74.0,
    "began": "2023-05-01T10:00:00",
    "shared": True,
}


def trips(rows: int = 400) -> pa.Table:
    """Trips as a cleaned table has them."""
    random = np.random.default_rng(0)

    def holes(values: Sequence) -> pa.Array:
        return pa.array(values, mask=random.random(rows) < 0.1)

    began = np.datetime64("2023-01-01", "us") + random.integers(0, 365 * 86_400, rows).astype("timedelta64[s]")
    return pa.table(
        {
            "trip": np.arange(rows),
            "miles": random.uniform(0.1, 40, rows),
            "people": holes(random.integers(1, 6, rows)),
            "zone": holes(random.choice(["NY", "NJ", "CT"], rows)),
            "lat": random.uniform(40, 41, rows),
            "lon": random.uniform(-75, -73, rows),
            "began": holes(began),
            "ended": began + np.timedelta64(1, "h"),
            "shared": holes(random.random(rows) < 0.5),
            "paid": random.choice(["card", "cash"], rows),
            "rider": ["somebody"] * rows,
            "fare": random.gamma(2, 5, rows),
        }
    )


def make(folder: Path) -> Bundle:
    """A bundle of an untrained model: its predictions are as good as any."""
    table = trips()
    encoder = Encoder.fit(table, CONTRACT)
    model = build_model(CONTRACT, encoder, encoder(table), width=16, depth=1, embedding=4).eval()
    return export(model, encoder, CONTRACT, table, str(folder), lineage=LINEAGE, metrics={"test": {"rmse": 1.5}})


def variant(bundle: Bundle, folder: Path, nodes: str = "", answer: dict | None = None, **changes: object) -> Bundle:
    """Another bundle without training one: operations after the graph's output, another target, another contract."""
    graph = onnx.load_from_string(bundle.files["model.onnx"])
    if nodes:
        more = onnx.parser.parse_graph(f"more (float[batch] x) => (float[batch] y) {{ {nodes} }}")
        for node in more.node:
            node.input[:] = [graph.graph.output[0].name if name == "x" else name for name in node.input]
        graph.graph.node.extend(more.node)
        shape = ["batch", len(answer["classes"])] if answer else ["batch"]
        kind = onnx.TensorProto.FLOAT if answer else graph.graph.output[0].type.tensor_type.elem_type
        graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", kind, shape))
    encoder = bundle.encoder.model_copy(update={"target": Target(**answer)} if answer else {})
    content = graph.SerializeToString()
    predicted = run_session(open_session(content), encoder, bundle.rows)
    pq.write_table(bundle.rows.append_column(PREDICTION, pa.array(predicted.tolist())), sink := io.BytesIO())
    files = {
        **bundle.files,
        "model.onnx": content,
        "encoder.json": encoder.model_dump_json().encode(),
        "contract.json": bundle.contract.replace(**changes).to_json().encode(),
        "parity.parquet": sink.getvalue(),
    }
    return write_bundle(str(folder), files)


PLUS_ONE = "one = Constant<value = float {1.0}>() more = CastLike(one, x) y = Add(x, more)"
TWO_CLASSES = """
    f = Cast<to = 1>(x) p = Sigmoid(f) one = Constant<value = float {1.0}>() q = Sub(one, p)
    axis = Constant<value = int64[1] {1}>() a = Unsqueeze(p, axis) b = Unsqueeze(q, axis) y = Concat<axis = 1>(a, b)
"""


class Registry:
    """A model's numbered files, as `slml promote` and its kin write them."""

    def __init__(self, root: Path, *bundles: Bundle):
        self.root, self.bundles = str(root), bundles

    def set(self, action: str, champion: int, canary: tuple[int, float] | None = None, shadow: int = 0) -> State:
        """The next change: versions are counted from 1."""
        pointers = [Pointer(n + 1, b.uri, b.hash) for n, b in enumerate(self.bundles)]
        state = read_state(self.root, "demo", "trips").next(action, "ann")
        state = State(state.number, state.at, state.who, state.why, action, {"champion": pointers[champion - 1]})
        if canary:
            one = pointers[canary[0] - 1]
            state = State(**_fields(state), canary=Canary(one.version, one.uri, one.hash, canary[1]))
        if shadow:
            state = State(**{**_fields(state), "canary": state.canary}, shadow=pointers[shadow - 1])
        return write_change(self.root, "demo", "trips", state)

    @property
    def words(self) -> tuple[str, ...]:
        """What `served` takes."""
        return ("--root", self.root, "--project", "demo", "--poll", "0.05")


def _fields(state: State) -> dict:
    return {name: getattr(state, name) for name in ("number", "at", "who", "why", "action", "aliases")}


class Client:
    """One connection to a service; a new one when the service closes it."""

    def __init__(self, url: str):
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)

    def __call__(self, path: str, body: object = None, method: str = "", **headers: str) -> tuple[int, object]:
        """The status and the answer; a body that is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self._connection.request(
            method or ("GET" if data is None else "POST"), path, data, {"content-type": "application/json", **headers}
        )
        answer = self._connection.getresponse()
        content = answer.read()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(content) if kind == "application/json" and content else content

    def predict(self, body: object, **headers: str) -> tuple[int, dict]:
        """POST /predict."""
        return self("/predict", body, **headers)
