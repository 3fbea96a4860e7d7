"""Each part of a split gets its share of each class, without a row of a group on two sides, today and tomorrow."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slml.sampling.sample import prefix
from slml.sampling.split import SHARES, Part, Split, split
from slml.tables.catalog import Catalog, Snapshot
from slml.tables.engine import Engine, open_engine
from slml.tables.rowhash import ROW_HASH, row_hash
from slml.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(root=str(tmp_path_factory.mktemp("classes")), project="test")


@pytest.fixture(scope="module")
def engine(workspace: Workspace):
    with open_engine(workspace) as opened:
        yield opened


def store(workspace: Workspace, kinds: list, groups: list | None = None, pieces: int = 1) -> Snapshot:
    table = pa.table({"group": pa.array(groups or range(len(kinds))), "kind": kinds, "row": range(len(kinds))})
    table = table.append_column(ROW_HASH, row_hash([table["group"]])).sort_by(ROW_HASH)
    target = Catalog(workspace).table("rows")
    snapshot = target.replace(table.slice(0, -(-len(table) // pieces)))
    for piece in range(1, pieces):
        size = -(-len(table) // pieces)
        snapshot = target.append(table.slice(piece * size, size))
    return snapshot


def rows_of(parts: Split, snapshot: Snapshot, engine: Engine) -> dict[str, set[int]]:
    """The rows of each part, as the engine and as the loader find them: alike."""
    table = engine.table(snapshot)
    batch = engine.read(table).combine_chunks().to_batches()[0]
    found = {name: set(engine.read(part.filter(table))["row"].to_pylist()) for name, part in parts.parts.items()}
    assert found == {name: set(part.keep(batch)["row"].to_pylist()) for name, part in parts.parts.items()}
    return found


@pytest.mark.parametrize("seed", range(8))
def test_five_frauds_are_in_each_part(workspace: Workspace, engine: Engine, seed: int) -> None:
    snapshot = store(workspace, [int(i % 600 == 11) for i in range(3000)], pieces=3)
    parts = split(snapshot, engine, seed=seed, classes="kind")
    members = rows_of(parts, snapshot, engine)
    assert sum(map(len, members.values())) == 3000 == len(set.union(*members.values()))
    assert sorted(parts.classes) == ["0", "1"]
    assert min(parts.classes["1"].values()) >= 1
    assert parts.classes["1"]["train"] >= 2
    assert Split.from_json(parts.to_json()) == parts
    assert "few rows" in parts.notes[0]


def test_a_class_of_one_row_teaches_and_is_told(workspace: Workspace, engine: Engine) -> None:
    kinds = ["ABC"[i % 3] for i in range(2999)] + ["ZZ"]
    for seed in range(6):
        parts = split(store(workspace, kinds), engine, seed=seed, classes="kind")
        assert parts.classes["ZZ"] == {"train": 1, "valid": 0, "test": 0}
        assert "'ZZ'" in parts.notes[0]
        assert "valid and test" in parts.notes[0]


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    grouped=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_whatever_the_classes(
    workspace: Workspace, engine: Engine, counts: list[int], seed: int, grouped: bool
) -> None:
    kinds = ["common"] * 500 + [f"k{n}" for n, count in enumerate(counts) for _ in range(count)]
    groups = list(np.random.default_rng(seed).permutation(len(kinds)) // 4) if grouped else None
    snapshot = store(workspace, kinds, groups)
    parts = split(snapshot, engine, seed=seed, classes="kind")
    members = rows_of(parts, snapshot, engine)
    assert sum(map(len, members.values())) == len(kinds) == len(set.union(*members.values()))
    if groups:
        sides = [{groups[row] for row in rows} for rows in members.values()]
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]
        return
    for n, count in enumerate(counts):
        for name, share in SHARES.items():
            rows = parts.classes[f"k{n}"][name]
            assert rows >= 1 or count < 3
            assert math.floor(0.8 * share * count) <= rows <= max(math.ceil(1.25 * share * count), 1)


def test_rows_that_come_move_hardly_any(workspace: Workspace, engine: Engine) -> None:
    kinds = [("rare" if i % 60 == 7 else "common") for i in range(6000)]
    before, moved = None, []
    for size in (3000, 3300, 3630, 4000, 6000):
        snapshot = store(workspace, kinds[:size])
        members = rows_of(split(snapshot, engine, seed=3, classes="kind"), snapshot, engine)
        if before:
            moved.append(sum(len(before[name] - members[name]) for name in members))
            assert not {row for name in members for row in before[name] - members[name] if kinds[row] == "common"}
        before = members
    assert max(moved) <= 5


def test_a_class_of_many_rows_keeps_the_plain_ranges(workspace: Workspace, engine: Engine) -> None:
    snapshot = store(workspace, [i % 2 for i in range(20_000)])
    assert split(snapshot, engine, classes="kind").parts == split(snapshot, engine).parts


def test_by_time_the_classes_are_counted(workspace: Workspace, engine: Engine) -> None:
    import datetime as dt

    days = [dt.datetime(2024, 1, 1) + dt.timedelta(hours=i) for i in range(1000)]
    table = pa.table({"kind": ["new" if i > 900 else "old" for i in range(1000)], "at": days, ROW_HASH: range(1000)})
    parts = split(Catalog(workspace).table("times").replace(table), engine, time="at", classes="kind")
    assert parts.classes["new"]["train"] == 0
    assert "none of them in train" in parts.notes[0]


def test_a_whole_part_has_its_last_hash() -> None:
    part = Part(ranges=((0, 4826690275061584599), (8116743895660803634, 8116743895660803635)))
    assert prefix(part, 1.0, seed=0) == part
