"""The loop closes without a hand: fares rise, it is seen, told, trained, compared, promoted, and the error is back."""

import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pytest

from slml.monitoring.windows import read_windows
from slml.operations import loop as watch
from slml.operations.decisions import COMPARING, PROVING, RETRAINING, WATCHING, decisions, last_decision
from slml.operations.loop import watch_once
from slml.pipelines.pipeline import load_pipeline, run_pipeline
from slml.registry.aliases import read_changes, read_state
from slml.registry.versions import list_versions, promote_version, set_shadow
from slml.runs.run import list_runs
from slml.serving.log import RequestLog
from slml.serving.log_rows import log_folder
from slml.serving.serve import ServeSettings, VersionLoader
from slml.serving.service import Service
from slml.tables.catalog import Catalog
from slml.taxi.files import generate
from slml.taxi.rules import IN_MONTH, POINTS, contract
from slml.taxi.trips import TIME_FORMAT
from slml.workspace import Workspace

from support import REPOSITORY

KEY, FARE = ["OBJECTID", "ORIGINDATETIME_TR"], "FAREAMOUNT"
TAXI = REPOSITORY / "pipelines" / "taxi.yaml"
DAYS = 500  # requests of a day


def trips(folder: Path, rows: int, seed: int, dearer: bool) -> pa.Table:
    """A month of trips in a file, with the old tariff or the new one: a quarter and a dollar more."""
    made = generate(str(folder), rows, seed=seed, dirt=0)
    parsing = csv.ParseOptions(delimiter="|")
    names = csv.open_csv(made.files[0], parse_options=parsing).schema.names
    text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    table = csv.read_csv(made.files[0], parse_options=parsing, convert_options=text)
    table = table.filter(pc.match_substring_regex(table[FARE], r"^[0-9.]+$"))
    if dearer:
        before = pc.cast(table[FARE], pa.float64())
        fare = pc.round(pc.add(pc.multiply(before, 1.25), 1.0), 2)
        total = pc.round(pc.add(pc.cast(table["TOTALAMOUNT"], pa.float64()), pc.subtract(fare, before)), 2)
        for name, values in ((FARE, fare), ("TOTALAMOUNT", total)):
            written = pa.array([f"{v:.2f}" for v in values.to_pylist()])
            table = table.set_column(table.column_names.index(name), name, written)
    options = csv.WriteOptions(delimiter="|", quoting_style="none", quoting_header="none")
    csv.write_csv(table, made.files[0], options)
    return table


def requests(table: pa.Table) -> list[dict]:
    """Rows as a client sends them, with the fare that is known later."""
    found = []
    for row in table.select([*KEY, *POINTS, FARE]).to_pylist():
        if all(re.fullmatch(r"-?[0-9.]+", row[name]) for name in POINTS):
            at = datetime.strptime(row[KEY[1]], TIME_FORMAT)
            asked = {KEY[0]: int(row[KEY[0]]), KEY[1]: at, **{name: float(row[name]) for name in POINTS}}
            found.append(asked | {FARE: float(row[FARE])})
    return found


class ClockedLog(RequestLog):
    """A log whose clock is set by the test."""

    clock = 0.0

    def put(self, *told: object, **more: object) -> None:
        super().put(*told, **{**more, "at": self.clock})


