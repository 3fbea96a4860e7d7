"""Expressions of a contract: what is taken means what it means in DuckDB, and the rest is refused."""

import math
import os
import re
from datetime import date, datetime
from decimal import Decimal
from random import Random

import duckdb
import ibis
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slml.contract.rules import Expression
from slml.errors import ContractError
from slml.quality.expressions import from_sql
from slml.quality.rules import violates

NAN, INF = float("nan"), float("inf")
DATA = pa.table(
    {
        "a": pa.array([1.5, None, NAN, -0.0, 0.0, -3.25, 1e300, INF, 0.1, 2.5], pa.float64()),
        "b": pa.array([2.0, 1.0, NAN, 0.0, None, -0.5, 7.0, -INF, 0.3, -2.5], pa.float64()),
        "n": pa.array([3, 0, None, -7, 1, 2, 2**53 + 1, -1, 10, 5], pa.int64()),
        "m": pa.array([1, 2, 3, None, 0, -4, 12, 100, -10, 2], pa.int64()),
        "s": pa.array(["a@b.org", " x ", "", None, "test@x", "é%", "12", "A_b", "\tq", "2019-01-31"]),
        "r": pa.array(["x", " x ", "\n", "a", None, "É%", "1.5", "a_b", "it's", "b\\n"]),
        "f": pa.array([True, False, None, True, False, None, True, False, True, False]),
        "g": pa.array([True, True, None, None, False, False, True, False, None, True]),
        "t": pa.array(
            [
                datetime(2019, 1, 31, 8, 30), None, datetime(1969, 12, 31, 23, 59, 59, 500000), datetime(2024, 2, 29),
                datetime(2019, 1, 31, 8, 30, 0, 1), datetime(2100, 1, 1), datetime(1900, 3, 1, 5),
                datetime(2019, 1, 31), datetime(2019, 6, 1, 12), datetime(2020, 12, 31, 23, 59, 59, 999999),
            ], pa.timestamp("us"),
        ),
        "u": pa.array([None, *[datetime(2019, 1, 31, h) for h in range(9)]], pa.timestamp("us")),
        "d": pa.array([date(2019, 1, 31), None, date(1969, 12, 31), *[date(2020, 2, k + 1) for k in range(7)]]),
    }
)  # fmt: skip
COLUMNS = {"number": "abnm", "text": "sr", "truth": "fg", "time": "tu", "date": "d"}
CONSTANTS = {
    "number": [
        "0",
        "1",
        "2",
        "3",
        "7",
        "100",
        "0.1",
        "0.3",
        "2.5",
        "1e0",
        "1e5",
        "5.",
        "1_000",
        "1e-1",
        "-1",
        "-0.0",
    ],
    "text": ["'x'", "''", "'it''s'", "' x '", "'12'", "'É'"],
    "truth": ["true", "false"],
    "time": ["TIMESTAMP '2019-01-31 08:30:00'"],
    "date": ["DATE '2019-01-31'"],
}
PATTERNS = ["'%@%'", "'a_b'", "'%'", "'x'", "'é%'", "'%\\n'", "''", "'%''%'"]
Pair = tuple[str, str]  # what slml reads, and what DuckDB computes
# forms of each kind: {n} takes a number with or without brackets, {N} an atom or one in brackets; the oracle's form
# stands after the bar, where slml gives null in place of an error or an infinity
FORMS = {
    "number": """{n} + {n};{n} - {n};{n} * {n};{N} % {N} | {N} % nullif({N}, 0);{N} / {N} | {N} / nullif({N}, 0)
        {N} ^ {N};power({n}, {n});-{n};- {n}
        +{n};abs({n});@{N};round({N}::DOUBLE);floor({N}::DOUBLE);ceil({N}::DOUBLE);ceiling({N}::DOUBLE)
        floor({n});round({n})
        round({N}::DOUBLE, 1);round({N}::DOUBLE, -1);exp({n});sqrt({N}) | sqrt(if({N} >= 0, {N}, null))
        ln({N}) | ln(if({N} > 0, {N}, null));length({s});epoch({T});epoch({D});year({T});month({D});day({T})
        hour({T});hour({D})
        minute({T});second({T});CAST({n} AS INT) | TRY_CAST({n} AS INT);CAST({n} AS BIGINT) | TRY_CAST({n} AS BIGINT)
        CAST({n} AS DOUBLE) | TRY_CAST({n} AS DOUBLE);TRY_CAST({s} AS BIGINT);TRY_CAST({s} AS DOUBLE)
        CAST({f} AS INTEGER)""",
    "text": """{s} || {s};lower({s});upper({s});trim({s});ltrim({s});rtrim({s});{N}::VARCHAR;{F}::VARCHAR;{T}::VARCHAR
        {D}::VARCHAR;trim(BOTH FROM {s});{s} || {n};trim({s}, 'x');CAST({N} AS TEXT)""",
    "truth": """{f} AND {f};{f} OR {f};NOT {f};NOT {f};{n} IS NULL;{s} IS NOT NULL;{f} IS TRUE;{f} IS NOT FALSE
        {f} ISNULL
        {s} LIKE {p};{s} NOT LIKE {p};{s} ILIKE {p};{s} NOT ILIKE {p};{s} !~~ {p};{n} < {n};{n} >= {n};{n} = {n}
        {n} <> {n}
        {n} == {n};{s} < {s};{s} >= {s};{s} = {s};{s} <> {s};{f} < {f};{f} = {f};{f} <> {f};{t} < {t};{t} = {t}
        {d} >= {d}
        {d} = {d};{d} < '2019-01-31';'2019-01-31' >= {t};{t} < {d};{n} BETWEEN {n} AND {n}
        {t} NOT BETWEEN '2019-01-31' AND {t}
        {n} IN ({n}, {n});{s} NOT IN ({s}, NULL);{d} IN ('2019-01-31', {d});{n} IN (SELECT 1);{f} AND {n}
        {n} = {s};{s} LIKE {s}
        CAST({n} AS BOOLEAN) | TRY_CAST({n} AS BOOLEAN);TRY_CAST({s} AS BOOLEAN);{s} IN ({p}, {p})
        {n} BETWEEN SYMMETRIC {n} AND {n}
        {f} = NULL;{n} IN (1, NULL);{n} > '3'""",
    "time": "CAST({d} AS TIMESTAMP);TRY_CAST({s} AS TIMESTAMP);{T}::TIMESTAMP;{t}",
    "date": "{T}::DATE;CAST({s} AS DATE) | TRY_CAST({s} AS DATE);{d}",
}
CHOICES = """CASE WHEN {f} THEN {k} WHEN {f} THEN {k} ELSE {k} END;CASE {n} WHEN {n} THEN {k} END
        CASE {s} WHEN {s} THEN NULL ELSE {k} END
    coalesce({k}, {k});ifnull({k}, {k});least({k}, {k}, {k});greatest({k}, {k})
        CASE {n} WHEN {n} THEN {n} ELSE {k} END"""
