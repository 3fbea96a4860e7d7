"""Numbers, ids and words for missing values mean what their file says, from ingest to a request."""

import json
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slml.contract import Category, Column, Contract, Numeric
from slml.errors import ContractError
from slml.features.encoder import Encoder, code_array, vocabulary
from slml.quality.clean import clean
from slml.quality.infer import infer, values_from_text
from slml.quality.rules import read_as
from slml.serving import arrow
from slml.serving.predictor import category_codes
from slml.serving.request import Reader, RequestError, Terms
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.tables.number_finder import parse_numbers
from slml.tables.numbers import NULL_WORDS, parse_number, read_number
from slml.workspace import Workspace

NBSP, MINUS = "\u00a0", "\u2212"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=str(tmp_path / "root"), project="test")


def take(workspace: Workspace, text: str, name: str = "t.csv", **options):
    path = Path(workspace.root).parent / name
    path.write_text(text, encoding="utf-8")
    return ingest_files(str(path), "t", workspace, **options)


def column(workspace: Workspace, name: str, table: str = "t") -> list:
    files = Catalog(workspace).snapshot(table).files
    return pa.concat_tables(pq.read_table(file) for file in files)[name].to_pylist()


def csv(name: str, values: list[str], other: str = "7.25") -> str:
    return f"{name},other\n" + "".join('"' + v.replace('"', '""') + f'",{other}\n' for v in values)


def reader(*columns: Column, **more) -> Reader:
    contract = Contract(name="t", columns=columns, **more)
    return Reader(msgspec.json.decode(contract.to_json(), type=Terms), [c.name for c in columns])


def served(read: Reader, **row: object) -> object:
    "The first field of a row that is sent as JSON, and the same where it is sent as Arrow."
    name = next(iter(row))
    value = getattr(read(json.dumps(row).encode()).rows[0], f"c{read.names.index(name)}")
    table = pa.table({n: [v] for n, v in row.items()})
    assert arrow.check_table(table, read)[name].to_pylist() == [value]
    return value


# --- written numbers

WRITTEN = [
    (["$102,448", "$9", "-$1,000", "($7)"], "int $1,234", [102448, 9, -1000, -7], "$"),
    (["235,873.49", "12.5", "1,234,567"], "float 1,234.5", [235873.49, 12.5, 1234567.0], ""),
    (["235.873,49 €", "1,5 €"], "float 1.234,5 €", [235873.49, 1.5], "€"),
    ([f"235{NBSP}873", "12"], "int 1 234", [235873, 12], ""),
    ([f"{MINUS}3.5", "4"], "float 1.5", [-3.5, 4.0], ""),
    (["12.5 %", "3 %"], "float 1.5 %", [12.5, 3.0], "%"),
    (["(1.25)", "3.0"], "float 1.5", [-1.25, 3.0], ""),
    (["12 kg", "7 kg"], "int 1 kg", [12, 7], "kg"),
    (["1'234.5", "7"], "float 1'234.5", [1234.5, 7.0], ""),
    (["12,34,567", "1,000"], "int 1,234", [1234567, 1000], ""),
    (["74,5", "1168,25"], "float 1,5", [74.5, 1168.25], ""),
    (["1,234", "999"], "int 1,234", [1234, 999], ""),
]


@pytest.mark.parametrize(("texts", "type", "numbers", "unit"), WRITTEN, ids=range(len(WRITTEN)))
def test_written_numbers_are_numbers_everywhere(
    workspace: Workspace, texts: list[str], type: str, numbers: list, unit: str
) -> None:
    report = take(workspace, csv("price", texts * 10))
    assert report.stored == len(texts) * 10
    assert column(workspace, "price") == numbers * 10
    assert any("price" in str(note) and type.split(" ", 1)[1] in str(note) for note in report.notes)
    contract = infer("t", workspace=workspace)
    found = contract.column("price")
    assert f"{found.type} {found.format}" == type
    assert found.unit == unit
    read = reader(found)
    assert [served(read, price=text) for text in texts] == numbers
    assert [served(read, price=number) for number in numbers] == numbers
    frame, wrong = values_from_text(pa.chunked_array([texts]), found)
    assert frame.to_pylist() == numbers
    assert not wrong.any()


