"""A bundle answers as its model does, shows when it was touched, and is admitted only when it is good enough."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from slml.contract import Category, Column, Contract, Distance, Numeric, TimeParts
from slml.errors import RegistryError, TrainingError
from slml.features.encoder import Encoder
from slml.models.model import Model, build_model
from slml.registry.aliases import read_changes, read_state
from slml.registry.bundle import FILES, MANIFEST, Bundle, Lineage
from slml.registry.export import check_parity, export
from slml.registry.gate import AuditSummary
from slml.registry.tracking import open_tracking
from slml.registry.versions import (
    Version,
    _create_model,
    bundle_uri,
    clear_canary,
    list_versions,
    load_bundle,
    project_versions,
    promote_version,
    register,
    roll_back_champion,
    set_canary,
    set_shadow,
)
from slml.serving.check import over_http
from slml.workspace import Workspace

LINEAGE = Lineage(snapshots={"train": "trips@5132"}, runs={"train": "a41f"}, seed=0)
TYPES = {"start": "timestamp", "fleet": "text", "zone": "int", "people": "int", "paid": "text", "stars": "int"}
PLACES = ("lat", "lon", "to_lat", "to_lon")
BASELINES = {"constant": {"rmse": 3.0}}


def trips(rows: int = 2000) -> pa.Table:
    """Trips with holes in every column that a model reads, and a target for each task."""
    random = np.random.default_rng(0)

    def holes(values: np.ndarray) -> pa.Array:
        return pa.array(values, mask=random.random(rows) < 0.1)

    start = np.datetime64("2023-01-01", "us") + random.integers(0, 365 * 86_400, rows).astype("timedelta64[s]")
    places = {name: holes(random.normal(-77 if "lon" in name else 39, 0.03, rows)) for name in PLACES}
    return pa.table(
        {
            "start": holes(start),
            "fleet": holes(random.choice(["yellow", "blue", "add"], rows)),
            "zone": holes(random.integers(0, 60, rows)),
            "people": holes(random.integers(1, 6, rows)),
            "miles": holes(random.gamma(2, 2, rows)),
            **places,
            "fare": random.gamma(2, 5, rows),
            "paid": random.choice(["card", "cash"], rows),
            "stars": random.integers(1, 4, rows),
        }
    )


def contract_for(table: pa.Table, target: str, task: str) -> Contract:
    return Contract(
        name="trips",
        columns=[Column(name=name, type=TYPES.get(name, "float")) for name in table.column_names],
        target=target,
        task=task,
        features=[
            Numeric(column="miles"),
            Numeric(column="people"),
            TimeParts(column="start"),
            Category(column="fleet"),
            Category(column="zone", max_categories=40),
            Distance(**dict(zip(("latitude", "longitude", "to_latitude", "to_longitude"), PLACES, strict=True))),
        ],
    )


def shaken(contract: Contract, encoder: Encoder, table: pa.Table) -> Model:
    """A model with weights that matter: parity depends on the graph and not on what was learned."""
    model = build_model(contract, encoder, encoder(table), width=32, depth=2, bins=8, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return trips()


@pytest.fixture(scope="module")
def contract(table: pa.Table) -> Contract:
    return contract_for(table, "fare", "regression")


@pytest.fixture(scope="module")
def encoder(table: pa.Table, contract: Contract) -> Encoder:
    return Encoder.fit(table, contract)


@pytest.fixture(scope="module")
def model(table: pa.Table, contract: Contract, encoder: Encoder) -> Model:
    return shaken(contract, encoder, table)


@pytest.fixture(scope="module")
def bundle(table, contract, encoder, model, tmp_path_factory) -> Bundle:
    folder = str(tmp_path_factory.mktemp("registry") / "bundle")
    return export(model, encoder, contract, table, folder, lineage=LINEAGE, metrics={"test": {"rmse": 2.0}})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """One workspace for all, since MLflow's database takes a second; each test has a model of its own."""
    return Workspace(root=str(tmp_path_factory.mktemp("workspace")), project="test")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """The bundle once more, to do harm to."""
    return Path(shutil.copytree(bundle.uri, tmp_path / "copy"))


AUDIT = AuditSummary("trips@5132", rows_in=2100, kept=2000, quarantined=100)


