"""A root may be a bucket: everything works there as in a folder, and a look at it is always a fresh one."""

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from slml import audit, clean, infer, open_engine, sample, split
from slml.errors import SettingsError, StorageError, TableError, UsageError
from slml.features.encoder import Encoder
from slml.models.model import build_model
from slml.registry.bundle import Bundle, Lineage
from slml.registry.export import export
from slml.registry.gate import AuditSummary
from slml.registry.versions import load_bundle, promote_version, register
from slml.storage import expand, filesystem, is_storage_error, open_atomic, read_text, write_text
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.training.fit import fit
from slml.training.loader import Loader
from slml.workspace import Workspace

from support import REPOSITORY

BUCKET = "lake"


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """The emulated S3 and Glue, which every library finds by the environment, as on a real account."""
    from cloud import glue
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    glue.install()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-west-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        client().create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield url
    server.stop()


def client(service: str = "s3") -> object:
    import boto3

    return boto3.client(service)


def workspace_at(root: str, folder: Path, catalog: str = "", tracking: str = "") -> Workspace:
    return Workspace(
        root=root,
        project=folder.name,  # Glue knows one database of a name
        catalog_uri=catalog or f"sqlite:///{folder}/catalog.db",
        tracking_uri=tracking or f"sqlite:///{folder}/mlflow.db",
        cores=2,
    )


@pytest.fixture(params=["s3+glue", "s3+sqlite", "memory+sqlite"])
def workspace(request: pytest.FixtureRequest, tmp_path: Path, tracking_uri: str) -> Workspace:
    """A project in a bucket, with each kind of catalog; `memory://` stands for clouds without an emulator."""
    scheme, catalog = request.param.split("+")
    if scheme == "s3":
        request.getfixturevalue("aws")
    root = f"{scheme}://{BUCKET}/{tmp_path.name}"
    return workspace_at(root, tmp_path, "glue" if catalog == "glue" else "", tracking_uri)


def rows(number: int) -> pa.Table:
    """Trips whose fare follows from their miles."""
    ids = range(number)
    return pa.table({"id": ids, "miles": [i % 17 + 0.5 for i in ids], "fare": [(i % 17) * 2.5 + i % 3 for i in ids]})


def files_of(workspace: Workspace) -> list[str]:
    fs, path = filesystem(workspace.root)
    return fs.find(path)


@pytest.mark.parametrize("workspace", ["s3+glue", "memory+sqlite"], indirect=True)
def test_from_a_file_to_a_champion(workspace, tmp_path):
    pa.csv.write_csv(rows(600), tmp_path / "trips.csv")
    write_text(workspace.uri("landing", "trips.csv"), (tmp_path / "trips.csv").read_text())
    report = ingest_files(workspace.uri("landing", "trips.csv"), "trips", workspace)
    assert report.rows == report.stored == 600

    catalog, engine = Catalog(workspace), open_engine(workspace)
    raw = catalog.snapshot("trips")
    assert all(file.startswith(f"{workspace.root}/warehouse/{workspace.project}/trips/data/") for file in raw.files)
    contract = infer(raw, engine, target="fare", key=["id"])
    assert audit(raw, contract, engine).rows == 600
    ledger = clean(raw, contract, catalog, engine, kept="kept", quarantine="odd")
    assert ledger.kept + ledger.quarantined == 600

    kept_snapshot = catalog.snapshot(ledger.kept_snapshot)
    parts = split(kept_snapshot, engine, {"train": 0.6, "valid": 0.2, "test": 0.2})
    some = engine.read(sample(kept_snapshot, engine, rows=200, part=parts.part("train")))
    encoder = Encoder.fit(some, contract)
    train, valid = (Loader(kept_snapshot.files, parts.part(name), encoder, 64) for name in ("train", "valid"))

    checkpoint = workspace.uri("checkpoints", "one", "checkpoint.pt")
    first = build_model(contract, encoder, encoder(some), width=8, depth=1)
    fit(first, train, valid, epochs=2, checkpoint=checkpoint)
    again = build_model(contract, encoder, encoder(some), width=8, depth=1)
    assert len(fit(again, train, valid, epochs=3, checkpoint=checkpoint).epochs) == 3  # two of them remembered

    lineage = Lineage(snapshots={"train": kept_snapshot.ref}, runs={"train": "one"}, seed=0)
    bundle = export(again, encoder, contract, some, workspace.uri("bundles", "one"), lineage=lineage, metrics={})
    assert Bundle.load(bundle.uri).hash == bundle.hash
    assert bundle.uri.startswith(workspace.root)
    audited = AuditSummary(ledger.kept_snapshot, ledger.rows_in, ledger.kept, ledger.quarantined)
    metrics = {"metrics": {"rmse": 1.0}, "baselines": {"constant": {"rmse": 3.0}}}
    register(bundle, "fares", workspace, **metrics, audit=audited, served=Bundle.predict)
    promote_version("fares@1", workspace)
    assert load_bundle("fares@champion", workspace).check() <= 1e-5


