"""Each kind of rule with values, nulls and edges, and the rows that break it: one table for all who check rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

import pyarrow as pa

from slml.contract import (
    Between,
    Column,
    Contract,
    Equals,
    Expression,
    InsideBox,
    Matches,
    NotNull,
    OneOf,
    Ordered,
    ParsesAs,
    Rule,
    SameFormat,
    SameUnit,
    Unique,
)
from slml.serving.arrow import TYPES

NAN, INF = math.nan, math.inf
ROW = "row"  # the column that numbers the rows of a case


@dataclass(frozen=True)
class RuleCase:
    """A rule, a small table, and which of its rows break the rule."""

    rule: Rule
    types: str  # of the columns, separated by blanks
    rows: Sequence[tuple]  # a value for each column of the rule, in its order
    broken: Sequence[int]  # numbers of rows
    why: str  # what the case shows
    stored: tuple[str, ...] = ()  # types as which the columns are stored, where those are others
    references: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Such as `between-float: both ends are included`."""
        return f"{self.rule.kind}-{self.types.replace(' ', '-')}: {self.why}"

    @property
    def contract(self) -> Contract:
        """The contract that holds the rule alone."""
        columns = [Column(name, kind) for name, kind in zip(self.rule.columns, self.types.split(), strict=True)]
        return Contract(name="cases", columns=(Column(ROW, "int"), *columns), rules=(self.rule,))

    def table(self) -> pa.Table:
        """The rows, numbered."""
        stored = self.stored or self.types.split()
        columns = zip(self.rule.columns, stored, zip(*self.rows, strict=True), strict=True)
        arrays = {name: pa.array(values, TYPES[kind], from_pandas=False) for name, kind, values in columns}
        return pa.table({ROW: range(len(self.rows)), **arrays})


def one(*values: object) -> list[tuple]:
    """Rows of one column."""
    return [(value,) for value in values]


def between(low: object = None, high: object = None) -> Between:
    return Between("x", low, high, reason="an edge")


def day(number: int, month: int = 1) -> date:
    return date(2023, month, number)


def at(number: int, hour: int = 0, microsecond: int = 0) -> datetime:
    return datetime(2023, 1, number, hour, 0, 0, microsecond)