def enter(bundle: Bundle, name: str, workspace: Workspace, metrics: dict[str, float], **more: object) -> Version:
    """Register a bundle that answers as it should and whose data was audited; `more` says otherwise."""
    usual = {"baselines": BASELINES, "audit": AUDIT, "served": Bundle.predict}
    return register(bundle, name, workspace, metrics=metrics, **{**usual, **more})


def another(bundle: Bundle, folder: Path, number: int) -> Bundle:
    """The same model with other metrics: another bundle."""
    from slml.registry.bundle import read_files, write_bundle

    return write_bundle(
        str(folder), {**read_files(bundle.uri), "metrics.json": json.dumps({"number": number}).encode()}
    )


# What a bundle holds


def test_the_headline_is_carried_in_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    """Written at export; a bundle of an older version, which has none, gets it from its task."""
    from slml.registry.bundle import read_files, write_bundle

    assert bundle.metrics["headline"] == bundle.headline == "rmse"
    old = write_bundle(str(tmp_path / "old"), {**read_files(bundle.uri), "metrics.json": b'{"test": {"rmse": 2.0}}'})
    assert old.headline == "rmse"
    named = write_bundle(str(tmp_path / "mae"), {**read_files(bundle.uri), "metrics.json": b'{"headline": "mae"}'})
    assert named.headline == "mae"


# What a bundle predicts


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_a_bundle_answers_as_its_model_for_any_number_of_rows(rows, bundle, model, encoder, table):
    assert check_parity(bundle, model, encoder, table[:rows]) <= 1e-5


def test_the_parity_sample_holds_odd_rows(bundle):
    rows = bundle.parity
    assert all(rows[name].null_count for name in rows.column_names[:-1])
    assert not set(rows["fleet"].to_pylist()) <= {"yellow", "blue", "add", None}
    assert bundle.check() <= 1e-5


def test_rows_may_come_from_pandas_without_the_target_and_in_any_order(bundle, table):
    frame = table.drop_columns(["fare"]).to_pandas()
    frame = frame[sorted(frame.columns)]
    assert np.array_equal(bundle.predict(frame), bundle.predict(table))
    with pytest.raises(TrainingError, match="miles"):
        bundle.predict(frame.drop(columns="miles"))