def test_written_numbers_that_are_stored_as_text_are_read_by_the_contract(workspace: Workspace) -> None:
    rows = 12
    table = {f"c{i}": (texts * rows)[:rows] for i, (texts, *_) in enumerate(WRITTEN)}
    Catalog(workspace).table("raw").replace(pa.table(table))
    types = [type.split(" ", 1) for _, type, *_ in WRITTEN]
    columns = [Column(f"c{i}", kind, format=picture) for i, (kind, picture) in enumerate(types)]
    assert clean("raw", Contract(name="raw", columns=columns), workspace=workspace).quarantined == 0
    for i, (_, _, numbers, _) in enumerate(WRITTEN):
        assert sorted(column(workspace, f"c{i}", "raw_kept")) == sorted((numbers * rows)[:rows])


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["1,234", "5,678"], "ambiguous numbers: '1,234'"),
        (["$5", "€5"], "several units"),
        (["5 kg", "300 g"], "several units"),
        (["1.5", "2.5", "3.5", "$4.5", "5.5 mi"], "several units"),
        (["A12", "A13"], ""),
        (["612 345 678", "712 345 678"], ""),
        (["192.168.1.1", "10.0.0.1"], ""),
        (["1_000", "2_000"], ""),
        (["10 am", "3 am"], ""),
        (["2 of 3", "1 of 3"], ""),
    ],
)
def test_what_is_no_number_or_several_stays_text(workspace: Workspace, texts: list[str], told: str) -> None:
    report = take(workspace, csv("x", texts * 10, other="word"))
    assert report.types["x"] == "text"
    assert column(workspace, "x") == texts * 10
    assert not told or any(told in str(note) for note in report.notes)


def test_the_rest_of_the_file_decides_what_a_comma_is(workspace: Workspace) -> None:
    take(workspace, csv("x", ["1,234", "5,678"] * 10, other="7.25"))
    assert column(workspace, "x")[:2] == [1234, 5678]
    take(workspace, "x;y\n" + "1,234;7,5\n5,678;7,25\n" * 10, append=False)
    assert column(workspace, "x")[:2] == [1.234, 5.678]
    take(workspace, "x;y\n" + "1.234;7,5\n5.678;7,25\n" * 10, append=False)
    assert column(workspace, "x")[:2] == [1234, 5678]


def test_a_target_of_money_is_a_regression_and_never_hundreds_of_classes(workspace: Workspace) -> None:
    take(workspace, "area,price\n" + "".join(f'{i}.5,"${100 + i},{i:03d}"\n' for i in range(400)))
    assert infer("t", target="price", workspace=workspace).task == "regression"
    Catalog(workspace).table("raw").replace(pa.table({"x": range(400), "y": [f"{i},{i}" for i in range(400)]}))
    with pytest.raises(ContractError, match="text and has 400 values in 400 rows"):
        infer("raw", target="y", workspace=workspace)


def test_files_that_write_numbers_in_another_way_are_added(workspace: Workspace) -> None:
    take(workspace, csv("x", ["1.5", "2.5"] * 5), "a.csv")
    take(workspace, csv("x", ["$1,234.50", "n/a"] * 5), "b.csv")
    assert sorted(set(column(workspace, "x")) - {None}) == [1.5, 2.5, 1234.5]
    found = infer("t", workspace=workspace).column("x")
    assert found.nulls == ("n/a",)
    assert served(reader(found), x="$7.50") == served(reader(found), x="7.5") == 7.5


# --- words for a missing value


WORDS = ["NA", "\\N", "-", "#DIV/0!"]


def test_words_are_null_in_numbers_and_dates_and_text_in_text(workspace: Workspace) -> None:
    header = ",".join(f"n{i},day{i},country{i}" for i in range(len(WORDS)))
    missing, present = ",".join(f"{w},{w},{w}" for w in WORDS), ",".join(["5,2023-01-05,DE"] * len(WORDS))
    report = take(workspace, f"{header}\n" + f"{missing}\n{present}\n" * 7)
    assert report.rejected == 0
    contract = infer("t", workspace=workspace)
    for i, word in enumerate(WORDS):
        assert [report.types[f"{name}{i}"] for name in ("n", "day", "country")] == ["int", "date", "text"]
        assert column(workspace, f"n{i}").count(None) == column(workspace, f"day{i}").count(None) == 7
        assert column(workspace, f"country{i}").count(word) == 7
        assert any(f"n{i}" in str(note) and f"'{word}' (7)" in str(note) for note in report.notes)
        found = contract.column(f"n{i}")
        assert (found.nulls, found.nullable) == ((word,), True)
        assert served(reader(found, Column("x", "float")), **{f"n{i}": word, "x": 1.0}) is None


