"""A contract is data: it comes back from JSON as it was, and says what is wrong with it when it is made."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from slml import contract as contract_package
from slml.contract import (
    LETTERS,
    Between,
    Category,
    Column,
    Contract,
    Distance,
    Equals,
    Expression,
    InsideBox,
    Matches,
    NotNull,
    Numeric,
    OneOf,
    Ordered,
    ParsesAs,
    SameFormat,
    SameUnit,
    TimeParts,
    Unique,
)
from slml.errors import ContractError

COLUMNS = (
    Column("id", "int"),
    Column("fare", "float", unit="USD", nullable=False),
    Column("pickup", "timestamp", format="%m/%d/%Y %H:%M"),
    Column("dropoff", "timestamp"),
    *(Column(name, "float") for name in ("lat", "lon", "to_lat", "to_lon", "miles", "straight")),
    Column("zip", "text", personal=True),
)
RULES = (
    NotNull("id"),
    Between("fare", 0.1 + 0.2, 1e22, reason="floats that JSON must not round"),
    OneOf("zip", ("20001", "20002")),
    Matches("zip", r"\d{5}"),
    ParsesAs("pickup", "timestamp", "%m/%d/%Y %H:%M"),
    Unique(("id", "pickup")),
    Equals("fare", reference="tariffs", on="id", reference_column="price"),
    InsideBox("lat", "lon", south=38.7, north=39.1, west=-77.3, east=-76.8),
    Ordered("pickup", "dropoff"),
    Expression("fare > miles", name="fare covers the distance"),
    SameFormat("zip", r"\d+"),
    SameUnit("miles", "straight", low=0.9, high=4.0),
)
FEATURES = (
    Numeric("miles"),
    Category("zip", max_categories=8),
    TimeParts("pickup"),
    Distance("lat", "lon", "to_lat", "to_lon"),
)


@pytest.fixture
def contract() -> Contract:
    return Contract(
        name="trips", columns=COLUMNS, key=("id",), time="pickup", target="fare", task="regression",
        rules=RULES, features=FEATURES, notes=("made up",),
    )  # fmt: skip


def test_json_brings_back_the_very_same(contract: Contract, tmp_path: Path) -> None:
    assert Contract.from_json(contract.to_json()) == contract
    contract.save(str(tmp_path / "contract.json"))
    loaded = Contract.load(str(tmp_path / "contract.json"))
    assert loaded == contract
    assert loaded.rules[1].low == 0.1 + 0.2
    assert [type(r) for r in loaded.rules] == [type(r) for r in RULES]
    assert loaded.to_json() == contract.to_json()


def test_every_rule_has_a_letter_a_name_and_columns(contract: Contract) -> None:
    for rule in contract.rules:
        assert rule.letter in LETTERS
        assert rule.name
        assert set(rule.columns) <= set(contract.names)
    assert len({r.name for r in contract.rules}) == len(RULES)


def test_it_cannot_be_changed(contract: Contract) -> None:
    with pytest.raises(ValidationError):
        contract.target = "miles"
    assert contract.replace(target="miles", features=()).target == "miles"
    assert contract.target == "fare"


def test_a_bound_without_a_reason_is_refused() -> None:
    """The book's bound came from a typing mistake, and nobody could see where it came from."""
    for reason in ("", "  "):
        with pytest.raises(ContractError, match="gives no reason"):
            Between("fare", 3.25, 20, reason=reason)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Column("fare", "flaot"), "did you mean 'float'"),
        (lambda: Column("fare", "float", format="%Y"), "a format only for a date"),
        (lambda: Between("fare", reason="x"), "no bound"),
        (lambda: Between("fare", 9, 3, reason="x"), "low is above high"),
        (lambda: Between("fare", "a", 3, reason="x"), "cannot be compared"),
        (lambda: NotNull(colum="fare"), "did you mean 'column'"),
        (lambda: Matches("zip", "(["), "not a regular expression"),
        (lambda: Matches("zip", r"(?!0)\d{5}"), "which engines cannot run"),
        (lambda: Matches("zip", r"\d{5}(?<!0)"), "which engines cannot run"),
        (lambda: SameFormat("zip", r"(\d)\1*"), "which engines cannot run"),
        (lambda: SameFormat("zip", r"(?P<d>\d)(?P=d)"), "which engines cannot run"),
        (lambda: Matches("zip", r"\d{,5}"), "read otherwise"),
        (lambda: Matches("zip", r"[[:digit:]]{5}"), "read otherwise"),
        (lambda: InsideBox("lat", "lon", south=39, north=38, west=-77, east=-76), "south < north"),
        (lambda: Contract.from_json("{"), "not JSON"),
        (lambda: Contract.from_json('{"name": "t", "columns": [], "kolumns": 1}'), "did you mean 'columns'"),
    ],
)
def test_mistakes_are_told_with_the_right_word(make, told: str) -> None:
    with pytest.raises(ContractError, match=told.replace("(", r"\(")):
        make()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"target": "far"}, "did you mean 'fare'"),
        ({"key": ("ids",)}, "did you mean 'id'"),
        ({"time": "miles"}, "is not a time"),
        ({"target": "zip", "task": "regression"}, "regression needs a number"),
        ({"target": "", "task": "binary"}, "no target"),
        ({"rules": (NotNull("fares"),)}, "did you mean 'fare'"),
        ({"rules": (NotNull("fare"), NotNull("fare"))}, "two rules"),
        ({"rules": (Expression("nothing > 1"),)}, "nothing"),
        ({"rules": (Matches("fare", "x"),)}, "cannot read 'fare'"),
        ({"rules": (InsideBox("zip", "lon", south=1, north=2, west=1, east=2),)}, "cannot read 'zip'"),
        ({"rules": (Ordered("pickup", "fare"),)}, "cannot be compared"),
        ({"features": (Numeric("fare"),)}, "reads the target"),
        ({"features": (Numeric("zip"),)}, "cannot read 'zip'"),
        ({"columns": (*COLUMNS, COLUMNS[0])}, "two columns"),
    ],
)
def test_parts_that_do_not_fit_are_refused(contract: Contract, change: dict, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        contract.replace(**change)


def test_columns_imply_rules(contract: Contract) -> None:
    stored = {c.name: "text" if c.name in ("fare", "pickup", "dropoff") else c.type for c in COLUMNS}
    implied = [r.name for r in contract.all_rules(stored) if r not in RULES]
    assert implied == ["fare: not null", "fare: parses as", "dropoff: parses as"]  # pickup's is written down
    with pytest.raises(ContractError, match="cannot be read as"):
        contract.all_rules({**stored, "fare": "date"})


def test_it_can_be_read(contract: Contract) -> None:
    assert "fare covers the distance" in str(contract)
    page = contract.replace(notes=("<b>bold</b>",))._repr_html_()
    assert "&lt;b&gt;bold" in page
    assert "V Valid" in page


def test_a_computed_column_says_how(contract: Contract) -> None:
    seconds = Column("seconds", "float", sql="epoch(dropoff) - epoch(pickup)")
    timed = contract.replace(columns=(*COLUMNS, seconds))
    for shown in (str(timed), timed._repr_html_()):
        assert "computed: epoch(dropoff) - epoch(pickup)" in shown
    assert "computed" not in str(contract)


def test_it_needs_nothing_heavy() -> None:
    code = "import sys, slml.contract.contract; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ibis", "numpy", "pandas", "pyarrow", "torch"} & set(loaded)


def test_the_package_loads_nothing_before_it_is_used() -> None:
    """The service reads stored contracts without pydantic."""
    code = "import sys, slml.contract; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pydantic" not in loaded


def test_every_name_of_the_package_is_there() -> None:
    assert all(getattr(contract_package, name) is not None for name in contract_package.NAMES)
    with pytest.raises(AttributeError, match="Betwen"):
        contract_package.Betwen  # noqa: B018