@dataclass
class City:
    """A city whose service answers, and whose labels come at night."""

    workspace: Workspace
    folder: Path
    policy: str
    day: datetime = field(
        default_factory=lambda: datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=2)
    )

    @property
    def morning(self) -> datetime:
        return self.day + timedelta(minutes=30)

    @property
    def state(self):
        return read_state(self.workspace.root, self.workspace.project, "taxi")

    def serve(self, rows: list[dict]) -> None:
        """A day of requests, each a row, and then the night in which the fares become known."""
        settings = ServeSettings(source="taxi@champion", root=self.workspace.root, project=self.workspace.project)
        served = VersionLoader(settings)(self.state)
        folder = log_folder(self.workspace.root, self.workspace.project, "taxi")
        log = ClockedLog(folder, served.champion.bundle.contract)
        service = Service(served, log)
        for n, row in enumerate(rows):
            log.clock = (self.day + timedelta(seconds=86_000 * n / len(rows))).timestamp()
            body = {name: str(v).replace(" ", "T") if name == KEY[1] else v for name, v in row.items() if name != FARE}
            answer = service.answer("POST", "/predict", {"content-type": "application/json"}, json.dumps(body).encode())
            assert answer.status == 200, answer.body
        expected, end = len(rows) * (2 if served.shadow else 1), time.monotonic() + 20
        while log.waiting_rows + log.written_rows < expected and time.monotonic() < end:  # the shadow takes its time
            time.sleep(0.01)
        assert log.close()
        assert log.written_rows == expected
        labels = pa.table({name: [row[name] for row in rows] for name in (*KEY, FARE)})
        Catalog(self.workspace).table("fares").append(labels)
        self.day += timedelta(days=1)

    def step(self) -> list[str]:
        return [d.action for d in watch_once("taxi", self.workspace, self.policy, self.morning)]

    def told(self) -> list[dict]:
        place = self.folder / "alerts.jsonl"
        return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    """A model of the old tariff, registered by the pipeline, and a policy that lets the loop do everything."""
    folder = tmp_path_factory.mktemp("city")
    workspace = Workspace(root=str(folder / "root"), project="dc", user="loop")
    whole = contract()
    rules = tuple(rule for rule in whole.rules if rule.reason != IN_MONTH)  # requests are of later months
    whole.model_copy(update={"rules": rules}).save(str(folder / "contract.json"))
    trips(folder / "now", 4000, seed=0, dearer=False)
    given = {"source": f"{folder}/now/*.txt", "contract": f"{folder}/contract.json", "epochs": 3}
    run_pipeline(load_pipeline(TAXI), given, workspace, lambda state: None)
    (folder / "monitor.toml").write_text(f"""
[taxi]
labels = "fares"
back = 1
notify = ["log:{folder}/alerts.jsonl"]
cool_down = "2d"
retrain = "{TAXI}"
parameters = {{source = "{folder}/now/*.txt", contract = "{folder}/contract.json", epochs = 3}}
shadow_rows = 300
prove = 300
""")
    return City(workspace, folder, str(folder / "monitor.toml"))


class Killed(BaseException):
    """What a kill looks like from within."""