LETTERS = {"n": "number", "s": "text", "f": "truth", "t": "time", "d": "date"}


def forms(text: str) -> list[str]:
    return [form.strip() for line in text.splitlines() for form in line.split(";")]


def draw(random: Random, kind: str, depth: int) -> Pair:
    "An expression of a kind, some with brackets around their parts and some without, so that precedence counts."
    if not depth or random.random() < 0.2:
        return (random.choice([*COLUMNS[kind], *COLUMNS[kind], *CONSTANTS[kind]]),) * 2
    form = random.choice(forms(FORMS[kind]) if random.random() < 0.85 else forms(CHOICES))
    form, _, other = form.partition(" | ")
    parts: list[Pair] = []

    def part(match: re.Match[str]) -> str:
        letter = match[1]
        if letter == "p":
            parts.append((random.choice(PATTERNS),) * 2)
        else:
            drawn = draw(random, kind if letter == "k" else LETTERS[letter.lower()], depth - 1)
            if (letter.isupper() or random.random() < 0.4) and not re.fullmatch(r"\w+", drawn[0]):
                drawn = (f"({drawn[0]})", f"({drawn[1]})")
            parts.append(drawn)
        return parts[-1][0]

    ours = re.sub(r"\{(\w)\}", part, form)
    twice = len(re.findall(r"\{", other)) > len(parts)  # if({N} > 0, {N}, null)
    oracles = iter([p[1] for p in parts] * (2 if twice else 1))
    return ours, re.sub(r"\{\w\}", lambda _: next(oracles), other or form)


def same(ours: object, theirs: object) -> bool:
    if isinstance(theirs, Decimal):
        return isinstance(ours, float | int) and math.isclose(ours, float(theirs), rel_tol=4e-16)
    if isinstance(ours, float) and isinstance(theirs, float):
        return repr(ours) == repr(theirs)
    return ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)


CONNECTION = duckdb.connect()
CONNECTION.execute("CREATE TABLE examples AS SELECT * FROM DATA")
BACKEND = ibis.duckdb.from_connection(CONNECTION)
ROWS = BACKEND.table("examples")
OUTCOMES = {"equal": 0, "refused": 0, "DuckDB ends with an error": 0}