def test_nan_in_floats_is_told_and_missing(workspace: Workspace) -> None:
    report = take(workspace, "x,y\n" + "nan,1\n1.5,2\n" * 20)
    assert report.types["x"] == "float"
    assert np.isnan(column(workspace, "x")[0])
    assert any("'nan' (20)" in str(note) for note in report.notes)
    assert infer("t", workspace=workspace).column("x").nullable


def test_words_of_parquet_text_cost_no_row(workspace: Workspace) -> None:
    Catalog(workspace).table("t").replace(pa.table({"x": ["1.5", "NA", "2.5", "-"] * 50, "who": ["NA", "b"] * 100}))
    contract = infer("t", workspace=workspace)
    assert contract.column("x").nulls == ("-", "NA")
    assert clean("t", contract, workspace=workspace).quarantined == 0
    kept = column(workspace, "x", "t_kept")
    assert (kept.count(None), kept.count(1.5)) == (100, 50)
    assert column(workspace, "who", "t_kept").count("NA") == 100


# --- ids

IDS = [
    ([str(9557580359308891 + i) for i in range(60)], int),
    ([str(1790000000000000001 + i) for i in range(60)], int),
    ([str(2**63 - 1 - i) for i in range(60)], int),
    ([str(11898508762506083000 + i) for i in range(60)], str),
    ([f"{i:05d}" for i in range(60)], str),
    ([f"{i % 7 + 1}E{i}" for i in range(60)], str),
]


