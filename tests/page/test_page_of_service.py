"""The page of the real service on a model that was really trained: what it shows is what the model says."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.error import HTTPError

import pyarrow as pa
import pytest

from slml import Catalog, Workspace, clean, open_engine, sample, split
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.registry.bundle import Bundle, Lineage
from slml.registry.export import export, profile_of
from slml.serving.page import HEADERS
from slml.tables.ingest import ingest_files
from slml.taxi import contract, generate
from slml.training.baselines import baselines
from slml.training.fit import fit, predict_batches
from slml.training.loader import Loader, concat_batches
from slml.training.metrics import measure, slice_metrics

AIRPORT = {"DESTINATION_BLOCK_LAT": "38.9531", "DESTINATION_BLOCK_LONG": "-77.4477"}


def error(model: object, batch: object) -> float:
    """The root mean squared error over a batch."""
    return measure("regression", *predict_batches(model, [batch]))["rmse"]


def importance(model: object, batch: object) -> list[dict]:
    """How much the error grows when the columns of a feature are those of other rows."""
    whole, found = error(model, batch), []
    for feature in contract().features:
        moved = {name: batch.inputs[name].roll(1_000) for name in feature.columns}
        mixed = batch._replace(inputs={**batch.inputs, **moved})
        found.append({"feature": feature.name, "importance": error(model, mixed) - whole})
    return found


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of taxi fares, trained on synthetic trips as `nbs/index.ipynb` does it."""
    folder = tmp_path_factory.mktemp("taxi")
    ws = Workspace(root=f"{folder}/slml", project="taxi")
    generate(folder / "trips", rows=20_000, seed=0)
    ingest_files(f"{folder}/trips/*.txt", "trips", ws)
    catalog, engine, taxi = Catalog(ws), open_engine(ws), contract()
    clean(catalog.snapshot("trips"), taxi, catalog, engine, kept="trips_kept", quarantine="trips_out")
    snapshot = catalog.snapshot("trips_kept")
    parts = split(snapshot, engine, {"train": 0.64, "valid": 0.16, "test": 0.2})
    rows = engine.read(sample(snapshot, engine, rows=8_000, part=parts.part("train")))
    encoder = Encoder.fit(rows, taxi)
    model = build_model(taxi, encoder, encoder(rows))
    train, valid, test = (Loader(snapshot.files, part, encoder, 256) for part in parts.parts.values())
    fit(model, train, valid, epochs=10, progress=False)
    learned, asked = concat_batches(list(train.in_order())), concat_batches(list(test.in_order()))
    frames = [model.features.derived_frame(batch.inputs) for batch in (learned, asked)]
    target, prediction = predict_batches(model, [asked])
    known = [(frame, batch.target.numpy()) for frame, batch in zip(frames, (learned, asked), strict=True)]
    cut = slice_metrics("regression", target, prediction, frames[1].iloc[:, 0])
    return export(
        model, encoder, taxi, rows, f"{folder}/bundle",
        lineage=Lineage(snapshots={"train": f"trips_kept@{snapshot.id}"}, runs={"train": "a41f"}, seed=0),
        metrics={"test": measure("regression", target, prediction), "baselines": baselines("regression", *known)},
        profile=profile_of(model, encoder, taxi, rows.to_batches()),
        page={
            "metric": "rmse", "trained_at": "2023-04-02T06:10:00+00:00", "slice_column": cut.index.name,
            "slices": [{"slice": name, "rows": int(row["rows"]), "error": row["rmse"]} for name, row in cut.iterrows()],
            "importance": importance(model, asked),
        },
    )  # fmt: skip


@contextmanager
def serving(bundle: Bundle, output: Path, key: str = "") -> Iterator[str]:
    """The address of a service of that model, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "slml.serving", bundle.uri, "--port", str(port)]
    environment = {**os.environ, "SLML_API_KEY": key}
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}ready", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, output.read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that all tests share."""
    with serving(bundle, tmp_path_factory.mktemp("service") / "output.txt") as url:
        yield url