def compare(ours: str, oracle: str) -> None:
    "Fails where slml takes an expression and gives another value than DuckDB."
    try:
        theirs = [row[0] for row in CONNECTION.sql(f"SELECT {oracle} FROM examples").fetchall()]
    except (duckdb.Error, OverflowError):  # the second for dates that Python has not
        OUTCOMES["DuckDB ends with an error"] += 1
        return
    try:
        value = from_sql(ours, ROWS, "example")
    except ContractError:
        OUTCOMES["refused"] += 1
        return
    try:
        got = BACKEND.to_pyarrow(ROWS.select(x=value))["x"].to_pylist()
    except OverflowError:  # of to_pylist, for dates that Python has not, such as that of the text 'inf'
        return
    wrong = [(i, o, t) for i, (o, t) in enumerate(zip(got, theirs, strict=True)) if not same(o, t)]
    assert not wrong, f"{ours}\n  row, slml, DuckDB: {wrong[:3]}\n  {ibis.to_sql(ROWS.select(x=value), pretty=False)}"
    OUTCOMES["equal"] += 1


@settings(max_examples=int(os.environ.get("SLML_EXPRESSIONS", 100)), deadline=None, database=None)
@given(st.integers(0, 2**32))
def test_what_is_taken_means_what_it_means_in_duckdb(seed):
    random = Random(seed)
    for _ in range(10):
        compare(
            *draw(random, random.choice(["truth", "truth", "number", "text", "date", "time"]), random.randint(1, 3))
        )


@pytest.mark.parametrize(
    "sql",
    [
        "s IN (SELECT s FROM examples)", "n IN m", "n IN ()", "trim(s, 'x')", "trim(LEADING 'x' FROM s)",
        "s LIKE 'a!%' ESCAPE '!'",
        "s LIKE ANY ('x', 'y')", "s LIKE r", "n BETWEEN SYMMETRIC 3 AND 1", "examples.n > 1", "n > 1; DROP TABLE x",
        "floor(a, 1) > 0", "round(a, n) > 0", "f > 1", "n AND f", "NOT n", "-f", "s > 1", "n = '3'", "s || n = 'x'",
        "t > d",
        "t > '31.01.2019'", "d > '2019-01-31 08:00:00'", "t > '2019-01-31T08:00:00Z'", "n = NULL",
        "CASE n WHEN NULL THEN f END",
        "CASE WHEN n THEN f END", "CASE WHEN f THEN 1 ELSE 'x' END", "coalesce(n, s) = 'x'", "CAST(n AS DATE) = d",
        "CAST(t AS BIGINT) > 1", "CAST(a AS DECIMAL(10, 2)) > 1", "CAST(s AS JSON) IS NULL",
        "DATE '31.01.2019' = d", "hour(d) > 1",
        "year(s) > 2000", "length(n) > 1", "abs(s) > 1", "lower(n) = 'x'", "n > ALL (SELECT 1)", "EXISTS (SELECT 1)",
        "(SELECT true)", "count(*) > 1", "lower(s) OVER () = 'x'", "s COLLATE NOCASE = 'x'",
        "t AT TIME ZONE 'UTC' > t",
        "E'x' = s", "n IS DISTINCT FROM m", "n // m > 1", "log(n) > 1", "n & m > 1", "s ~ 'x'", "s SIMILAR TO 'x'",
        "f AS x",
        "f, g", "", "f -> g", "n[1] > 1", "? > 1", "now() > t", "current_date > d", "t + INTERVAL 1 DAY > t",
        "random() > 0.5",
        "12345678901234567890 > n", "0.1234567890123456789 > a", "1 < n < 3 = f", "n > 1 ORDER BY n",
        "abs(DISTINCT n) > 1",
        "(" * 3000 + "f" + ")" * 3000, "f" + " AND f" * 5000,
    ],
)  # fmt: skip
def test_what_is_not_taken_is_refused(sql):
    with pytest.raises(ContractError) as error:
        from_sql(sql, ROWS, "rule 'x'")
    assert error.value.came
    assert error.value.expected
    assert len(error.value.problem.splitlines()) == 1


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("mail NOT LIKE '%@test.org'", ["ann@shop.org", "Bob@TEST.org"]),
        ("mail NOT ILIKE '%@test.org'", ["ann@shop.org"]),
        ("ltrim(mail) = mail AND rtrim(mail) = mail", ["ann@shop.org", "Bob@TEST.org", "eve@test.org"]),
    ],
)
def test_a_rule_keeps_the_rows_that_it_names(sql, kept):
    table = ibis.memtable(pa.table({"mail": ["ann@shop.org", "Bob@TEST.org", "eve@test.org"]}))
    broken = violates(Expression(sql, name="mail"), table)
    assert table.filter(~broken).order_by("mail").to_pyarrow()["mail"].to_pylist() == sorted(kept)
