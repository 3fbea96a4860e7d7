"""The handed files of rare classes, infinities and leaks: read right, or told before anything is trained."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from slml.contract import Between, Contract
from slml.errors import ContractError, SamplingError
from slml.explore.tables import ingest
from slml.quality.clean import Ledger, clean
from slml.quality.infer import infer
from slml.sampling.split import split
from slml.tables.catalog import Catalog
from slml.tables.engine import Engine, open_engine
from slml.workspace import Workspace

CASES = Path(__file__).parents[3] / "shared" / "cases" / "values"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="../shared/cases/values is not here")
Propose = Callable[[str, str], tuple[Contract, Ledger]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(root=str(tmp_path_factory.mktemp("cases")), project="test", cores=2)


@pytest.fixture(scope="module")
def engine(workspace: Workspace) -> Iterator[Engine]:
    with open_engine(workspace) as opened:
        yield opened


@pytest.fixture(scope="module")
def propose(workspace: Workspace, engine: Engine) -> Propose:
    """The contract that is proposed for a file, and the ledger of cleaning it."""

    def steps(file: str, target: str) -> tuple[Contract, Ledger]:
        snapshot = ingest(CASES / file, file.partition(".")[0], workspace=workspace)
        contract = infer(snapshot, engine, target=target)
        return contract, clean(snapshot, contract, Catalog(workspace), engine)

    return steps


def features(contract: Contract) -> set[str]:
    return {column for feature in contract.features for column in feature.columns}


def said(contract: Contract, *words: str) -> bool:
    return any(all(word in note for word in words) for note in contract.notes)


@pytest.mark.parametrize(
    ("file", "target", "left", "words"),
    [
        ("t_log_leak.csv", "price", {"a", "b"}, ("'log_price' alone gives 'price' away", "its logarithm")),
        ("leak_few_surcharges.csv", "fare", {"miles"}, ("tip + tolls + total together give 'fare' away", "0.3")),
        ("linear_make_regression.csv", "y", {"x1", "x2", "x3"}, ("kept as features",)),
    ],
)
def test_leaks(propose: Propose, file: str, target: str, left: set[str], words: tuple[str, ...]) -> None:
    contract, _ = propose(file, target)
    assert features(contract) == left
    assert said(contract, *words)


@pytest.mark.parametrize(
    ("file", "target", "column", "infinite"),
    [
        ("num_inf.csv", "price", "ratio", 17),
        ("num_inf_target.csv", "price", "price", 3),
        ("inf_only_pos.csv", "y", "a", 20),
    ],
)
def test_infinities(
    propose: Propose, engine: Engine, workspace: Workspace, file: str, target: str, column: str, infinite: int
) -> None:
    contract, ledger = propose(file, target)
    assert said(contract, f"'{column}' is infinite", f"in {infinite} of")
    assert ledger.quarantined == infinite
    assert any(rule.low == 0 for rule in contract.rules if isinstance(rule, Between) and rule.column == column)
    kept = engine.read(engine.table(Catalog(workspace).snapshot(ledger.kept_snapshot)))
    assert np.isfinite(kept[column].to_numpy()).all()


def test_infinities_in_parquet(workspace: Workspace, engine: Engine) -> None:
    snapshot = ingest(CASES / "pq_inf_nan.parquet", "pq_inf_nan", workspace=workspace)
    contract = infer(snapshot, engine)
    assert said(contract, "is infinite")
    ledger = clean(snapshot, contract, Catalog(workspace), engine)
    assert ledger.quarantined > 0


@pytest.mark.parametrize(
    ("file", "target", "rare", "least"), [("t_rare_class_1", "kind", "ZZ", 0), ("t_imbalanced_1000", "fraud", "1", 1)]
)
def test_rare_classes(
    propose: Propose, engine: Engine, workspace: Workspace, file: str, target: str, rare: str, least: int
) -> None:
    contract, ledger = propose(f"{file}.csv", target)
    assert said(contract, f"'{target}' have fewer than 10 of 3,000 rows", f"'{rare}'")
    kept = Catalog(workspace).snapshot(ledger.kept_snapshot)
    for seed in range(4):
        parts = split(kept, engine, seed=seed)
        assert parts.classes[rare]["train"] >= 1
        assert min(parts.classes[rare].values()) == least
        assert f"'{rare}'" in parts.notes[0]


def test_spellings_of_one_class_are_told_and_not_merged(propose: Propose) -> None:
    contract, ledger = propose("t_yes_no_mixed_case.csv", "churn")
    assert said(contract, "Classes of 'churn' differ only in case or blanks", "'No'", "'YES'")
    assert ledger.quarantined == 0


def test_truth_values_are_classes(propose: Propose, engine: Engine, workspace: Workspace) -> None:
    contract, ledger = propose("t_bool_target.csv", "churn")
    assert contract.task == "binary"
    parts = split(Catalog(workspace).snapshot(ledger.kept_snapshot), engine)
    assert sorted(parts.classes) == ["false", "true"]


def test_too_few_rows_are_told_before_training(propose: Propose, engine: Engine, workspace: Workspace) -> None:
    _, ledger = propose("t_30rows.csv", "y")
    with pytest.raises(SamplingError, match="too few rows"):
        split(Catalog(workspace).snapshot(ledger.kept_snapshot), engine)


def test_constants(propose: Propose) -> None:
    with pytest.raises(ContractError, match="one value in all of its 300 rows"):
        propose("t_const_target.csv", "y")
    contract, _ = propose("t_const_features.csv", "y")
    assert said(contract, "'a' has one value")
    assert said(contract, "'b' has one value")
