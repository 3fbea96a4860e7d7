"""All who check rules agree on every kind: the engine, the service row by row, the service by columns."""

import json
import math
from collections.abc import Sequence
from datetime import date, datetime

import ibis
import ibis.expr.types as ir
import msgspec
import pyarrow as pa
import pytest
from jsonschema import Draft202012Validator

from slml.contract import FEATURE_KINDS, RULE_KINDS, Column, Contract, NotNull
from slml.features import encoder
from slml.features.features import fit_features
from slml.quality.rules import prepare, raw_name, stored_types, violates
from slml.serving import arrow, form, openapi, request
from slml.serving.request import Reader, RequestError, Terms

from support.rule_cases import CASES, ROW, RuleCase

SERVED = [case for case in CASES if case.rule.kind not in request.NOT_CHECKED]


def in_row_order(table: ir.Table, columns: Sequence[str]) -> ir.Table:
    """Stands in for an engine's row hash: the first row by number is the first by content."""
    return table.mutate(row_hash=ibis._[raw_name(ROW)])


def reader_of(case: RuleCase) -> Reader:
    """What a service makes of the case's contract, if its model reads all columns."""
    return Reader(msgspec.json.decode(case.contract.to_json(), type=Terms), case.rule.columns)


def as_json(value: object) -> object:
    """JSON has no NaN; what stands for it is a null."""
    if isinstance(value, date):
        return value.isoformat()
    return None if isinstance(value, float) and math.isnan(value) else value


def is_refused(reader: Reader, body: dict) -> bool:
    try:
        reader(json.dumps(body).encode())
    except RequestError as error:
        return error.status == 422
    return False


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_engine_finds_the_rows(case: RuleCase) -> None:
    table = ibis.memtable(case.table())
    rules = [r for r in case.contract.all_rules(stored_types(table.schema())) if r.kind == case.rule.kind]
    references = {name: ibis.memtable(rows) for name, rows in case.references.items()}
    seen = prepare(table, case.contract, rules, references, in_row_order)
    broken = seen.filter(violates(rules[0], seen)).order_by(ROW).to_pyarrow()[ROW].to_pylist()
    assert broken == list(case.broken)


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_a_request_of_one_row_is_refused_where_it_breaks_the_rule(case: RuleCase) -> None:
    reader = reader_of(case)
    rows = [dict(zip(case.rule.columns, map(as_json, row), strict=True)) for row in case.rows]
    sendable = [n for n, row in enumerate(rows) if not any(v in (math.inf, -math.inf) for v in row.values())]
    assert [n for n in sendable if is_refused(reader, rows[n])] == [n for n in case.broken if n in sendable]


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_a_request_of_many_rows_names_those_that_break_the_rule(case: RuleCase) -> None:
    try:
        arrow.check_table(case.table().drop_columns([ROW]), reader_of(case))
        rows = []
    except RequestError as error:
        rows = sorted({fault.row for fault in error.faults})
    assert rows == list(case.broken)


# --- every kind is known by name, wherever kinds are listed


def test_every_kind_of_rule_has_cases() -> None:
    assert {case.rule.kind for case in CASES} == set(RULE_KINDS)


def test_the_engine_checks_every_kind() -> None:
    assert set(violates.registry) >= set(RULE_KINDS.values())


def test_the_service_checks_every_kind_or_says_why_not() -> None:
    checked = {*request.CHECKS, *request.CHECKED_AS_NULLABILITY}
    assert checked | set(request.NOT_CHECKED) == set(RULE_KINDS)
    assert not checked & set(request.NOT_CHECKED)
    assert set(arrow.BROKEN_ROWS) == set(request.CHECKS)


def test_the_openapi_document_describes_every_kind_or_says_why_not() -> None:
    assert set(openapi.KEYWORDS) | set(openapi.WITHOUT_KEYWORDS) == set(request.CHECKS)
    assert not set(openapi.KEYWORDS) & set(openapi.WITHOUT_KEYWORDS)


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.id)
def test_the_openapi_document_forbids_no_row_that_the_service_takes(case: RuleCase) -> None:
    reader = reader_of(case)
    document = Draft202012Validator(openapi.row_schema(reader))
    for values in case.rows:
        row = dict(zip(case.rule.columns, map(as_json, values), strict=True))
        row = {name: value.strip(" \t") if isinstance(value, str) else value for name, value in row.items()}
        row = {name: None if request.is_blank(value) else value for name, value in row.items()}  # as the service reads
        if not any(v in (math.inf, -math.inf) for v in row.values()) and not is_refused(reader, row):
            assert document.is_valid(row), row


def test_a_rule_against_nulls_holds_for_columns_that_the_model_does_not_read() -> None:
    contract = Contract(name="t", columns=(Column("x", "float"), Column("note", "text")), rules=(NotNull("note"),))
    reader = Reader(msgspec.json.decode(contract.to_json(), type=Terms), ["x"])
    assert [is_refused(reader, {"x": 1.0, **more}) for more in ({}, {"note": "a"}, {"note": None}, {"note": ""})] == [
        False, False, True, True,
    ]  # fmt: skip
    with pytest.raises(RequestError):
        arrow.check_table(pa.table({"x": [1.0], "note": pa.array([None], pa.string())}), reader)


def test_every_kind_of_feature_has_inputs_of_the_encoder() -> None:
    assert set(encoder.KINDS) == set(FEATURE_KINDS)


@pytest.mark.parametrize("kind", FEATURE_KINDS)
def test_every_kind_of_feature_becomes_part_of_the_module_and_of_the_form(kind: str) -> None:
    """A kind that one of them leaves out would be an input that is not asked for, or not looked at."""
    feature = FEATURE_KINDS[kind]
    names = [name for name in feature.model_fields if name not in ("kind", "max_categories")]
    values = {"int": [1, 2], "float": [1.0, 2.0], "timestamp": [datetime(2023, 1, 1), datetime(2023, 1, 2)]}
    kind_of_column = next(t for t in ("timestamp", "float", "int") if t in feature.accepts)
    columns = (*(Column(name, kind_of_column) for name in names), Column("y", "float"))
    declared = feature(**{name: name for name in names})
    contract = Contract(name="t", columns=columns, target="y", task="regression", features=(declared,))
    table = pa.table({**dict.fromkeys(names, values[kind_of_column]), "y": [1.0, 2.0]})
    fitted = encoder.Encoder.fit(table, contract)
    assert fit_features(contract, fitted, fitted(table)).width > 0
    assert [c["name"] for c in form.input_columns(json.loads(contract.to_json()))] == list(declared.columns)