def test_versions_come_and_go(workspace):
    catalog = Catalog(workspace)
    trips = catalog.table("trips")
    first, second = trips.append(rows(3)), trips.append(rows(5))
    assert [s.rows for s in trips.history()] == [3, 8]
    trips.rollback(first.id)
    assert Catalog(workspace).snapshot("trips").id == first.id
    assert trips.expire(keep=1) == []  # the latest stays, and so does the current one
    third = trips.replace(pa.table({"id": [1], "zone": ["Mall"]}))
    assert trips.expire(keep=1) == [first.id, second.id]
    parquet = [file for file in files_of(workspace) if file.endswith(".parquet")]
    assert len(parquet) == 1
    assert third.files[0].endswith(parquet[0])
    assert catalog.tables() == ["trips"]
    catalog.drop("trips")
    assert catalog.tables() == []
    assert files_of(workspace) == []


def test_two_writers_of_one_table_lose_nothing(workspace):
    Catalog(workspace).table("trips").append(rows(1))
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda n: Catalog(workspace).table("trips").append(rows(n)), [2, 3, 4, 5]):
            pass
    assert Catalog(workspace).snapshot("trips").rows == 15


def test_two_writers_of_a_new_table_lose_nothing(workspace):
    with ThreadPoolExecutor(3) as pool:
        for _ in pool.map(lambda n: Catalog(workspace).table("trips").append(rows(n)), [2, 3, 4]):
            pass
    assert Catalog(workspace).snapshot("trips").rows == 9


def test_a_write_that_breaks_off_leaves_nothing(workspace):
    def torn() -> Iterator[pa.RecordBatch]:
        yield rows(5).to_batches()[0]
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        Catalog(workspace).table("trips").append(pa.RecordBatchReader.from_batches(rows(1).schema, torn()))
    assert Catalog(workspace).tables() == []
    assert files_of(workspace) == []


def _half(file: IO) -> None:
    file.write("ne")
    raise KeyboardInterrupt


@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_a_text_appears_whole_or_not_at_all(aws, scheme, tmp_path):
    uri = f"{scheme}://{BUCKET}/{tmp_path.name}/run.json"
    write_text(uri, "old")
    with pytest.raises(KeyboardInterrupt), open_atomic(uri, "w") as file:
        _half(file)
    assert read_text(uri) == "old"


def test_what_another_process_wrote_is_seen(aws, tmp_path):
    """fsspec remembers listings: a notebook would miss a job's run, and fail to read a record that has grown."""
    folder = f"s3://{BUCKET}/{tmp_path.name}"
    write_text(f"{folder}/1/run.json", "waiting")
    assert expand(f"{folder}/*/run.json") == [f"{folder}/1/run.json"]
    assert read_text(f"{folder}/1/run.json") == "waiting"
    code = "import sys; from slml.storage import write_text; [write_text(uri, 'it is done') for uri in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, f"{folder}/1/run.json", f"{folder}/2/run.json"], check=True, timeout=60)
    assert expand(f"{folder}/*/run.json") == [f"{folder}/1/run.json", f"{folder}/2/run.json"]
    assert read_text(f"{folder}/1/run.json") == read_text(f"{folder}/2/run.json") == "it is done"


