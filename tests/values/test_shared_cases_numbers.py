"""The handed files of numbers, ids and words for missing values."""

import csv
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slml.quality.infer import infer
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

FOLDER = Path(__file__).parents[3] / "shared" / "cases" / "values"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the files of ../shared/cases/values are not here")
NULL = {"NA": None, "": None, "nan": None, "#DIV/0!": None, "#N/A": None}
NUMBERS = {  # file: column, what takes its text to a plain number
    "num_currency.csv": ("price", lambda t: t.replace("$", "").replace(",", "")),
    "num_us_thousands.csv": ("price", lambda t: t.replace(",", "")),
    "num_euro_suffix.csv": ("price", lambda t: t.removesuffix(" €")),
    "num_nbsp_thousands.csv": ("price", lambda t: "".join(c for c in t if c.isdigit())),
    "num_unicode_minus.csv": ("balance", lambda t: t.replace("\u2212", "-")),
    "num_NA_10pct.csv": ("area", str),
    "num_excel_err.csv": ("rooms", str),
    "nullable_int_float.csv": ("k", str),
    "zone_area.csv": ("garage_area", str),
}
TEXTS = {  # file: column, whether it is the key
    "num_1e5_codes.csv": ("plate", False), "num_leading_zero_zip.csv": ("zip", False),
    "key_20_digits.csv": ("scholar_id", True), "key_leading_zeros.csv": ("member_id", True),
    "key_exponent_ids.csv": ("part_id", True), "country_NA.csv": ("country", False), "gene_names.csv": ("gene", False),
}  # fmt: skip
IDS = {"num_ids_gt_2_53.csv": "acct", "num_ids_19digits.csv": "acct", "key_16_digits.csv": "order_id",
       "key_snowflake.csv": "tweet_id"}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=str(tmp_path / "root"), project="test")


def both(file: str, name: str, workspace: Workspace) -> tuple[list[str], list]:
    "A column as the file writes it, and as it is stored."
    ingest_files(str(FOLDER / file), "t", workspace)
    with (FOLDER / file).open(encoding="utf-8", newline="") as lines:
        written = [row[name] for row in csv.DictReader(lines)]
    files = Catalog(workspace).snapshot("t").files
    return written, pa.concat_tables(pq.read_table(f) for f in files)[name].to_pylist()


@pytest.mark.parametrize("file", NUMBERS)
def test_numbers(file: str, workspace: Workspace) -> None:
    name, plain = NUMBERS[file]
    written, stored = both(file, name, workspace)
    assert stored == [None if text in NULL else float(Decimal(plain(text))) for text in written]
    contract = infer("t", target=csv_names(file)[-1], workspace=workspace)
    assert contract.task == "regression"


def csv_names(file: str) -> list[str]:
    with (FOLDER / file).open(encoding="utf-8", newline="") as lines:
        return next(csv.reader(lines))


@pytest.mark.parametrize("file", TEXTS)
def test_texts(file: str, workspace: Workspace) -> None:
    name, is_key = TEXTS[file]
    written, stored = both(file, name, workspace)
    assert stored == written
    contract = infer("t", target=csv_names(file)[-1], workspace=workspace)
    assert contract.column(name).type == "text"
    assert (contract.key == (name,)) == is_key


@pytest.mark.parametrize("file", IDS)
def test_ids(file: str, workspace: Workspace) -> None:
    written, stored = both(file, IDS[file], workspace)
    assert stored == [int(text) for text in written]
    contract = infer("t", target=csv_names(file)[-1], workspace=workspace)
    assert contract.key == (IDS[file],)
    assert IDS[file] not in {name for f in contract.features for name in f.columns}


def test_blanks_and_codes(workspace: Workspace) -> None:
    written, stored = both("blanks_around.csv", "kind", workspace)
    assert stored == [text.strip(" \t") for text in written]
    ingest_files(str(FOLDER / "zone_area.csv"), "z", workspace)
    contract = infer("z", target="price", workspace=workspace)
    assert {f.column: f.kind for f in contract.features} == {"garage_area": "numeric", "zone": "category"}