def test_a_service_needs_neither_torch_nor_mlflow(bundle):
    code = f"""
import sys
from slml.registry.bundle import Bundle
print(Bundle.load({bundle.uri!r}).check())
assert not {{"torch", "mlflow", "onnxscript"}} & set(sys.modules), "too much was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5


def test_importing_a_bundle_is_quick_for_a_service():
    code = "import sys; import slml.registry.bundle; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "pyarrow", "pydantic", "torch", "mlflow", "sklearn"} & set(loaded)


def test_real_trips_with_their_nulls_and_whether_they_were_tipped(shared_data, tmp_path):
    rows = pq.read_table(shared_data / "nyc_green" / "green_tripdata_2023-01.parquet")[-10_000:]
    rows = rows.append_column("tipped", pc.greater(rows["tip_amount"], 0))
    numbers, places = ("trip_distance", "passenger_count"), ("PULocationID", "DOLocationID")
    contract = Contract(
        name="green",
        columns=[
            *(Column(name=name, type="float") for name in numbers),
            *(Column(name=name, type="int") for name in places),
            Column(name="lpep_pickup_datetime", type="timestamp"),
            Column(name="tipped", type="bool"),
        ],
        target="tipped",
        task="binary",
        features=[
            *(Numeric(column=name) for name in numbers),
            *(Category(column=name) for name in places),
            TimeParts(column="lpep_pickup_datetime"),
        ],
    )
    encoder = Encoder.fit(rows, contract)
    model = shaken(contract, encoder, rows)
    bundle = export(model, encoder, contract, rows, str(tmp_path / "b"), lineage=LINEAGE, metrics={})
    predicted = bundle.predict(rows)
    assert rows["passenger_count"].null_count > 1000
    assert predicted.shape == (10_000, 2)
    assert np.allclose(predicted.sum(axis=1), 1, atol=1e-5)
    assert check_parity(bundle, model, encoder, rows) <= 1e-5


# What is stored


def test_a_bundle_is_nine_files_and_none_is_a_pickle(bundle):
    files = {path.name: path.read_bytes() for path in Path(bundle.uri).iterdir()}
    assert set(files) == {*FILES, MANIFEST}
    assert not any(data.startswith((b"\x80\x04", b"\x80\x05", b"PK")) for data in files.values())
    assert all(json.loads(data) for name, data in files.items() if name.endswith(".json"))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_touched_is_named(name, copy):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(RegistryError, match=f"{name} of the bundle .* was changed"):
        Bundle.load(str(copy))


def test_a_bundle_without_its_manifest_is_none_and_can_be_written_again(bundle, copy):
    (copy / MANIFEST).unlink()  # as after a kill: it is written last
    with pytest.raises(RegistryError, match="no whole bundle"):
        Bundle.load(str(copy))
    assert another(bundle, copy, 1).uri == str(copy)


def test_an_export_that_is_refused_leaves_nothing(table, contract, encoder, tmp_path):
    class Wrong(torch.nn.Module):
        def forward(self, inputs):
            hours = torch.div(inputs["start"], 3600, rounding_mode="floor")  # becomes 32-bit floats in ONNX
            return torch.remainder(hours, 24).float()

    with pytest.raises(RegistryError, match=r"differs from the trained one in \d+ of \d+ rows[\s\S]*'start'"):
        export(Wrong(), encoder, contract, table, str(tmp_path / "b"), lineage=LINEAGE, metrics={})
    assert not (tmp_path / "b").exists()


# Who is admitted


def test_the_first_serves_the_better_waits_and_the_worse_is_told_by_how_much(bundle, tmp_path, workspace):
    second, third = (another(bundle, tmp_path / str(n), n) for n in (2, 3))
    assert enter(bundle, "fares", workspace, {"rmse": 2.0}).aliases == ("champion",)
    assert enter(second, "fares", workspace, {"rmse": 1.5}).aliases == ("challenger",)
    with pytest.raises(RegistryError, match=r"20\.0% above that of the champion fares@1"):
        enter(third, "fares", workspace, {"rmse": 2.4})
    wide = enter(third, "fares", workspace, {"rmse": 2.4}, margin=0.25)
    assert (wide.number, wide.aliases) == (3, ("challenger",))
    assert bundle_uri("fares@champion", workspace) == bundle.uri


@pytest.fixture(scope="module")
def dearer(bundle: Bundle, table: pa.Table) -> pa.Table:
    """Test rows of a world in which every fare is 4 dollars above what the bundle says: its rmse there is 4."""
    fares = pa.array(bundle.predict(table).astype(float) + 4)
    return table.set_column(table.column_names.index("fare"), "fare", fares)


CHEAP = {"baselines": {"constant": {"rmse": 9.0}}}  # the constant is far off as well


def test_the_champion_is_measured_on_the_candidates_test_rows(bundle, tmp_path, workspace, dearer):
    enter(bundle, "dearer", workspace, {"rmse": 2.0})
    second, third = (another(bundle, tmp_path / str(n), n) for n in (2, 3))
    with pytest.raises(RegistryError, match=r"up to 2\.04: .* 2, measured on its own .*no test rows were given"):
        enter(second, "dearer", workspace, {"rmse": 2.4}, **CHEAP)
    better = enter(second, "dearer", workspace, {"rmse": 2.4}, test=dearer.to_batches, **CHEAP)
    assert better.aliases == ("challenger",)
    assert better.against == "dearer@1: rmse 4, measured on the same test rows of trips@5132"
    assert better.against in read_changes(workspace.root, workspace.project, "dearer")[-1].why
    with pytest.raises(
        RegistryError, match=r"10\.0% above .*dearer@1[\s\S]*champion's 4, .*the same [\s\S]*came: 4\.4,"
    ):
        enter(third, "dearer", workspace, {"rmse": 4.4}, test=dearer.to_batches, **CHEAP)


def test_an_easier_test_part_helps_nobody(bundle, tmp_path, workspace, dearer):
    enter(bundle, "easier", workspace, {"rmse": 5.0}, **CHEAP)
    with pytest.raises(RegistryError, match=r"12\.5% above"):
        enter(another(bundle, tmp_path / "2", 2), "easier", workspace, {"rmse": 4.5}, test=dearer.to_batches, **CHEAP)


def test_a_champion_that_changes_meanwhile_is_measured_again(bundle, tmp_path, workspace, dearer):
    second, third, fourth = (another(bundle, tmp_path / str(n), n) for n in (2, 3, 4))
    enter(bundle, "hasty", workspace, {"rmse": 2.0})
    enter(second, "hasty", workspace, {"rmse": 1.9})
    reads = []

    def rows() -> list[pa.RecordBatch]:
        reads.append(len(dearer))
        return dearer.to_batches()

    def slow(bundle: Bundle, rows: pa.Table) -> np.ndarray:  # a service, while somebody promotes another version
        promote_version("hasty@2", workspace)
        return bundle.predict(rows)

    asked = {"test": rows, **CHEAP}
    assert enter(third, "hasty", workspace, {"rmse": 3.9}, served=slow, **asked).against.startswith("hasty@2: rmse 4,")
    assert len(reads) == 2
    assert enter(fourth, "hasty", workspace, {"rmse": 3.9}, **asked).against.startswith("hasty@2: rmse 4,")
    assert len(reads) == 3  # nobody came between


def with_files(bundle: Bundle, folder: Path, **changes: bytes) -> Bundle:
    """The same model with some of its JSON files in other words."""
    from slml.registry.bundle import read_files, write_bundle

    return write_bundle(str(folder), {**read_files(bundle.uri), **{f"{n}.json": data for n, data in changes.items()}})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("column", "The table has no column 'miles'"),
        ("unit", "another unit of fare: cent, not USD"),
        ("seed", "The champion has another seed: 7, not 0"),
        ("gone", "There is no whole bundle at "),
    ],
)
def test_a_champion_of_another_contract_is_held_by_its_own_error(
    kind, said, bundle, contract, tmp_path, workspace, dearer
):
    def priced(unit: str) -> bytes:
        columns = tuple(c.model_copy(update={"unit": unit}) if c.name == "fare" else c for c in contract.columns)
        return contract.model_copy(update={"columns": columns}).to_json().encode()

    changes = {
        "unit": {"contract": priced("cent")},
        "seed": {"lineage": msgspec.json.encode(msgspec.structs.replace(LINEAGE, seed=7))},
    }
    old = with_files(bundle, tmp_path / "old", **{"metrics": b"{}", **changes.get(kind, {})})
    new, worse = (
        with_files(bundle, tmp_path / n, contract=priced("USD"), page=b'{"n": "%s"}' % n.encode()) for n in "ab"
    )
    enter(old, f"other_{kind}", workspace, {"rmse": 2.0})
    if kind == "gone":
        shutil.rmtree(old.uri)
    asked = {"test": (dearer.drop_columns("miles") if kind == "column" else dearer).to_batches, **CHEAP}
    with pytest.raises(
        RegistryError, match=rf"20\.0% above [\s\S]*own test rows of trips@5132, not on these \(.*{said}"
    ):
        enter(worse, f"other_{kind}", workspace, {"rmse": 2.4}, **asked)
    against = enter(new, f"other_{kind}", workspace, {"rmse": 2.01}, **asked).against
    assert re.fullmatch(rf"other_{kind}@1: rmse 2, measured on its own .*, not on these \(.*{said}.*\)", against)


def test_classes_are_compared_by_their_chances_and_other_classes_are_not(table, tmp_path, workspace):
    contract = contract_for(table, "stars", "multiclass")

    def made(rows: pa.Table, folder: str) -> Bundle:
        encoder = Encoder.fit(rows, contract)
        model = shaken(contract, encoder, rows)
        return export(model, encoder, contract, rows, str(tmp_path / folder), lineage=LINEAGE, metrics={})

    asked = {"baselines": {"constant": {"log_loss": 99.0}}, "test": table.to_batches}
    three = made(table, "three")
    enter(three, "stars", workspace, {"log_loss": 0.1}, **asked)
    chances = three.predict(table)[np.arange(len(table)), table["stars"].to_numpy() - 1]
    error = -np.log(chances).mean()
    again = enter(another(three, tmp_path / "again", 2), "stars", workspace, {"log_loss": error}, **asked)
    assert again.against.startswith(f"stars@1: log_loss {error:.4g}, measured on the same test rows")
    two = made(table.filter(pc.less(table["stars"], 3)), "two")
    with pytest.raises(RegistryError, match=r"not on these .*another list of classes: 1, 2, 3, not 1, 2"):
        enter(two, "stars", workspace, {"log_loss": error}, **asked)


def test_a_model_that_is_no_better_than_a_constant_is_refused(bundle, workspace):
    with pytest.raises(RegistryError, match=r"10\.0% above that of a constant"):
        enter(bundle, "constant", workspace, {"rmse": 3.3})
    assert list_versions("constant", workspace) == []


def test_a_bundle_of_unknown_origin_is_refused(bundle, tmp_path, workspace):
    from slml.registry.bundle import read_files, write_bundle

    nameless = msgspec.json.encode(Lineage(snapshots={"train": "trips"}, runs={}))
    lost = write_bundle(str(tmp_path / "b"), {**read_files(bundle.uri), "lineage.json": nameless})
    with pytest.raises(RegistryError, match="runs, seed, the id of the snapshot 'trips'"):
        enter(lost, "unknown", workspace, {"rmse": 2.0})


def test_a_promotion_can_be_taken_back(bundle, tmp_path, workspace):
    enter(bundle, "returned", workspace, {"rmse": 2.0})
    second = another(bundle, tmp_path / "2", 2)
    new = enter(second, "returned", workspace, {"rmse": 1.9}, promote=True)
    assert new.aliases == ("champion",)
    assert load_bundle("returned@champion", workspace).hash == second.hash
    promote_version("returned@1", workspace)
    assert load_bundle("returned@champion", workspace).hash == bundle.hash


def test_torch_onnx_runtime_and_the_service_have_to_agree(bundle, workspace):
    assert enter(bundle, "agreed", workspace, {"rmse": 2.0}, served=over_http).number == 1

    def later(bundle: Bundle, rows: pa.Table) -> np.ndarray:  # a service that reads times in another zone
        start = pc.add(rows["start"], pa.scalar(3600, pa.duration("s")))
        return bundle.predict(rows.set_column(rows.column_names.index("start"), "start", start))

    with pytest.raises(RegistryError, match=r"served model differs from the trained one in \d+ of \d+ rows[\s\S]*off"):
        enter(bundle, "later", workspace, {"rmse": 2.0}, served=later)
    with pytest.raises(RegistryError, match=r"answered 0 of \d+ rows"):
        enter(bundle, "later", workspace, {"rmse": 2.0}, served=lambda b, rows: np.full(len(rows), np.nan))
    assert list_versions("later", workspace) == []


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (AuditSummary("trips@5132", 2100, 2000, 90), r"\+10 of 2,100 rows are unaccounted for"),
        (AuditSummary("trips@5132", 100, 0, 100), "no row was kept"),
        (
            AuditSummary("trips@5132", 2100, 2000, 100, {"fare: between": 7}),
            "7 of 2,000 kept rows break 'fare: between'",
        ),
        (AuditSummary("trips@1", 2100, 2000, 100), "learned from trips@5132, not from trips@1"),
    ],
)
def test_data_that_has_not_passed_its_audit_is_refused(audit, said, bundle, workspace):
    with pytest.raises(RegistryError, match=said):
        enter(bundle, "unaudited", workspace, {"rmse": 2.0}, audit=audit)


def test_further_baselines_may_be_asked_for(bundle, workspace):
    both = {**BASELINES, "linear": {"rmse": 1.9}}
    with pytest.raises(RegistryError, match=r"5\.3% above that of a linear"):
        enter(bundle, "linear", workspace, {"rmse": 2.0}, baselines=both, beats=("constant", "linear"))


# What is recorded and can be taken back


@pytest.fixture
def three(bundle: Bundle, tmp_path: Path, workspace: Workspace, request: pytest.FixtureRequest) -> str:
    """A model whose three versions were champion one after the other."""
    name = request.node.name.removeprefix("test_")[:40]
    for number in (1, 2, 3):
        enter(another(bundle, tmp_path / str(number), number), name, workspace, {"rmse": 2.0}, promote=True)
    return name


def champion(name: str, workspace: Workspace) -> tuple[int, int]:
    """The champion, as a service and as MLflow see it."""
    state = read_state(workspace.root, workspace.project, name)
    model = open_tracking(workspace).get_registered_model(f"{workspace.project}.{name}")
    return state.aliases["champion"].version, int(model.aliases["champion"])


def test_a_rollback_goes_back_step_by_step_and_ends(three, workspace):
    assert [roll_back_champion(three, workspace, why="wrong").number for _ in range(2)] == [2, 1]
    with pytest.raises(RegistryError, match=r"no champion .* to go back to"):
        roll_back_champion(three, workspace)
    assert promote_version(f"{three}@3", workspace).number == 3
    assert roll_back_champion(three, workspace).number == 1
    assert champion(three, workspace) == (1, 1)


def test_a_champion_that_cannot_be_loaded_is_none(three, workspace, tmp_path):
    (tmp_path / "2" / "model.onnx").write_bytes(b"something else")
    for change in (lambda: roll_back_champion(three, workspace), lambda: promote_version(f"{three}@2", workspace)):
        with pytest.raises(RegistryError, match="was changed after"):
            change()
    assert champion(three, workspace) == (3, 3)


def test_each_change_says_who_and_why_in_both_books(three, workspace):
    ann = workspace.model_copy(update={"user": "ann"})
    roll_back_champion(three, ann, why="fares at the airport")
    set_canary(f"{three}@3", 10, ann, why="with care")
    set_shadow(f"{three}@1", ann)
    clear_canary(three, ann)
    assert promote_version(f"{three}@3", ann, why="it was the meter").state == "serves"
    told = [(s.who, s.action, s.why) for s in read_changes(workspace.root, workspace.project, three, after=3)]
    assert told == [
        ("ann", "rollback", "fares at the airport"),
        ("ann", "canary", "with care"),
        ("ann", "shadow", ""),
        ("ann", "clear canary", ""),
        ("ann", "promote", "it was the meter"),
    ]
    tags = open_tracking(workspace).get_registered_model(f"{workspace.project}.{three}").tags
    assert "ann rollback: champion 2. fares at the airport" in tags["slml.change.00000004"]
    assert tags["slml.change"] == "8"
    assert [v.state for v in project_versions(workspace) if v.name == three] == ["shadow", "", "serves"]


def test_a_crash_between_the_two_books_is_made_good_by_the_next_change(three, workspace, monkeypatch):
    from slml.registry import versions as module

    with monkeypatch.context() as patch:
        patch.setattr(
            module, "_update_mlflow", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )  # killed right there
        with pytest.raises(KeyboardInterrupt):
            roll_back_champion(three, workspace, why="killed")
    assert champion(three, workspace) == (2, 3)
    assert bundle_uri(f"{three}@champion", workspace).endswith("/2")  # what services follow is what holds
    set_shadow(f"{three}@1", workspace)
    assert champion(three, workspace) == (2, 2)
    tags = open_tracking(workspace).get_registered_model(f"{workspace.project}.{three}").tags
    assert "rollback: champion 2. killed" in tags["slml.change.00000004"]


def test_mlflows_own_tools_load_the_champion(three, workspace, table, bundle, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.tracking_uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{workspace.project}.{three}@champion")
    assert np.array_equal(loaded.predict(table.to_pandas()), bundle.predict(table))


def test_the_command_line_says_who_serves_and_changes_it(three, workspace, monkeypatch, capsys):
    from slml.cli.app import main

    monkeypatch.setenv("SLML_ROOT", workspace.root)
    monkeypatch.setenv("SLML_PROJECT", workspace.project)

    def said(*words: str) -> object:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert [v["state"] for v in said("models", three)] == ["", "", "serves"]
    assert said("rollback", three, "--why", "wrong")["number"] == 2
    assert said("promote", f"{three}@1", "--why", "older still")["number"] == 1
    assert {"serves"} == {v["state"] for v in said("models") if v["name"] == three and v["aliases"]}
    assert [s.why for s in read_changes(workspace.root, workspace.project, three, after=3)] == ["wrong", "older still"]
    assert main(["promote", f"{three}@9"]) == 1


def test_a_canary_has_a_share_and_is_not_the_champion(three, workspace):
    with pytest.raises(RegistryError, match="above 0"):
        set_canary(f"{three}@1", 0, workspace)
    with pytest.raises(RegistryError, match="is the champion"):
        set_canary(f"{three}@3", 10, workspace)


def test_two_registrations_at_once_leave_one_champion(bundle, tmp_path, workspace):
    def race(candidate: Bundle) -> None:
        enter(candidate, "raced", workspace, {"rmse": 2.0})

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(race, [another(bundle, tmp_path / str(n), n) for n in (1, 2)]))
    found = list_versions("raced", workspace)
    assert [(v.number, v.aliases) for v in found] == [(1, ("champion",)), (2, ("challenger",))]


def test_a_model_that_another_process_has_just_created_is_no_error(workspace: Workspace, tracking_uri: str) -> None:
    workspace = workspace.model_copy(update={"tracking_uri": tracking_uri})
    client = open_tracking(workspace)
    for _ in range(2):
        _create_model(client, "test.made_twice", workspace)
    assert len(client.search_registered_models("name = 'test.made_twice'")) == 1