BOX = InsideBox("lat", "lon", south=38.5, north=39.0, west=-77.5, east=-76.5)
UNIT = SameUnit("x", "y", low=0.5, high=4)
ORDERED = Ordered("x", "y")
BIG = 2**53
CASES = (
    # --- not_null
    RuleCase(NotNull("x"), "float", one(1.0, None, NAN, 0.0), [1, 2], "NaN is null, zero is not"),
    RuleCase(NotNull("x"), "int", one(1, None, 0), [1], "zero is a value"),
    RuleCase(NotNull("x"), "text", one("a", "", " \t", None, "NaN", "NULL"), [1, 2, 3], "blank text is null"),
    RuleCase(NotNull("x"), "bool", one(False, None), [1], "false is a value"),
    RuleCase(NotNull("x"), "timestamp", one(at(1), None), [1], "a time"),
    # --- between
    RuleCase(
        between(3.25, 100), "float", one(3.25, 3.24, None, NAN, 100.0, 100.01, INF, -INF), [1, 5, 6, 7],
        "both ends are included, a null breaks nothing",
    ),
    RuleCase(between(low=0), "float", one(-0.5, 0.0, -0.0, 1e300), [0], "no upper bound"),
    RuleCase(between(high=0), "float", one(-0.5, 0.0, 5e-324), [2], "no lower bound"),
    RuleCase(between(1, 5), "int", one(0, 1, 5, 6, None), [0, 3], "whole bounds"),
    RuleCase(between(0.5, 2.5), "int", one(0, 1, 2, 3, None), [0, 3], "bounds between whole numbers"),
    RuleCase(between(-BIG, BIG), "int", one(BIG, BIG + 1, -BIG - 1, None), [1, 2], "more digits than a float holds"),
    RuleCase(between(high=2**63 - 1), "int", one(2**63 - 1, -(2**63), None), [], "the end of 64 bits"),
    RuleCase(between("b", "y"), "text", one("a", "b", "m", "y", "z", "ya", "é", None, ""), [0, 4, 5, 6], "texts"),
    RuleCase(between("2023-01-02", "2023-01-30"), "date", one(day(1), day(2), day(30), day(31), None), [0, 3], "days"),
    RuleCase(
        between("2023-01-02", "2023-01-30"), "timestamp",
        one(at(1, 23), at(2), at(30), at(30, 0, 1), None), [0, 3], "a day is its first moment",
    ),
    RuleCase(
        between("2023-01-02T10:00:00+02:00"), "timestamp", one(at(2, 9), at(2, 10), None), [0],
        "an offset is left out: times are by the local clock",
    ),
    # --- one_of
    RuleCase(
        OneOf("x", ("a", "b")), "text", one("a", "b", "c", "A", "a ", None, "", "a\n"), [2, 3, 7],
        "blank is null, and blanks around a value are no part of it",
    ),
    RuleCase(OneOf("x", (1, 2)), "int", one(1, 2, 3, None), [2], "numbers"),
    RuleCase(OneOf("x", (1.0, 2.5)), "int", one(1, 2, 3, None), [1, 2], "numbers of which one is not whole"),
    RuleCase(OneOf("x", (1, 2.5)), "float", one(1.0, 2.5, 2.0, None, NAN), [2], "numbers of two kinds"),
    RuleCase(OneOf("x", (True,)), "bool", one(True, False, None), [1], "one of two"),
    RuleCase(OneOf("x", ("2023-01-02",)), "date", one(day(2), day(3), None), [1], "days"),
    RuleCase(OneOf("x", ("2023-01-02",)), "timestamp", one(at(2), at(2, 1), None), [1], "moments"),
    # --- matches and same_format
    *(
        case
        for kind in (Matches, SameFormat)
        for case in (
            RuleCase(
                kind("x", r"\d{5}"), "text", one("20001", "20001-5", None, "2000", " 20001", "20001\n", ""),
                [1, 3, 5], "the whole text without blanks around it, and no line end after it",
            ),
            RuleCase(kind("x", r"\d{5}"), "int", one(20001, 200011, -20001, None), [1, 2], "a number as it is written"),
            RuleCase(kind("x", r"\d+"), "text", one("12", "٣", "１２"), [1, 2], "digits are those of ASCII"),
            RuleCase(kind("x", r"\w+"), "text", one("abc_1", "äbc"), [1], "letters are those of ASCII"),
            RuleCase(kind("x", r"a\sb"), "text", one("a b", "a\u00a0b"), [1], "blanks are those of ASCII"),
            RuleCase(kind("x", "a|bc"), "text", one("a", "bc", "abc", "ac"), [2, 3], "alternatives"),
            RuleCase(kind("x", "a.b"), "text", one("axb", "a\nb", "aéb"), [1], "a point is no line end"),
            RuleCase(kind("x", "(?i)dc"), "text", one("DC", "dc", "d"), [2], "case left out"),
            RuleCase(kind("x", "(?i)é"), "text", one("É", "é", "e"), [2], "case left out, beyond ASCII"),
        )
    ),
    # --- inside_box
    RuleCase(
        BOX, "float float",
        [(38.5, -77.5), (39.0, -76.5), (38.4, -77.0), (-77.0, 38.9), (None, -77.0), (39.5, None), (NAN, 0.0)],
        [2, 3], "edges are inside, a null in one of two breaks nothing",
    ),
    RuleCase(BOX, "int int", [(39, -77), (38, -77), (None, -77)], [1], "whole degrees"),
    # --- ordered
    RuleCase(
        ORDERED, "timestamp timestamp", [(at(1), at(2)), (at(2), at(1)), (at(1), at(1)), (None, at(1)), (at(9), None)],
        [1], "equal is in order",
    ),
    RuleCase(ORDERED, "date timestamp", [(day(2), at(2)), (day(2), at(1, 23)), (day(2), None)], [1], "a day, a time"),
    RuleCase(ORDERED, "timestamp date", [(at(2), day(2)), (at(2, 1), day(2)), (None, day(2))], [1], "a time and a day"),
    RuleCase(ORDERED, "float float", [(1.0, 2.0), (2.0, 1.0), (NAN, 1.0), (1.0, NAN)], [1], "NaN is null"),
    RuleCase(ORDERED, "int float", [(1, 1.5), (2, 1.5), (None, 1.5)], [1], "numbers of two kinds"),
    RuleCase(ORDERED, "int int", [(BIG + 1, BIG), (BIG, BIG + 1), (None, 1)], [0], "more digits than a float holds"),
    RuleCase(ORDERED, "text text", [("a", "b"), ("b", "a"), ("b", ""), (None, "a")], [1], "texts, blank is null"),
    # --- same_unit
    RuleCase(
        UNIT, "float float",
        [(1.0, 2.0), (0.9, 2.0), (8.0, 2.0), (8.1, 2.0), (5.0, 0.0), (0.0, 0.0), (None, 2.0), (1.0, None), (NAN, 2.0)],
        [1, 3], "both factors are included, zero has no unit",
    ),
    RuleCase(UNIT, "float float", [(-1.0, 1.0), (-1.0, -1.0)], [0], "signs"),
    RuleCase(UNIT, "int int", [(1, 2), (1, 3), (None, 3), (1, 0)], [1], "whole numbers are divided as fractions"),
    # --- what looks beyond a row, or at how it is stored
    RuleCase(
        ParsesAs("x", "float"), "float", one("9.5", "NULL", "NaN", "", None, "1_000"), [1, 5], "text",
        stored=("text",),
    ),
    RuleCase(ParsesAs("x", "int"), "int", one(2.0, 2.5, None, NAN), [1], "a fraction is lost", stored=("float",)),
    RuleCase(Unique(("x",)), "int", one(1, 2, 2, None, None), [2], "a null is no key"),
    RuleCase(
        Equals("x", reference="tariffs", on="zone"), "float int",
        [(9.5, 1), (8.0, 1), (9.5, 9), (None, 1), (9.5, None)], [1, 2], "an unknown key breaks it",
        references={"tariffs": pa.table({"zone": [1], "x": [9.5]})},
    ),
    RuleCase(Expression("x > y", name="more"), "float float", [(2.0, 1.0), (1.0, 2.0), (None, 1.0)], [1], "null is no"),
)  # fmt: skip