def test_a_query_reads_little_of_a_large_file(aws, tmp_path):
    table = pa.table({f"c{n}": pa.array(range(300_000), pa.float64()) for n in range(8)})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, compression="none")
    fs, path = filesystem(f"s3://{BUCKET}/{tmp_path.name}.parquet")
    fs.put_file(str(tmp_path / "t.parquet"), path)
    engine = open_engine(workspace_at(f"s3://{BUCKET}/x", tmp_path))
    rows = engine.table([f"s3://{path}"])
    assert engine.read(rows.aggregate(m=rows.c3.mean()))["m"].to_pylist() == [149_999.5]
    assert fs.default_block_size < (tmp_path / "t.parquet").stat().st_size


# Errors say what to do


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcp"), ("abfs", "azure"), ("s3", "aws")])
def test_a_cloud_whose_package_is_missing(scheme, extra, monkeypatch):
    for package in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)  # what was loaded already
    with pytest.raises(UsageError, match=re.escape(f"slml[{extra}]")):
        read_text(f"{scheme}://bucket/a")


def test_no_such_bucket(aws):
    with pytest.raises(StorageError, match="cannot be read"):
        read_text("s3://nobodys/a")
    with pytest.raises(StorageError, match="cannot be written"):
        write_text("s3://nobodys/a", "text")
    with pytest.raises(UsageError, match="No file matches"):
        expand("s3://nobodys/*.csv")


def test_a_catalog_that_cannot_be_asked(aws, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(TableError, match=r"catalog cannot be used.*\n.*region"):
        Catalog(workspace_at(f"s3://{BUCKET}/x", tmp_path, "glue")).tables()


def test_a_catalog_that_there_is_not(tmp_path):
    with pytest.raises(SettingsError, match="glue"):
        Catalog(workspace_at("s3://bucket/x", tmp_path, "blue"))
    with pytest.raises(SettingsError, match="glue"):
        Catalog(Workspace(root=str(tmp_path), project="taxi", catalog_uri="glue"))


def test_trouble_with_a_service_is_known_as_such():
    from azure.core.exceptions import ClientAuthenticationError
    from botocore.exceptions import NoCredentialsError
    from gcsfs.retry import HttpError

    assert all(
        map(is_storage_error, [NoCredentialsError(), HttpError(), ClientAuthenticationError(), PermissionError()])
    )
    assert not any(map(is_storage_error, [ValueError(), KeyError(), KeyboardInterrupt()]))


# Other clouds, by their names alone


@pytest.mark.parametrize(
    ("uri", "package"),
    [("s3://bucket/taxi", "s3fs"), ("gs://bucket/taxi", "gcsfs"), ("abfs://container/taxi", "adlfs")],
)
def test_each_cloud_is_one_more_name(uri, package, monkeypatch):
    """Google's and Azure's clients look for credentials at the start; these say that there are none to look for."""
    for name, value in {"AZURE_STORAGE_ACCOUNT_NAME": "slml", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    fs, path = filesystem(uri)
    assert type(fs).__module__.startswith(package)
    assert path.endswith("/taxi")
    assert not fs.dircache.use_listings_cache
    assert Workspace(root=uri, project="taxi").uri("runs", "1") == f"{uri}/runs/1"


# Nobody goes around slml.storage

HOME = {"storage", "job", "execute", "pipeline", "track"}


def test_no_module_finds_its_own_way_to_storage():
    """fsspec's own entrances remember listings; they are for `slml.storage` alone."""
    for path in sorted((REPOSITORY / "slml").rglob("*.py")):
        if path.stem not in HOME:
            rows = re.findall(r"\burl_to_fs\(|\bfsspec\.(?:open|filesystem)\(", path.read_text())
            assert not rows, f"{path} reaches storage by {rows}; use slml.storage.filesystem"