def killed_before_recording(action: str, city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step does what it has decided, and dies before it has noted that."""
    record = watch.record_decision

    def dies(model: str, decision: watch.Decision, workspace: Workspace) -> watch.Decision | None:
        if decision.action == action:
            raise Killed
        return record(model, decision, workspace)

    with monkeypatch.context() as patch:
        patch.setattr(watch, "record_decision", dies)
        with pytest.raises(Killed):
            city.step()


def test_the_loop_closes_without_a_hand(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    old = requests(trips(city.folder / "before", 2000, seed=1, dearer=False))
    new = requests(trips(city.folder / "after", 6000, seed=2, dearer=True))

    # A day like any other: nothing is said, nothing is done.
    city.serve(old[:DAYS])
    assert city.step() == []
    assert city.told() == []

    # The tariff changes, for those who ride and in the files that come in. The step is killed when it has trained.
    trips(city.folder / "now", 4000, seed=3, dearer=True)
    city.serve(new[:DAYS])
    killed_before_recording("shadow", city, monkeypatch)
    runs, made = len(list_runs(city.workspace)), len(list_versions("taxi", city.workspace))
    assert made == 2
    assert city.state.shadow.version == 2
    assert city.state.aliases["champion"].version == 1
    cheap, dear = list_versions("taxi", city.workspace)
    assert dear.value > 1.1 * cheap.value  # dearer fares, larger errors; on the same rows the old model's is larger yet
    assert "taxi@1: rmse" in dear.against
    assert "the same test rows" in dear.against
    assert city.step() == ["shadow"]
    assert last_decision("taxi", city.workspace).phase == COMPARING
    assert len(list_runs(city.workspace)) == runs
    assert len(list_versions("taxi", city.workspace)) == made
    (alert,) = city.told()
    assert "concept drift" in alert["title"]
    assert alert["report"].endswith("report.html")
    assert Path(alert["report"]).exists()

    # A day in the shadow; the promotion is killed before it is noted, too.
    city.serve(new[DAYS : 2 * DAYS])
    killed_before_recording("promote", city, monkeypatch)
    assert city.state.aliases["champion"].version == 2
    assert city.step() == ["promote"]
    assert last_decision("taxi", city.workspace).phase == PROVING
    assert city.state.shadow.version == 1

    # A day in office: the error is back, the breach is over, and the old champion may go.
    city.serve(new[2 * DAYS : 3 * DAYS])
    assert sorted(city.step()) == ["over", "settled"]
    assert last_decision("taxi", city.workspace).phase == WATCHING
    assert city.state.shadow is None
    errors = read_windows("taxi", Catalog(city.workspace)).to_pylist()
    by_day = [(row["version"], row["verdict"], row["error"]) for row in errors if row["rows"]]
    before, during, after = by_day[0][2], by_day[1][2], by_day[-1][2]
    assert [verdict for _, verdict, _ in by_day[:2]] == ["nothing", "retrain"]
    assert by_day[-1][:2] == (2, "nothing")
    assert during > before + 1.5
    assert after < 1.25 * (before + 0.5)  # dollars, of fares a quarter higher

    # All of it can be read, and who did it; nothing was promoted twice.
    told = [d.action for d in decisions("taxi", city.workspace)]
    assert told == ["alert", "retrain", "shadow", "promote", "over", "settled"] or sorted(told[-2:]) == [
        "over",
        "settled",
    ]
    history = read_changes(city.workspace.root, "dc", "taxi")
    assert [c.action for c in history].count("promote") == 1
    assert all(c.who == "loop" for c in history)


def test_a_promotion_that_was_wrong_is_taken_back(city: City) -> None:
    """Somebody brings the model of the old tariff back; the loop is told to prove it, and finds that it is worse."""
    new = requests(trips(city.folder / "later", 2000, seed=5, dearer=True))
    promote_version("taxi@1", city.workspace, "the old days")
    set_shadow("taxi@2", city.workspace)
    last = last_decision("taxi", city.workspace)
    trial = last.next("promote", "the old days", city.morning, phase=PROVING, version=1, before=2)
    watch.record_decision("taxi", trial, city.workspace)
    city.serve(new[:DAYS])
    assert "rollback" in city.step()
    assert city.state.aliases["champion"].version == 2
    assert city.state.shadow is None
    assert any("rolled back" in alert["title"] for alert in city.told())


def test_a_person_takes_over_a_pipeline_is_gone_and_nobody_can_be_reached(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop finds otherwise than it left it ends the phase, in a decision that says why."""

    def trial(phase: str) -> None:
        last = last_decision("taxi", city.workspace)
        watch.record_decision(
            "taxi", last.next("shadow", "a trial", city.morning, phase=phase, version=1, before=2), city.workspace
        )

    trial(COMPARING)  # but somebody has taken the challenger out of the shadow
    assert city.step()[-1] == "left"
    assert last_decision("taxi", city.workspace).phase == WATCHING

    policy = Path(city.policy)
    policy.write_text(
        policy.read_text().replace(str(TAXI), "gone.yaml").replace('notify = ["', 'notify = ["env:DUTY", "')
    )
    trial(RETRAINING)
    assert city.step() == ["failed"]
    assert "gone.yaml" in city.told()[-1]["title"] + city.told()[-1]["text"]
    (unsent,) = last_decision("taxi", city.workspace).unsent
    assert unsent.channel == "env:DUTY"
    assert city.step() == []  # still nobody
    monkeypatch.setenv("DUTY", f"log:{city.folder}/duty.jsonl")
    assert city.step() == ["told"]
    assert last_decision("taxi", city.workspace).unsent == ()
    assert json.loads((city.folder / "duty.jsonl").read_text())["id"] == unsent.alert.id
