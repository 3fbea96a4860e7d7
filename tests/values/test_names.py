"""Whatever a file calls its columns, they go through every stage under that name, beside those of slml."""

import csv
import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from slml.contract import Numeric
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.monitoring.labels import label_window
from slml.quality.clean import clean
from slml.quality.infer import infer
from slml.quality.profile import prediction_name
from slml.registry.bundle import Lineage
from slml.registry.export import export, profile_of
from slml.sampling.sample import sample
from slml.sampling.split import split
from slml.serving.batch import predict_snapshot
from slml.serving.log_rows import log_schema, to_batch
from slml.serving.request import Reader, Terms
from slml.tables.catalog import Catalog, Snapshot
from slml.tables.engine import open_engine
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

NAMES = [
    "self", "row_hash", "Row_Hash_", "prediction", "broken", "reason", "raw self", "raw a", "a", "a.b", "rows", "key",
    "c0", "it's", 'say "hi"', "back\\slash", "class", "select", "order by", "größe", "名前", "[x]", "{x}", "${HOME}",
    "%s", "prediction (torch)", "version", "snapshot", "row", "label", "n", "by a", "broken any", "x" * 400,
]  # fmt: skip


def ingest(names: list[str], workspace: Workspace, folder: Path, rows: int = 300) -> Snapshot:
    """A table of numbers under these names, the last one the target."""
    values = np.random.default_rng(0).normal(size=(rows, len(names))).round(4)
    text = io.StringIO()
    csv.writer(text).writerows([names, *values.tolist()])
    (folder / "t.csv").write_text(text.getvalue(), encoding="utf-8")
    return Catalog(workspace).snapshot(ingest_files(str(folder / "t.csv"), "t", workspace).snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["price", "prediction", "row_hash", 'say "hi"', "self"])
def test_any_name_goes_through_every_stage(target: str, workspace: Workspace, tmp_path: Path) -> None:
    names = [*(n for n in NAMES if n != target), target]
    snapshot, catalog = ingest(names, workspace, tmp_path), Catalog(workspace)
    assert snapshot.schema.names == names
    contract = infer(snapshot, target=target, workspace=workspace)
    contract = contract.replace(features=[Numeric(name) for name in names[:-1]], key=())
    ledger = clean(snapshot, contract, catalog, workspace=workspace)
    kept = catalog.snapshot(ledger.kept_snapshot)
    assert kept.hash_column == "row_hash__"
    assert kept.schema.names == [*names, "row_hash__"]
    assert any("'row_hash__'" in note for note in ledger.notes)
    assert any("'broken_'" in note for note in ledger.notes)
    parts = split(kept, workspace=workspace)
    with open_engine(workspace) as engine:
        rows = engine.read(engine.table(kept))
        raw = engine.read(engine.table(snapshot))
        drawn = engine.read(sample(kept, engine, rows=50, part=parts.part("train")))
        assert drawn.num_rows == 50
    encoder = Encoder.fit(rows, contract)
    model = build_model(contract, encoder, encoder(rows), width=4, depth=1).eval()
    kept_values, raw_values = (sorted(tuple(r[n] for n in names) for r in t.to_pylist()) for t in (rows, raw))
    assert kept_values == raw_values

    profile = profile_of(model, encoder, contract, rows.to_batches())
    assert set(profile.columns) == {*names, prediction_name(contract)}
    folder = str(tmp_path / "bundle")
    lineage = Lineage(snapshots={"train": kept.ref}, runs={}, seed=0)
    bundle = export(model, encoder, contract, rows[:8], folder, lineage=lineage, metrics={"test": {"rmse": 1}})
    assert bundle.rows.num_rows
    assert set(names[:-1]) <= set(bundle.rows.column_names)
    predicted = bundle.predict(rows)

    reader = Reader(msgspec.json.decode(contract.to_json(), type=Terms), names[:-1])
    sent = rows.select(names[:-1]).to_pylist()[:3]
    one, several = reader(json.dumps(sent[0]).encode()), reader(json.dumps({"rows": sent, "key": "k"}).encode())
    assert len(one.rows) == 1
    assert len(several.rows) == 3
    assert several.key == "k"
    logged = pa.Table.from_batches(
        [to_batch([(0.0, several.rows, predicted[:3].tolist(), "r", 1, "champion", [])], log_schema(contract))]
    )
    assert logged.select(names[:-1]).to_pylist() == sent

    labels = pa.table({"_request": ["r"] * 3, "_row": [0, 1, 2], target: [1.0, 2.0, 3.0]})
    window, _ = label_window(logged, labels, contract)
    assert window[target].to_pylist() == [1.0, 2.0, 3.0]
    result = predict_snapshot(bundle, "t@1", kept, catalog.table("predicted"), str(tmp_path / "parts"))
    with open_engine(workspace) as engine:
        answers = engine.read(engine.table(result.table).order_by("row"))
    assert answers.column_names == ["row", "row_hash", "prediction", "version", "snapshot"]
    assert answers["row_hash"].to_pylist() == rows["row_hash__"].to_pylist()
    assert np.allclose(answers["prediction"], predicted)


def test_a_key_may_have_the_name_of_a_prediction(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prediction,version,x,y\n" + "".join(f"{n},v{n},{n}.5,{n}.25\n" for n in range(60)))
    snapshot = Catalog(workspace).snapshot(ingest_files(str(tmp_path / "t.csv"), "t", workspace).snapshot)
    contract = infer(snapshot, target="y", key=("prediction", "version"), workspace=workspace)
    contract = contract.replace(features=[Numeric("x")])
    with open_engine(workspace) as engine:
        rows = engine.read(engine.table(snapshot))
    encoder = Encoder.fit(rows, contract)
    model = build_model(contract, encoder, encoder(rows), width=4, depth=1).eval()
    lineage = Lineage(snapshots={}, runs={}, seed=0)
    bundle = export(model, encoder, contract, rows, str(tmp_path / "b"), lineage=lineage, metrics={"test": {"rmse": 1}})
    result = predict_snapshot(bundle, "t@1", snapshot, Catalog(workspace).table("p"), str(tmp_path / "parts"))
    assert result.table.schema.names == ["prediction_", "version_", "prediction", "version", "snapshot"]
    with open_engine(workspace) as engine:
        assert engine.read(engine.table(result.table))["prediction_"].to_pylist() == list(range(60))


def test_a_quarantine_keeps_a_column_called_broken(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("broken,y\n" + "".join(f"b{n},{n if n else ''}\n" for n in range(20)))
    catalog = Catalog(workspace)
    snapshot = catalog.snapshot(ingest_files(str(tmp_path / "t.csv"), "t", workspace).snapshot)
    ledger = clean(snapshot, infer(snapshot, target="y", workspace=workspace), catalog, workspace=workspace)
    with open_engine(workspace) as engine:
        out = engine.read(engine.table(catalog.snapshot(ledger.quarantine_snapshot))).to_pylist()
    assert out == [{"broken": "b0", "y": None, "broken_": ["y: not null"]}]
