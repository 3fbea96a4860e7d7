"""Damaged Parquet, Arrow and ORC files: each is refused by its name, or stored and readable; none ends the process.

The files are read in another process, so that a crash is seen as one.
"""

import datetime as dt
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest

ROWS = 200
TABLE = pa.table(
    {
        "id": range(ROWS),
        "city": [f"c{i % 7}" for i in range(ROWS)],
        "eur": [i / 4 for i in range(ROWS)],
        "at": pa.array([dt.datetime(2024, 1, 1) + dt.timedelta(hours=i) for i in range(ROWS)], pa.timestamp("us")),
        "day": [dt.date(2024, 1, 1 + i % 28) for i in range(ROWS)],
        "ok": [i % 2 == 0 if i % 5 else None for i in range(ROWS)],
    }
)
READ = """
import json, sys
from pathlib import Path
from slml.errors import IngestError
from slml.tables.catalog import Catalog
from slml.tables.engine import open_engine
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

folder = Path(sys.argv[1])
workspace = Workspace(root=str(folder / "workspace"))
with open_engine(workspace) as engine:
    for at, path in enumerate(sorted(folder.glob("m*.*"))):
        print(json.dumps([path.name, "begun"]), flush=True)
        try:
            report = ingest_files(str(path), f"t{at}", workspace)
            rows = engine.read(engine.table(Catalog(workspace).table(f"t{at}").snapshot())).to_pylist()
            outcome = "readable" if len(rows) == report.stored else "rows are missing"
        except IngestError as error:
            outcome = "refused" if path.name in str(error) else f"refused without a name: {error}"
        print(json.dumps([path.name, outcome]), flush=True)
"""


def _parquet(**options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink, **options)
    return sink.getvalue().to_pybytes()


def _arrow() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue().to_pybytes()


def _orc() -> bytes:
    sink = pa.BufferOutputStream()
    orc.write_table(TABLE, sink)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "snappy.parquet": _parquet,
    "plain.parquet": lambda: _parquet(compression="none", use_dictionary=False),
    "pages2.parquet": lambda: _parquet(compression="zstd", data_page_version="2.0", row_group_size=50),
    "int96.parquet": lambda: _parquet(use_deprecated_int96_timestamps=True, store_schema=False),
    "file.arrow": _arrow,
    "file.orc": _orc,
}


def _damage(data: bytes, rng: random.Random) -> bytes:
    "Bits flipped, bytes of the footer replaced, the end cut off, or a stretch of zeros."
    damaged, kind = bytearray(data), rng.choice(["flip", "footer", "cut", "zeros"])
    footer = min(int.from_bytes(data[-8:-4], "little"), len(data) // 2)
    if kind == "flip":
        for _ in range(rng.choice([1, 3, 10])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif kind == "footer":
        for _ in range(rng.choice([1, 3])):
            damaged[len(data) - 8 - rng.randrange(1, footer)] = rng.randrange(256)
    elif kind == "cut":
        del damaged[rng.randrange(len(damaged)) :]
    else:
        start = rng.randrange(len(damaged))
        damaged[start : start + 64] = bytes(min(64, len(damaged) - start))
    return bytes(damaged)


def _read_all(folder: Path) -> dict[str, str]:
    result = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, timeout=300)
    outcomes = dict(json.loads(line) for line in result.stdout.splitlines())
    assert result.returncode == 0, (result.stderr[-800:], list(outcomes.items())[-1:])
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_damaged_files(tmp_path, writer):
    data, rng = WRITERS[writer](), random.Random(writer)
    for at in range(12):
        (tmp_path / f"m{at:02d}{Path(writer).suffix}").write_bytes(_damage(data, rng))
    outcomes = _read_all(tmp_path)
    assert len(outcomes) == 12
    assert set(outcomes.values()) <= {"refused", "readable"}, outcomes


def test_encrypted_columns_and_odd_names(tmp_path):
    import pyarrow.parquet.encryption as pe

    class Keys(pe.KmsClient):
        def wrap_key(self, key_bytes, master_key_identifier):
            return key_bytes.hex().encode()

        def unwrap_key(self, wrapped_key, master_key_identifier):
            return bytes.fromhex(wrapped_key.decode())

    for name, open_footer in (("m_open", True), ("m_closed", False)):
        settings = pe.EncryptionConfiguration("key", column_keys={"key": ["city"]}, plaintext_footer=open_footer)
        factory = pe.CryptoFactory(lambda connection: Keys())
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", TABLE.schema, encryption_properties=properties) as writer:
            writer.write_table(TABLE)
    plain = _parquet(compression="none")
    (tmp_path / "m_name.parquet").write_bytes(plain.replace(b"city", b"c\xfft\xe9"))
    outcomes = _read_all(tmp_path)
    assert outcomes == dict.fromkeys(("m_open.parquet", "m_closed.parquet", "m_name.parquet"), "refused")