def typed(row: dict) -> pa.Table:
    """A row as it went to the service, as a table."""
    moments = {name: datetime.fromisoformat(value) for name, value in row.items() if isinstance(value, str)}
    return pa.table({name: [value] for name, value in {**row, **moments}.items()})


def test_the_page_says_what_the_model_says(service: str, bundle: Bundle, visit: Callable) -> None:
    """To the digit that is shown; on a row that was typed, and for one beyond the training range, which is flagged."""
    seen = visit(service)
    for column, value in AIRPORT.items():
        seen.tab.locator(f"[data-column={column}]").fill(value)
    shown = seen.answer()
    row = json.loads(re.search(r"-d '(.*)'$", seen.tab.locator("#curl").text_content(), re.DOTALL)[1])["rows"][0]
    assert row["DESTINATION_BLOCK_LAT"] == 38.9531
    assert float(shown.removesuffix("USD").replace(",", "")) == pytest.approx(bundle.predict(typed(row))[0], abs=0.051)
    assert seen.complaints == []
    assert seen.tab.locator(".note:visible").count() == 0
    seen.tab.locator("[data-column=DESTINATION_BLOCK_LAT]").fill("39.25")
    seen.answer()
    assert "Outside the training range of" in seen.tab.locator(".note:visible").inner_text()


def test_the_service_refuses_at_the_field(service: str, visit: Callable) -> None:
    """An empty field that must not be empty, and a place that is nowhere near."""
    seen = visit(service)
    field = seen.tab.locator("[data-column=ORIGIN_BLOCK_LATITUDE]")
    field.fill("")
    seen.tab.wait_for_selector("#f0-note.bad:visible")
    assert "a number" in seen.tab.locator("#f0-note").inner_text()
    field.fill("-77")
    seen.tab.wait_for_selector(".note:visible")
    field.fill("38.9")
    assert seen.answer().endswith("USD")
    assert seen.tab.locator(".note:visible").count() == 0


def test_the_page_knows_its_model(service: str, bundle: Bundle, visit: Callable) -> None:
    """The facts of the bundle, with the test error that was measured."""
    text = visit(service).tab.locator("main").inner_text()
    assert bundle.lineage.code in text
    assert bundle.lineage.snapshots["train"] in text
    assert f"{bundle.metrics['test']['rmse']:.2f}" in text
    for part in ("Error", "Model details", "Error by slice", "Feature importance"):
        assert part in text


def test_the_policy_is_sent(service: str) -> None:
    """With the page, so that a browser runs nothing but the page's own script."""
    with urllib.request.urlopen(service, timeout=10) as answer:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


def test_a_locked_service_opens_with_its_key(bundle: Bundle, visit: Callable, tmp_path: Path) -> None:
    """The browser asks for it once, and it goes with each request of the page; without it nothing is told."""
    with serving(bundle, tmp_path / "output.txt", key="open sesame") as url:
        with pytest.raises(HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=10)
        seen = visit(url, password="open sesame")
        assert seen.answer().endswith("USD")
        assert seen.tab.locator("#unlock").is_hidden()


@pytest.mark.parametrize(("name", "width"), [("light", 1200), ("dark", 1200), ("phone", 375)])
def test_pictures(service: str, visit: Callable, pictures: Path, name: str, width: int) -> None:
    """For those who want to see it; nothing is wider than its window."""
    seen = visit(service, width=width, scheme="dark" if name == "dark" else "light", touch=name == "phone")
    for column, value in AIRPORT.items():
        seen.tab.locator(f"[data-column={column}]").fill(value)
    seen.answer()
    seen.tab.locator("h1").click()  # nothing has the focus
    seen.tab.screenshot(path=pictures / f"page-{name}.png", full_page=True)
    assert seen.tab.evaluate("document.documentElement.scrollWidth") == width
    assert seen.complaints == []
