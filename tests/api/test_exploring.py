"""The ten lines of the README: from a file to a registered model, with nothing to open and nothing to name."""

import json
from pathlib import Path

import msgspec
import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import slml
from slml.errors import (
    ContractError,
    IngestError,
    ParameterError,
    RegistryError,
    SamplingError,
    TableError,
    TrainingError,
    UsageError,
)
from slml.runs.run import list_runs
from slml.tables.catalog import Snapshot
from slml.workspace import Workspace


def make_houses(rows: int = 600) -> pd.DataFrame:
    """Houses whose price follows from size, city and the year of sale; a few have no price, one is absurd."""
    random = np.random.default_rng(0)
    city = random.choice(["Oslo", "Bern", "Rome"], rows)
    area = random.uniform(30, 200, rows).round(1)
    sold = pd.Timestamp("2020-01-01") + pd.to_timedelta(random.integers(0, 1_400, rows), unit="D")
    price = 4 * area + pd.Series(city).map({"Oslo": 300, "Bern": 200, "Rome": 0}) + random.normal(0, 10, rows)
    houses = pd.DataFrame({"city": city, "area": area, "sold": sold, "price": price.round(1)})
    houses.loc[:4, "price"] = None
    return houses


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> Path:
    """A project of one's own with a CSV file, as the current folder."""
    (tmp_path / "slml.toml").write_text("[default]\n")
    make_houses().to_csv(tmp_path / "houses.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLML_TRACKING_URI", tracking_uri)
    for name in ("SLML_ROOT", "SLML_PROJECT", "SLML_PROFILE", "SLML_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


SMALL = {"epochs": 25, "batch_rows": 32, "width": 32, "depth": 1, "progress": False}


def test_ten_lines(folder: Path) -> None:
    """The example of the README, and what each line gives."""
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    ledger = slml.clean(houses, contract)
    model = slml.train(ledger, contract, max_seconds=60, **SMALL)
    evaluation = model.evaluate()
    version = model.register("houses")
    frame = pd.read_csv("houses.csv").head(3)  # times are text here
    predicted = model.predict(frame)
    means = slml.sql("select city, avg(price) as price from houses group by 1")

    assert isinstance(houses, Snapshot)
    assert (houses.table, houses.rows) == ("houses", 600)
    assert (ledger.kept, ledger.quarantined) == (595, 5)
    assert evaluation.test["rmse"] < evaluation.baselines["constant"]["rmse"] / 2
    assert {"this model", "constant", "linear", "hist gradient boosting"} == set(evaluation.to_pandas().index)
    assert "<img " in evaluation._repr_html_()
    assert (version.ref, version.aliases) == ("houses@1", ("champion",))
    assert list(predicted.columns) == ["prediction"]
    assert np.isfinite(predicted["prediction"]).all()
    assert set(means["city"]) == {"Oslo", "Bern", "Rome"}
    for shown in ("price (regression)", "city, area, sold", ledger.kept_snapshot, model.run.id):
        assert shown in model._repr_html_()
        assert shown in str(model)
    assert (folder / ".slml").is_dir(), "the workspace of the current folder"


def test_the_same_calls_give_the_same(folder: Path) -> None:
    """A second call with the same file, contract and seed: the same snapshot, the same weights, another run."""
    houses = slml.ingest("houses.csv")
    assert slml.ingest("houses.csv") == houses
    contract = slml.infer(houses, target="price")
    first, second = (slml.train(slml.clean(houses, contract), contract, **SMALL) for _ in range(2))
    assert first.snapshot.ref == second.snapshot.ref, "a cleaning that has been done is not done again"
    changed = contract.replace(notes=("another contract",))
    assert slml.clean(houses, changed).kept_snapshot != first.snapshot.ref
    third = slml.train(first.snapshot, contract, **SMALL)
    weights = first.model.state_dict()
    for other in (second, third):
        assert all((other.model.state_dict()[name] == values).all() for name, values in weights.items())
    other = slml.train(first.snapshot, contract, **SMALL | {"seed": 1})
    assert any((other.model.state_dict()[name] != values).any() for name, values in weights.items())
    runs = [run for run in list_runs(Workspace()) if run.job == "train"]
    assert [run.status for run in runs] == ["done"] * 4
    assert len({run.id for run in runs}) == 4
    assert all(run.tracking for run in runs), "MLflow knows them as well"
    assert set(runs[0].outputs) == {"model", "encoder", "contract", "split"}
    assert all(Path(file).exists() for file in runs[0].outputs.values())


def test_rows_are_named_in_three_ways(folder: Path) -> None:
    """A snapshot, a ledger and the name of a table mean the same to each function that takes rows."""
    contract = slml.infer(slml.ingest("houses.csv"), target="price")
    ledger = slml.clean("houses", contract)
    kept = slml.Catalog().snapshot(ledger.kept_snapshot)
    assert slml.infer("houses", target="price") == contract
    for rows in (ledger, kept, kept.ref, kept.table):
        assert slml.split(rows).snapshot == kept.ref
        assert slml.audit(rows, contract).snapshot == kept.ref
        assert slml.infer(rows, target="price").name == kept.table
        drawn = slml.sample(rows, rows=20)
        assert isinstance(drawn, pd.DataFrame)
        assert len(drawn) == 20
    calls = (slml.infer, lambda rows: slml.clean(rows, contract), lambda rows: slml.audit(rows, contract))
    for call in (*calls, slml.split, lambda rows: slml.sample(rows, share=0.5), lambda r: slml.train(r, contract)):
        with pytest.raises(UsageError, match="or the name of a table"):
            call(pd.DataFrame())
        with pytest.raises(TableError, match="houses"):
            call("house")


def test_frames_of_pandas_and_arrow(folder: Path) -> None:
    """The rows of a frame become the same table as those of a file; the content names it where nobody does."""
    frame = pd.read_csv("houses.csv", parse_dates=["sold"])
    pandas, arrow = slml.ingest(frame), slml.ingest(pa.Table.from_pandas(frame))
    assert pandas.id == arrow.id
    assert pandas.table.startswith("frame_")
    named = slml.ingest(frame, "homes")
    assert named.schema.names == slml.ingest("houses.csv").schema.names
    contract = slml.infer(named, target="price")
    model = slml.train(slml.clean(named, contract), contract, **SMALL)
    asked = frame.drop(columns="price").head(4).set_index(pd.Index(list("abcd")))
    predicted = model.predict(asked)
    assert list(predicted.index) == list("abcd")
    from_arrow = model.predict(pa.Table.from_pandas(asked, preserve_index=False))
    assert (predicted["prediction"].to_numpy() == from_arrow["prediction"].to_numpy()).all()
    shuffled = model.predict(asked[["sold", "area", "city"]].astype({"sold": str}))
    assert (shuffled["prediction"] == predicted["prediction"]).all(), "order of columns and text times do not matter"
    assert len(model.predict(asked.head(0))) == 0


def test_classes_come_with_their_probabilities(folder: Path) -> None:
    houses = make_houses().dropna()
    houses["dear"] = np.where(houses.pop("price") > 500, "yes", "no")
    snapshot = slml.ingest(houses, "houses")
    contract = slml.infer(snapshot, target="dear")
    model = slml.train(slml.clean(snapshot, contract), contract, **SMALL)
    predicted = model.predict(houses)
    assert list(predicted.columns) == ["prediction", "probability_no", "probability_yes"]
    assert (predicted["prediction"] == houses["dear"]).mean() > 0.8
    assert np.allclose(predicted["probability_no"] + predicted["probability_yes"], 1, atol=1e-5)
    assert model.evaluate().metric == "log_loss"


def test_a_changed_file_is_a_new_version(folder: Path) -> None:
    """The table holds the file as it is now; the snapshot that was taken before stays as it was."""
    before = slml.ingest("houses.csv")
    make_houses().head(100).to_csv("houses.csv", index=False)
    after = slml.ingest("houses.csv")
    assert (before.rows, after.rows) == (600, 100)
    assert slml.sql("select count(*) as n from houses")["n"][0] == 100
    assert slml.sql(f'select count(*) as n from "{before.ref}"')["n"][0] == 600
    make_houses().tail(50).to_csv("more.csv", index=False)
    assert slml.ingest("more.csv", "houses", append=True).rows == 150
    typed = slml.ingest("houses.csv", types={"city": "text", "area": "text"})
    assert typed.schema.field("area").type == pa.string(), "other types are another version"


def test_a_workspace_and_an_engine_of_ones_own(folder: Path) -> None:
    workspace = Workspace(root=str(folder / "other"), project="other")
    houses = slml.ingest(Path("houses.csv"), workspace=workspace)
    with slml.open_engine(workspace) as engine:
        contract = slml.infer(houses, engine, target="price")
        ledger = slml.clean(houses, contract, workspace=workspace, engine=engine, kept="good", quarantine="bad")
        parts = slml.split(slml.Catalog(workspace).snapshot("good"), engine, time="sold")
        model = slml.train(ledger, contract, split=parts, workspace=workspace, engine=engine, **SMALL)
        assert slml.sql("select count(*) as n from bad", engine=engine, workspace=workspace)["n"][0] == 5
    assert model.split.part("test").time_column == "sold"
    assert slml.train("good", contract, split=parts, workspace=workspace, **SMALL).split == parts
    assert not (folder / ".slml").exists()


def test_errors_say_what_to_do(folder: Path) -> None:
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    ledger = slml.clean(houses, contract)
    with pytest.raises(UsageError, match=r"did you mean 'houses\.csv'"):
        slml.ingest("house.csv")
    with pytest.raises(UsageError, match="nothing that slml can read as a table"):
        slml.ingest({"area": [1, 2]})
    with pytest.raises(IngestError, match="no single type"):
        slml.ingest(pd.DataFrame({"area": [1, "two"]}))
    with pytest.raises(ContractError, match="did you mean 'price'"):
        slml.infer(houses, target="prise")
    with pytest.raises(SamplingError, match="clean the table first"):
        slml.train(houses, contract)
    with pytest.raises(TableError, match="did you mean 'houses_kept'"):
        slml.train("house_kept", contract)
    with pytest.raises(UsageError, match="no network"):
        slml.train(ledger, contract, network="mlpp")
    with pytest.raises(TrainingError, match="no target"):
        slml.train(ledger, slml.infer(houses))
    with pytest.raises(UsageError, match="not SQL"):
        slml.sql("selekt city from houses")
    with pytest.raises(TableError, match="did you mean 'houses'"):
        slml.sql("select city from house")
    model = slml.train(ledger, contract, **SMALL)
    with pytest.raises(ContractError, match="no column 'area'"):
        model.predict(pd.DataFrame({"city": ["Oslo"], "sold": ["2020-01-01"]}))
    with pytest.raises(ContractError, match="in the column 'sold'"):
        model.predict(pd.DataFrame({"city": ["Oslo"], "area": [50.0], "sold": ["yesterday"]}))
    with pytest.raises(RegistryError, match="cannot be called"):
        model.register("my houses!")
    assert [run.job for run in list_runs(Workspace())] == ["train"], "a refused call leaves no run"


def test_the_gate_is_that_of_the_job(folder: Path) -> None:
    """A model that is worse than the champion is refused, and one whose rows nobody cleaned."""
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    ledger = slml.clean(houses, contract)
    slml.train(ledger, contract, **SMALL).register("homes")
    model = slml.train(ledger, contract, **SMALL | {"epochs": 1, "learning_rate": 1e-9})
    with pytest.raises(RegistryError, match=r"rmse is \d.* above that of the champion homes@1"):
        model.register("homes", beats=())
    kept = slml.Catalog().table("kept_by_hand")
    rows = slml.sql("select * from houses_kept")
    unknown = slml.train(kept.replace(pa.Table.from_pandas(rows, preserve_index=False)), contract, **SMALL)
    with pytest.raises(RegistryError, match="nothing is known of the rows"):
        unknown.register("homes")


def test_a_training_that_fails_is_recorded(folder: Path) -> None:
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    with pytest.raises(TrainingError, match="learning rate"):
        slml.train(slml.clean(houses, contract), contract, **SMALL | {"learning_rate": 1e30})
    (run,) = list_runs(Workspace())
    assert (run.status, run.error.type) == ("failed", "TrainingError")


def test_run_a_notebook(folder: Path) -> None:
    """The job of `slml run`, from Python: checked parameters, outputs, and the notebook's own error."""
    cells = [
        nbformat.v4.new_code_cell("number: int  # to double", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from slml import parameters, record\np = parameters(globals())"),
        nbformat.v4.new_code_cell("record(outputs={'twice': 2 * p.number})"),
    ]
    Path("double.ipynb").write_text(json.dumps(nbformat.v4.new_notebook(cells=cells)))
    run = slml.run("double.ipynb", number=21)
    assert (run.status, run.outputs) == ("done", {"twice": 42})
    with pytest.raises(ParameterError, match="did you mean 'number'"):
        slml.run("double.ipynb", numbr=21)
    with pytest.raises(UsageError, match=r"did you mean 'double\.ipynb'"):
        slml.run("dubble.ipynb")


def test_train_inside_a_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's own run is the record: no second one is made, and the checkpoint lies where the job goes on from."""
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    ledger = slml.clean(houses, contract)
    monkeypatch.setenv("SLML_RUN_FOLDER", str(folder / ".slml" / "runs" / "20230101-train-1"))
    monkeypatch.setenv("SLML_CHECKPOINT_FOLDER", str(folder / "checkpoints"))
    model = slml.train(ledger, contract, **SMALL)
    assert model.run.id == "20230101-train-1"
    assert (folder / "checkpoints" / "checkpoint.pt").exists()
    assert not list_runs(Workspace())


def test_frames_that_are_no_plain_table(folder: Path) -> None:
    """Each is refused with one message, and a named index is a column wherever a frame is read."""
    frame = make_houses().dropna()
    with pytest.raises(IngestError, match="columns of the same name"):
        slml.ingest(pd.concat([frame, frame[["area"]]], axis=1))
    with pytest.raises(IngestError, match="no single type"):
        slml.ingest(frame.assign(none=pd.arrays.SparseArray(np.zeros(len(frame)))))
    for other in (frame["area"], [1], None, np.ones((2, 2))):
        with pytest.raises(UsageError, match="nothing that slml can read as a table"):
            slml.ingest(other)
    with pytest.raises(TableError, match="cannot be the name of a table"):
        slml.ingest(frame, "a/b")
    with pytest.raises(UsageError, match="No file is named"):
        slml.ingest("")
    (folder / "nothing").mkdir()
    with pytest.raises(UsageError, match="a folder without files"):
        slml.ingest("nothing")
    indexed = frame.rename(columns={"area": 7}).set_index(["city", "sold"])
    houses = slml.ingest(indexed, "indexed")
    assert houses.schema.names == ["7", "price", "city", "sold"]
    contract = slml.infer(houses, target="price")
    model = slml.train(slml.clean(houses, contract), contract, **SMALL)
    predicted = model.predict(indexed)["prediction"].to_numpy()
    assert (predicted == model.predict(indexed.reset_index())["prediction"].to_numpy()).all()
    stream = pa.Table.from_pandas(indexed.reset_index().rename(columns=str), preserve_index=False).to_reader()
    assert len(model.predict(stream)) == len(indexed), "a stream is read once"
    for other in ("houses.csv", None, houses):
        with pytest.raises(UsageError, match="nothing that slml can read as a table"):
            model.predict(other)
    with pytest.raises(IngestError, match="columns of the same name"):
        model.predict(pd.concat([frame, frame[["area"]]], axis=1).rename(columns={"area": 7}))


def test_what_is_no_snapshot_or_no_contract(folder: Path) -> None:
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    ledger = slml.clean(houses, contract)
    for other in (7, make_houses(), None):
        with pytest.raises(UsageError, match="no snapshot of a table"):
            slml.infer(other, target="price")
        with pytest.raises(UsageError, match="no snapshot of a table"):
            slml.clean(other, contract)
    for other in (make_houses(), None):
        with pytest.raises(UsageError, match="no snapshot of a table"):
            slml.train(other, contract)
    for other in ({"target": "price"}, None):
        with pytest.raises(UsageError, match="no contract"):
            slml.clean(houses, other)
        with pytest.raises(UsageError, match="no contract"):
            slml.train(ledger, other)
    marked = slml.ingest(make_houses().assign(row_hash=range(600)), "marked")
    ledger = slml.clean(marked, slml.infer(marked, target="price"))
    assert slml.Catalog().snapshot(ledger.kept_snapshot).schema.names[-1] == "row_hash_"
    assert any("'row_hash_'" in note for note in ledger.notes)


def test_sizes_that_no_training_can_have(folder: Path) -> None:
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    ledger = slml.clean(houses, contract)
    wrong = {"width": [0, "wide"], "depth": [0], "dropout": [1.0], "seed": [-1, "a", 2**63], "learning_rate": [-1.0]}
    for name, values in (wrong | {"weight_decay": [-1.0], "max_seconds": [-1.0]}).items():
        for value in values:
            with pytest.raises(UsageError, match=f"cannot have {name} = "):
                slml.train(ledger, contract, **SMALL | {name: value})


def test_sql_reads_tables_and_nothing_else(folder: Path) -> None:
    slml.ingest("houses.csv")
    for query in (
        "drop table houses", "copy houses to 'x.csv'", "attach 'x.db'", "delete from houses", "pivot houses on city",
        "create table z as select 1", "set threads = 1", "install httpfs", "show tables",
    ):  # fmt: skip
        with pytest.raises(UsageError, match="does not select"):
            slml.sql(query)
    for function in ("read_csv('/etc/passwd')", "read_text('/etc/passwd')", "glob('/*')", "query('select 1')"):
        with pytest.raises(UsageError, match="reads tables only"):
            slml.sql(f"select * from {function}")
    with pytest.raises(TableError, match="cannot be the name"):
        slml.sql("select * from '/etc/passwd'")
    with pytest.raises(UsageError, match="not SQL"):
        slml.sql(None)
    assert len(slml.sql("describe houses")) == 4
    assert len(slml.sql("from houses limit 3")) == 3
    assert not (folder / "x.csv").exists()


@pytest.mark.parametrize("values", [{"area": np.inf}, {"price": np.inf}, {"noise": [-np.inf, 1.0, 2.0] * 200}])
def test_a_contract_for_values_without_end(folder: Path, values: dict) -> None:
    """Infinite numbers are no reason to fail; the contract's rules decide about them."""
    frame = make_houses().dropna(subset=["city"])
    frame = frame.assign(
        **{n: v if isinstance(v, list) else frame[n].where(frame.index > 9, v) for n, v in values.items()}
    )
    assert slml.infer(slml.ingest(frame, "endless"), target="price").target == "price"


def test_a_terminal_shows_what_something_is(folder: Path) -> None:
    """The repr of what the calls give is short and in words; no dump of all fields."""
    houses = slml.ingest("houses.csv")
    contract = slml.infer(houses, target="price")
    assert repr(houses) == f"Snapshot {houses.ref}: 600 rows; city, area, sold, price"
    assert repr(contract) == str(contract)
    assert repr(slml.Catalog()).startswith("Catalog of the project ")
    ledger = slml.clean(houses, contract)
    assert repr(ledger) == str(ledger)


def test_the_registry_needs_no_workspace(folder: Path) -> None:
    """The versions of a model are those of the current folder's workspace."""
    from slml.registry import list_versions, load_bundle

    assert list_versions("houses") == []
    with pytest.raises(RegistryError, match="no models"):
        load_bundle("houses@1")


def test_a_service_of_a_missing_version_names_the_versions(folder: Path) -> None:
    """As `slml promote` does: numbers and aliases."""
    from slml.registry.aliases import Pointer, change_aliases
    from slml.serving.serve import ServeSettings, _pointer_to_serve

    root = str(folder / ".slml")
    pointer = Pointer(1, "file:///bundle", "hash")
    state = change_aliases(
        root,
        "p",
        "houses",
        lambda s: msgspec.structs.replace(s.next("register", "me", ""), aliases={"champion": pointer}),
    )
    settings = ServeSettings(source="houses@7", root=root, project="p")
    with pytest.raises(RegistryError, match="registered are houses@1, houses@champion"):
        _pointer_to_serve(state, settings)


def test_numbers_held_as_text_predict(folder: Path) -> None:
    """What cleaning reads as a number, a prediction reads too; what is none is named with its column and row."""
    frame = make_houses()
    frame["rooms"] = (frame["area"] // 30).map(lambda rooms: f"{rooms:.1f}")
    frame.loc[5:8, "rooms"] = "unknown"
    contract = slml.infer(slml.ingest(frame, "homes"), target="price")
    model = slml.train(slml.clean("homes", contract), contract, **SMALL)
    assert contract.column("rooms").type in ("int", "float")
    predicted = model.predict(frame.head(8))
    assert np.isfinite(predicted["prediction"]).all()
    plain = frame.head(8).assign(rooms=pd.to_numeric(frame["rooms"].head(8), errors="coerce"))
    assert (model.predict(plain)["prediction"] == predicted["prediction"]).all()
    assert len(model.predict(plain.to_dict("records"))) == 8
    with pytest.raises(ContractError, match="no column"):
        model.predict([{"city": "Oslo"}])
    wrong = frame.head(3).assign(rooms=["two", "3.0", "four"])
    with pytest.raises(ContractError, match="'two', in row 0, 'four', in row 2"):
        model.predict(wrong)
