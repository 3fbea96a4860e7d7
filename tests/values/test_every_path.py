"""Each kind of value keeps its meaning on every path: CSV, JSON lines and Parquet, from the file to the prediction.

One wide table has a column for each kind, so that a file goes through ingest, infer, clean, split, train, bundle, JSON
request, Arrow request and batch prediction once.
"""

import csv
import json
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from values.cases import KINDS, Kind

import slml
from slml.explore.model import export_bundle
from slml.registry.bundle import Bundle
from slml.serving.arrow import check_table
from slml.serving.batch import predict_snapshot
from slml.serving.predictor import Predictor
from slml.serving.request import RequestError
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

ROWS = 300  # each value comes up in every part of the split
IDS, TARGET = list(range(ROWS)), [float(n % 17) + 0.25 * (n % 5) for n in range(ROWS)]
pytestmark = pytest.mark.slow


def turn(kind: Kind, number: int) -> int:
    "Which value of its kind a row has; columns turn at different speeds, so that they are not all one column."
    return (number // (1 + KINDS.index(kind) % 4) + number) % len(kind.texts)


def write_csv(folder: Path) -> str:
    with open(folder / "wide.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(k.name for k in KINDS), "y"])
        writer.writerows([n, *(k.texts[turn(k, n)] for k in KINDS), TARGET[n]] for n in IDS)
    return str(folder / "wide.csv")


def json_value(kind: Kind, position: int) -> object:
    "What a JSON line, or a request, holds for a value."
    return kind.values[position] if kind.is_json else kind.texts[position]


def write_json(folder: Path) -> str:
    rows = ({"id": n, **{k.name: json_value(k, turn(k, n)) for k in KINDS}, "y": TARGET[n]} for n in IDS)
    (folder / "wide.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "wide.jsonl")


def write_parquet(folder: Path) -> str:
    columns = {k.name: pa.array([k.values[turn(k, n)] for n in IDS], k.arrow) for k in KINDS}
    pq.write_table(pa.table({"id": IDS, **columns, "y": TARGET}), folder / "wide.parquet")
    return str(folder / "wide.parquet")


WRITERS = {"csv": write_csv, "json": write_json, "parquet": write_parquet}


class FilePath:
    "A file's way through slml, one stage after the other."

    def __init__(self, folder: Path, kind: str):
        self.workspace = Workspace(root=str(folder / "root"), project="values", cores=2)
        self.catalog, self.file_kind = Catalog(self.workspace), kind
        ingest_files(WRITERS[kind](folder), "wide", self.workspace)
        self.raw = self.catalog.snapshot("wide")
        self.inferred = slml.infer(self.raw, target="y", key=("id",), task="regression", workspace=self.workspace)
        features = [k.feature(column=k.name) for k in KINDS]
        self.contract = self.inferred.replace(features=features, rules=())
        self.ledger = slml.clean(self.raw, self.contract, workspace=self.workspace)
        self.kept = self.catalog.snapshot(self.ledger.kept_snapshot)
        self.trained = slml.train(
            self.ledger, self.contract, network="linear", epochs=1, progress=False, workspace=self.workspace
        )
        self.bundle: Bundle = export_bundle(
            self.trained.model, self.trained.encoder, self.contract, self.kept, self.trained.split,
            self.trained.evaluate().to_dict(), str(folder / "bundle"), runs={}, trained_at="2024-01-01T00:00:00Z",
        )  # fmt: skip
        self.predictor = Predictor(self.bundle)

    def request_value(self, kind: Kind, position: int) -> object:
        "What a client sends: as the file wrote it; JSON's own types and ISO times where the file was Parquet."
        if self.file_kind != "parquet":
            return json_value(kind, position)
        value = kind.values[position]
        return value.isoformat() if isinstance(value, date | datetime) else value


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FilePath]:
    return {}


@pytest.fixture
def path(
    request: pytest.FixtureRequest, paths: dict[str, FilePath], tmp_path_factory: pytest.TempPathFactory
) -> FilePath:
    if request.param not in paths:
        paths[request.param] = FilePath(tmp_path_factory.mktemp(request.param), request.param)
    return paths[request.param]


def table_of(snapshot: object) -> pa.Table:
    return ds.dataset(list(snapshot.files), format="parquet").to_table().sort_by("id")


def same(value: object, right: object) -> bool:
    if isinstance(right, datetime) and right.tzinfo and isinstance(value, datetime):
        return value.tzinfo is not None and value == right
    return value == right and isinstance(value, bool) == isinstance(right, bool)


def wrong_values(rows: pa.Table, kind: Kind) -> list[tuple]:
    pairs = ((n, v, kind.values[turn(kind, n)]) for n, v in enumerate(rows[kind.name].to_pylist()))
    return [pair for pair in pairs if not same(*pair[1:])][:3]


def read_request(predictor: Predictor, body: object) -> list:
    "The rows of a request; a refusal fails the test with its faults."
    try:
        return predictor.reader(json.dumps(body).encode()).rows
    except RequestError as error:
        pytest.fail("\n".join({f"{f.field}: {f.came}, expected {f.expected}": 0 for f in error.faults}))


EACH_FILE = pytest.mark.parametrize("path", list(WRITERS), indirect=True)


@EACH_FILE
def test_what_is_stored_and_kept_is_what_the_file_says(path: FilePath) -> None:
    assert path.ledger.quarantined == 0, path.ledger.by_rule
    for stage, rows in {"ingest": table_of(path.raw), "clean": table_of(path.kept)}.items():
        if stage == "ingest" and path.file_kind == "json":  # a text of a JSON line is stored as it is, blanks and all
            continue
        wrong = {k.name: found for k in KINDS if (found := wrong_values(rows, k))}
        assert not wrong, f"{stage}: row, value, right value: {wrong}"


@EACH_FILE
def test_the_contract_has_the_right_types(path: FilePath) -> None:
    types = {c.name: c.type for c in path.inferred.columns}
    assert {k.name: types[k.name] for k in KINDS} == {k.name: k.type for k in KINDS}


@EACH_FILE
def test_requests_and_batches_reach_the_model_as_the_training_rows_did(path: FilePath, tmp_path: Path) -> None:
    arrays = path.trained.encoder.arrays(table_of(path.kept))
    predictor, names = path.predictor, [i.name for i in path.predictor.encoding.inputs]
    rows = [{k.name: path.request_value(k, turn(k, n)) for k in KINDS} for n in IDS[:20]]
    several = read_request(predictor, {"rows": rows})
    single = [read_request(predictor, row)[0] for row in rows]
    graph_inputs = predictor._names
    for spelled in (several, single):
        for at, (attribute, encode) in zip(graph_inputs, predictor._encoders, strict=True):
            encoded = np.array([encode(getattr(row, attribute)) for row in spelled], arrays[at].dtype)
            np.testing.assert_array_equal(encoded, arrays[at][:20], err_msg=f"JSON: {at}")
    texts = {k.name: pa.array([None if r[k.name] is None else r[k.name] for r in rows]) for k in KINDS}
    typed = {k.name: pa.array([k.values[turn(k, n)] for n in IDS[:20]], k.arrow) for k in KINDS}
    for sent in (texts, typed):
        received = path.bundle.encoder.arrays(check_table(pa.table(sent), predictor.reader))
        for name in names:
            np.testing.assert_array_equal(received[name], arrays[name][:20], err_msg=f"Arrow: {name}")
    predicted = predictor.run({name: arrays[name] for name in graph_inputs})
    result = predict_snapshot(path.bundle, "values@1", path.kept, path.catalog.table("predicted"), str(tmp_path))
    np.testing.assert_array_equal(table_of(result.table)["prediction"].to_numpy(), predicted)


def test_the_three_files_reach_the_model_alike(
    paths: dict[str, FilePath], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for kind in WRITERS:
        paths.setdefault(kind, None)
        paths[kind] = paths[kind] or FilePath(tmp_path_factory.mktemp(kind), kind)
    first, *others = ({**p.trained.encoder.arrays(table_of(p.kept))} for p in paths.values())
    for other in others:
        for name in first:
            np.testing.assert_array_equal(other[name], first[name], err_msg=name)