@pytest.mark.parametrize(("ids", "kind"), IDS, ids=["16", "19", "64 bits", "20", "zeros", "exponents"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_ids_keep_their_digits_and_are_keys(workspace: Workspace, ids: list[str], kind: type, ending: str) -> None:
    rows = [{"order_id": kind(i), "area": n / 7, "price": n * 3.5} for n, i in enumerate(ids)]
    if ending == "csv":
        take(workspace, "order_id,area,price\n" + "".join(f"{r['order_id']},{r['area']},{r['price']}\n" for r in rows))
    elif ending == "jsonl":
        take(workspace, "".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")
    else:
        path = Path(workspace.root).parent / "t.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        ingest_files(str(path), "t", workspace)
    assert column(workspace, "order_id") == [row["order_id"] for row in rows]
    contract = infer("t", target="price", workspace=workspace)
    assert contract.key == ("order_id",)
    assert "order_id" not in {name for f in contract.features for name in f.columns}
    clean("t", contract, workspace=workspace)
    assert sorted(column(workspace, "order_id", "t_kept")) == sorted(row["order_id"] for row in rows)
    read = reader(contract.column("order_id"))
    assert [served(read, order_id=row["order_id"]) for row in rows] == [row["order_id"] for row in rows]
    assert [read(json.dumps({"order_id": i}).encode()).rows[0].c0 for i in ids] == [kind(i) for i in ids]


def test_an_id_without_a_name_for_it_is_no_quantity(workspace: Workspace) -> None:
    rows = "".join(f"{9557580359308891 + 7 * i},{i / 3:.2f},{i}\n" for i in range(300))
    take(workspace, "acct,area,price\n" + rows)
    contract = infer("t", target="price", workspace=workspace)
    assert contract.key == ("acct",)
    take(workspace, "acct,area,price\n" + rows + rows.split("\n")[0].replace("0.00,0", "9.00,5") + "\n", append=False)
    contract = infer("t", target="price", workspace=workspace)
    assert contract.key == ("acct",)
    assert any("repeats in 1 of 301 rows" in str(note) and "9557580359308891" in str(note) for note in contract.notes)
    assert clean("t", contract, workspace=workspace).quarantined == 0


def test_exact_repeats_of_a_key_are_set_aside_and_told(workspace: Workspace) -> None:
    rows = [f"{i},{i * 7 % 50},{i / 7:.3f}" for i in range(1, 501)]
    take(workspace, "\n".join(["house_id,rooms,price", *rows, *rows[:4]]) + "\n")
    contract = infer("t", target="price", workspace=workspace)
    assert contract.key == ("house_id",)
    assert "house_id" not in {name for f in contract.features for name in f.columns}
    assert any("house_id repeats in 4 rows" in str(note) for note in contract.notes)
    assert clean("t", contract, workspace=workspace).quarantined == 4


def test_numbers_that_lose_digits_are_refused_for_ids() -> None:
    read = reader(Column("n", "int"))
    for number in (9007199254740993, -(2**63), 2**63 - 1, 7.0):
        assert served(read, n=number) == number
    for body in (b'{"n": 9223372036854775808}', b'{"n": 9007199254740994.0}', b'{"n": 1e300}', b'{"n": "1.5"}',
                 b'{"n": "9223372036854775808"}', b'{"n": "x"}', b'{"n": true}'):  # fmt: skip
        with pytest.raises(RequestError):
            read(body)
    with pytest.raises(RequestError):
        arrow.check_table(pa.table({"n": [9007199254740994.0]}), read)
    with pytest.raises(RequestError):
        arrow.check_table(pa.table({"n": pa.array([2**63], pa.uint64())}), read)


def test_codes_of_long_numbers_are_the_same_for_rows_and_columns() -> None:
    big = pa.chunked_array([[2**53 + 1, 2**53, 2**63 - 1, None]])
    words = vocabulary(big, 9)
    codes = category_codes(words, "int")
    assert [codes[v] for v in big.to_pylist()] == code_array(big, words).tolist()
    assert len(set(code_array(big, words))) == 4
    floats = pa.chunked_array([[1.0, 2.0, 1e15, None]])  # as a tool writes codes that have gaps
    words = vocabulary(floats, 9)
    codes = category_codes(words, "int")
    assert [codes[int(v)] if v else codes[v] for v in floats.to_pylist()] == code_array(floats, words).tolist()


# --- codes and quantities


def test_values_decide_what_is_a_code(workspace: Workspace) -> None:
    n = np.arange(4000)
    random = np.random.default_rng(0)
    table = {
        "garage_area": random.integers(0, 1400, 4000), "community_area": n % 77 + 1, "zone_id": n % 260,
        "rooms": n % 9, "customer_id": n // 2 * 31, "y": random.normal(size=4000),
    }  # fmt: skip
    Catalog(workspace).table("t").replace(pa.table(table))
    contract = infer("t", target="y", workspace=workspace)
    kinds = {f.column: f.kind for f in contract.features}
    assert kinds == {"garage_area": "numeric", "community_area": "category", "zone_id": "category", "rooms": "category"}
    for name in ("garage_area", "community_area", "customer_id"):
        assert any(name in str(note) for note in contract.notes), name


@pytest.mark.parametrize(("values", "task"), [(range(1, 6), "multiclass"), (range(13), "regression")])
def test_the_task_of_few_whole_numbers_is_told(workspace: Workspace, values: range, task: str) -> None:
    random = np.random.default_rng(0)
    Catalog(workspace).table("t").replace(
        pa.table({"x": random.normal(size=2000), "stars": random.choice(list(values), 2000)})
    )
    contract = infer("t", target="stars", workspace=workspace)
    assert contract.task == task
    assert any("'stars' has" in str(note) and "say task=" in str(note) for note in contract.notes)


# --- blanks


def test_blanks_around_text_are_no_part_of_it(workspace: Workspace) -> None:
    kinds = ["WD ", "New", " COD\t", "WD"]
    take(workspace, "kind,x,y\n" + "".join(f'"{k}",{i},{i * i}\n' for i, k in enumerate(kinds * 30)))
    Catalog(workspace).table("raw").replace(pa.table({"kind": kinds * 30, "x": range(120), "y": [1.0, 2.0] * 60}))
    contract = Contract(
        name="t", columns=(Column("kind", "text"), Column("x", "int"), Column("y", "float")), target="y",
        task="regression", features=(Category("kind"), Numeric("x")),
    )  # fmt: skip
    clean("raw", contract, workspace=workspace)
    assert set(column(workspace, "kind", "raw_kept")) == set(column(workspace, "kind")) == {"WD", "New", "COD"}
    read = reader(Column("kind", "text", nullable=False))
    assert [served(read, kind=k) for k in kinds] == ["WD", "New", "COD", "WD"]
    for strict in (True, False):  # whether training saw the rows cleaned or raw
        rows = pa.table({"kind": ["WD", "New"] if strict else ["WD ", "New"], "x": [1, 2], "y": [1.0, 2.0]})
        encoder = Encoder.fit(rows, contract)
        asked = pa.table({"kind": ["WD ", "WD", " WD", "New\t"], "x": [1] * 4, "y": [1.0] * 4})
        assert len(set(encoder.arrays(asked)["kind"][:3])) == 1
        codes = category_codes(encoder.inputs[0].vocabulary, "text")
        assert [codes[v] for v in asked["kind"].to_pylist()] == encoder.arrays(asked)["kind"].tolist()


# --- one reading, against Python's own

PICTURES = ("1.5", "1,234.5", "1.234,5", "1 234,5", "1,5", "$1,234.5", "1.5 %", "1.234,5 €", "1'234.5")
GROUPS = {"": "", ",": ",", ".": ".", " ": NBSP, "'": "'"}


def write(number: Decimal, picture: str) -> str:
    "A number as people write it who write so."
    from slml.tables.numbers import number_format

    style = number_format(picture)
    digits = f"{abs(number):,f}".replace(",", "\0").replace(".", style.decimal).replace("\0", GROUPS[style.thousands])
    return f"{'-' if number < 0 else ''}{style.prefix}{digits}{style.suffix}"


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.decimals(-(10**9), 10**9, places=2), min_size=1, max_size=8), st.sampled_from(PICTURES),
    st.lists(st.text("0123456789.,-+ $€%()eE'_" + NBSP + MINUS, max_size=8), max_size=8),
)  # fmt: skip
def test_a_value_and_a_column_are_read_alike(numbers: list[Decimal], picture: str, noise: list[str]) -> None:
    texts = [write(number, picture) for number in numbers]
    assert parse_numbers(pa.array(texts), "float", (picture,)).to_pylist() == [float(n) for n in numbers]
    for kind in ("int", "float"):
        for pictures in ((picture,), ()):
            expected = []
            for text in [*texts, *noise]:
                try:
                    expected.append(parse_number(text, kind, pictures))
                except ValueError:
                    expected.append(None)
            assert parse_numbers(pa.array([*texts, *noise]), kind, pictures).to_pylist() == expected


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("0123456789.,-+$()eE_", max_size=7), min_size=1, max_size=20),
    st.sampled_from([("int", ""), ("float", ""), ("int", "$1,234"), ("float", "1.234,5")]),
)
def test_a_query_reads_as_a_request_does(texts: list[str], type: tuple[str, str]) -> None:
    import ibis

    kind, picture = type
    table = ibis.memtable(pa.table({"n": range(len(texts)), "text": pa.array(texts)}))
    query = table.select("n", value=read_as(table.text, kind, picture)).order_by("n")
    came = ibis.duckdb.connect().to_pyarrow(query)["value"].to_pylist()
    for text, value in zip(texts, came, strict=True):
        try:
            expected = read_number(text, kind, (picture,) if picture else ())
        except ValueError:
            expected = None
        assert value == expected, text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=30))
def test_whole_numbers_are_exact_or_none(numbers: list[int]) -> None:
    expected = [n if -(2**63) <= n < 2**63 else None for n in numbers]
    assert parse_numbers(pa.array(map(str, numbers)), "int").to_pylist() == expected
    assert parse_numbers(pa.array([*map(str, numbers), "x"]), "int").to_pylist() == [*expected, None]


def test_no_word_for_a_missing_value_is_a_number() -> None:
    for word in NULL_WORDS:
        if word.strip("+-").lower() != "nan":
            with pytest.raises(ValueError, match=r".*"):
                parse_number(word, "float")
