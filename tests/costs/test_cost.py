"""Money: prices that say what they are worth, costs that can be worked out by hand, budgets that hold."""

import json
import math
import multiprocessing
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slml.aws.prices import refresh_prices
from slml.costs.budget import Budget, budget_balance, check_budget, read_budget, set_budget
from slml.costs.cost import add_estimates, cost_of, costs, estimate, version_runs
from slml.costs.prices import Price, PriceBook, query_usd
from slml.errors import BudgetError, CloudError, SettingsError, SlmlError, UsageError
from slml.runs.job import Job
from slml.runs.resources import Resources
from slml.runs.run import Run, list_runs, new_run, save_run
from slml.workspace import Workspace

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
# Round numbers, so that every figure below can be worked out on paper. A core hour and what goes with it cost 1 USD.
PRICES = {
    ("fargate", "vcpu-hour"): 1.0,
    ("fargate", "gib-hour"): 0.1,
    ("fargate", "disk gib-hour"): 0.0,
    ("fargate-spot", "vcpu-hour"): 0.5,
    ("fargate-spot", "gib-hour"): 0.05,
    ("vpc", "public ipv4 hour"): 0.0,
    ("ebs", "gp3 gib-month"): 0.0,
    ("athena", "tib scanned"): 5.0,
    ("ec2", "g4dn.xlarge spot hour"): 3.0,
    ("ec2", "g5.xlarge spot hour"): 2.0,
    ("ec2", "g5.xlarge on-demand hour"): 4.0,
    ("ec2", "g5.12xlarge on-demand hour"): 20.0,
    ("ec2", "m6i.large on-demand hour"): 1.5,
    ("ec2", "m7i.large on-demand hour"): 0.1,
}


def book_of(*more: Price) -> PriceBook:
    """A book of the prices above."""
    listed = [Price(s, i, "us-east-1", "", usd, "this test", "2026-11-01") for (s, i), usd in PRICES.items()]
    return PriceBook("us-east-1", {price.key: price for price in (*listed, *more)})


BOOK = book_of()


def run_of(**given: object) -> Run:
    """An hour on Batch, on one core and 4 GiB, not on Spot: 3600 s less the 30 s that the start is taken to last."""
    usual = {"id": "1", "job": "train", "status": "done", "project": "test", "user": "ada", "attempt": 1}
    usual |= {"created": "2026-11-02T10:00:00.000+00:00", "runner": "batch", "resources": Resources(spot=False)}
    usual |= {"seconds": 3570.0, "spent": 3570.0}
    return Run(**{"notebook": "train.ipynb", "parameters": {}} | usual | given)


CASES = {
    "an hour: 1 core, 4 GiB": (run_of(), 1.4),
    "3 cores, 10.5 GiB are sold as 4 and 11": (run_of(resources=Resources(cores=3, memory=10.5, spot=False)), 5.1),
    "4 cores, 32 GiB are sold as 8 and 32": (run_of(resources=Resources(cores=4, memory=32, spot=False)), 11.2),
    "on Spot": (run_of(resources=Resources()), 0.7),
    "ten seconds are a minute": (run_of(seconds=10.0, spent=10.0), 1.4 / 60),
    "three attempts of ten seconds are three minutes": (run_of(seconds=10.0, spent=30.0, attempt=3), 1.4 * 3 / 60),
    "a failed run is paid too": (run_of(status="failed"), 1.4),
    "lost attempts are paid too": (run_of(seconds=1710.0, spent=3540.0, attempt=2), 1.4),
    # A GPU comes with a machine, the cheapest; its start is taken to last 120 s: 3690 s in all.
    "a GPU": (run_of(resources=Resources(cores=4, gpus=1)), 2.0 * 3690 / 3600),
    "four GPUs": (run_of(resources=Resources(cores=4, gpus=4, spot=False)), 20.0 * 3690 / 3600),
    # Batch has no Spot for several machines, and the stack has no m7i for them.
    "two machines": (run_of(resources=Resources(nodes=2)), 2 * 1.5 * 3690 / 3600),
    "nothing was done again": (run_of(same_as="0"), 0.0),
    "waiting": (run_of(status="waiting", seconds=0.0, spent=0.0, attempt=0), 0.0),
    "cancelled before it began": (run_of(status="cancelled", seconds=0.0, spent=0.0, attempt=0), 0.0),
    "killed without a word: its start": (run_of(status="failed", seconds=0.0, spent=0.0), 1.4 / 60),
    "an older record, without attempts": (run_of(attempt=0, spent=0.0), 1.4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cost_is_what_one_works_out_on_paper(case: str) -> None:
    run, usd = CASES[case]
    cost = cost_of(run, BOOK, NOON)
    assert cost.usd == pytest.approx(usd, rel=1e-12)
    assert sum(cost.parts.values()) == pytest.approx(usd)
    assert not cost.hypothetical


def test_a_running_job_costs_until_now_and_no_clock_makes_it_negative() -> None:
    run = run_of(status="running", seconds=0.0, spent=0.0, resources=Resources(spot=False, minutes=120))
    started = {"started": (NOON - timedelta(seconds=3570)).isoformat()}
    assert cost_of(replace(run, **started), BOOK, NOON).usd == pytest.approx(1.4)
    # Its first attempt of half an hour was lost, the second one goes on: 1800 + 1740 s, and two starts.
    again = replace(run, started=(NOON - timedelta(seconds=1740)).isoformat(), attempt=2, spent=1800.0)
    assert cost_of(again, BOOK, NOON).usd == pytest.approx(1.4)
    ahead = replace(run, started=(NOON + timedelta(hours=3)).isoformat())
    assert cost_of(ahead, BOOK, NOON).usd == pytest.approx(1.4 / 60)
    for_ever = replace(run, started="2020-01-01T00:00:00")  # a host that was lost; a time without a zone is UTC
    assert cost_of(for_ever, BOOK, NOON).usd == pytest.approx(1.4 * (2 * 3600 + 30) / 3600)
    assert cost_of(replace(run, started="yesterday"), BOOK, NOON).usd == pytest.approx(1.4 / 60)
    assert cost_of(replace(run, started=""), BOOK, NOON).usd == pytest.approx(1.4 / 60)


def test_what_was_not_paid_is_told_apart() -> None:
    local = cost_of(run_of(runner="local"), BOOK)
    assert local.hypothetical
    assert local.usd == pytest.approx(1.4)
    assert "nothing" in str(local)
    assert cost_of(run_of(runner="kubernetes"), BOOK).hypothetical
    # 64 cores are more than Fargate has; here they were.
    book = PriceBook.load(Workspace(root="/nonexistent", project="test"), "us-east-1")
    assert "EC2 c7i.16xlarge" in cost_of(run_of(runner="local", resources=Resources(cores=64, memory=64)), book).where
    price = Price("kubernetes", "vcpu-hour", "us-east-1", "hour", 0.3, "our platform", "2026-11-01", verified=True)
    with pytest.raises(UsageError, match="no price for kubernetes gib-hour"):
        cost_of(run_of(runner="kubernetes"), book_of(price))
    own = cost_of(run_of(runner="kubernetes"), book_of(price, replace(price, item="gib-hour", usd=0.05)))
    assert own.usd == pytest.approx((0.3 + 4 * 0.05) * 3570 / 3600)
    assert own.verified
    assert not own.hypothetical


def test_a_query_pays_for_ten_megabytes_at_least() -> None:
    assert query_usd(2**40, BOOK) == 5
    assert query_usd(0, BOOK) == query_usd(10 * 2**20, BOOK) == 5 * 10 / 2**20
    assert query_usd(10 * 2**20 + 1, BOOK) == 5 * 11 / 2**20


# Estimates


def test_an_estimate_is_the_middle_of_earlier_runs() -> None:
    job = Job("/somewhere/train.ipynb", {}, Resources(spot=False))
    runs = [run_of(id=str(n), seconds=s) for n, s in enumerate((570.0, 1170.0, 1770.0, 2370.0, 5970.0))]
    others = [
        run_of(job="audit", seconds=9e5),
        run_of(status="failed", seconds=9e5),
        run_of(same_as="0", seconds=9e5),
        run_of(seconds=0.0),
    ]
    told = estimate(job, [*runs, *others], BOOK)
    assert (told.usd, told.low, told.high) == pytest.approx((0.7, 1.4 / 3, 1.4 * 2 / 3))
    assert told.runs == 5
    assert "0.70 USD (0.47 to 0.93 USD)" in str(told)
    assert "5 earlier runs" in str(told)
    assert "not verified" in str(told)
    assert "nothing is paid" in str(estimate(job, runs, BOOK, runner="local"))
    assert estimate(job, runs, BOOK).times(10).usd == pytest.approx(7.0)


def test_without_an_earlier_run_the_limit_is_told() -> None:
    job = Job("train.ipynb", {}, Resources(spot=False, minutes=90))
    told = estimate(job, [], BOOK)
    assert told.usd == pytest.approx(1.4 * (5400 + 30) / 3600)
    assert told.runs == 0
    assert "no earlier run: at most" in str(told)
    assert "90 minutes" in str(told)
    # An earlier run that took longer than this one may, counts as the limit.
    assert estimate(job, [run_of(seconds=1e6)], BOOK).usd == told.usd
    assert "the one earlier run" in str(estimate(job, [run_of()], BOOK))


def test_a_pipeline_is_the_sum_of_its_jobs() -> None:
    known = estimate(Job("train.ipynb", {}, Resources(spot=False)), [run_of()], BOOK)
    new = estimate(Job("tune.ipynb", {}, Resources(spot=False, minutes=59)), [run_of()], BOOK)
    both = add_estimates([known, new.times(2)])
    assert both.usd == pytest.approx(1.4 + 2 * 1.4 * 3570 / 3600)
    assert both.jobs == 3
    assert "2 of them without an earlier run" in str(both)
    assert both.where == known.where


# Tables

RUNS = [
    run_of(id="a", job="ingest", user="ada", pipeline="taxi"),
    run_of(id="b", job="train", user="bo", pipeline="taxi", created="2026-11-03T00:00:00+00:00"),
    run_of(id="c", job="train", user="bo", created="2026-11-03T23:59:59+00:00", runner="local"),
    run_of(id="d", job="train", user="", created="", same_as="b"),
]
VERSIONS = {"fare@1": ["a", "b"], "fare@2": {"a"}, "fare@3": ["gone"]}


def test_costs_add_up_by_anything() -> None:
    by = {name: costs(RUNS, BOOK, by=name, versions=VERSIONS) for name in ("user", "pipeline", "job", "run", "version")}
    lines = {
        name: {line.name: (line.runs, line.paid, line.would) for line in found.lines} for name, found in by.items()
    }
    assert lines["user"] == {"ada": (1, 1.4, 0), "bo": (2, 1.4, 1.4), "(no user)": (1, 0, 0)}
    assert lines["pipeline"] == {"taxi": (2, 2.8, 0), "(no pipeline)": (2, 0, 1.4)}
    assert lines["job"] == {"ingest": (1, 1.4, 0), "train": (3, 1.4, 1.4)}
    assert lines["version"] == {"fare@1": (2, 2.8, 0), "fare@2": (1, 1.4, 0), "(no version)": (2, 0, 1.4)}
    assert len(lines["run"]) == 4
    for found in by.values():  # an ingest behind two versions is in the total once
        assert (found.total.runs, found.total.paid, found.total.would) == (4, pytest.approx(2.8), pytest.approx(1.4))
    assert by["user"].total.hours == pytest.approx(3 * 3570 / 3600)


def test_costs_show_themselves() -> None:
    table = costs(RUNS, BOOK)
    assert "ingest" in str(table)
    assert "2.8000" in str(table)
    assert "not verified" in str(table)
    assert list(table.to_pandas()["paid"]) == [1.4, 1.4]
    page = costs([run_of(user="<b>")], BOOK, by="user")._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    ax = table.plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ingest", "train"]
    assert ax.get_ylabel() == "USD"
    assert "would have taken" in costs(RUNS[2:3], BOOK).plot().get_ylabel()
    many = costs([run_of(job=f"job{n}") for n in range(20)], BOOK).plot()
    assert len(many.get_legend().get_texts()) == 9
    empty = costs([], BOOK)
    assert empty.total.paid == 0
    assert "nothing" in empty.plot().get_title()
    assert "total" in str(empty)


def test_days_are_included_at_both_ends() -> None:
    def ids(**days: object) -> str:
        return "".join(run.id for run, _ in costs(RUNS, BOOK, **days).spent)

    assert ids() == "abcd"
    assert ids(since="2026-11-03") == "bc"
    assert ids(since=date(2026, 11, 3), until="2026-11-03") == "bc"
    assert ids(until="2026-11-02") == "ad"  # a record without a time is older than everything
    assert [line.name for line in costs(RUNS, BOOK, by="day").lines] == ["(no day)", "2026-11-02", "2026-11-03"]
    with pytest.raises(UsageError, match="no day"):
        costs(RUNS, BOOK, since="November")
    with pytest.raises(UsageError, match=r"(?s)by usr.*'user'"):
        costs(RUNS, BOOK, by="usr")


def test_the_runs_behind_a_version_come_from_its_lineage(tmp_path: Path, tracking_uri: str) -> None:
    from slml.registry.tracking import open_tracking

    workspace = Workspace(root=str(tmp_path), project="money", tracking_uri=tracking_uri)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "lineage.json").write_text('{"runs": {"ingest": "a", "train": "b"}}')
    client = open_tracking(workspace)
    for name in ("money.fare", "other.fare"):
        client.create_registered_model(name)
        tags = {"hash": "1", "metric": "mae", "value": "1", "data": "trips@1"}
        client.create_model_version(name, str(tmp_path / "bundle"), tags=tags)
    assert version_runs(workspace) == {"fare@1": {"a", "b"}}
    assert costs(RUNS, BOOK, by="version", versions=version_runs(workspace)).lines[0].paid == pytest.approx(2.8)


# The price book


def test_every_price_that_comes_with_slml_is_unverified_and_has_a_source(workspace: Workspace) -> None:
    for region in ("us-east-1", "eu-central-1"):
        found = [price for price in PriceBook.load(workspace, region) if price.region == region]
        assert len(found) > 100
        assert not any(price.verified for price in found)
        assert all(price.source and price.date and price.usd > 0 for price in found)
        assert {p.service for p in found} == {
            "fargate", "fargate-spot", "ec2", "athena", "s3", "lambda", "cloudwatch", "vpc", "ebs",
        }  # fmt: skip


def test_a_missing_price_says_what_to_add_and_that_line_works(workspace: Workspace) -> None:
    with pytest.raises(UsageError) as caught:
        PriceBook.load(workspace, "eu-west-3").price("ec2", "g5.xlarge spot hour")
    assert "eu-central-1, us-east-1" in str(caught.value)
    assert "slml aws prices refresh" in str(caught.value)
    line = str(caught.value).partition("prices.json: ")[2]
    Path(workspace.uri("prices.json")).parent.mkdir(parents=True)
    Path(workspace.uri("prices.json")).write_text(line)
    assert PriceBook.load(workspace, "eu-west-3").price("ec2", "g5.xlarge spot hour").verified
    assert PriceBook.load(workspace, "eu-central-1").price("fargate", "vcpu-hour").usd == 0.04656  # the others stay
    with pytest.raises(UsageError, match="eu-west-3"):
        costs([run_of()], PriceBook.load(workspace, "eu-west-3"))


ENTRY = {"service": "s3", "item": "x", "region": "r", "unit": "u", "usd": 1, "source": "s", "date": "d"}
DAMAGED = {
    "empty": "",
    "cut off": '{"prices": [{"service": "far',
    "a list": "[]",
    "no prices": "{}",
    "a number": '{"prices": 3}',
    "a text": '{"prices": "fargate"}',
    "an unknown field": json.dumps({"prices": [ENTRY | {"dollars": 1}]}),
    "a negative price": json.dumps({"prices": [ENTRY | {"usd": -1}]}),
    "not a number": json.dumps({"prices": [ENTRY | {"usd": math.nan}]}),
    "a price in words": json.dumps({"prices": [ENTRY, ENTRY | {"usd": "1"}]}),
    "a list as region": json.dumps({"prices": [ENTRY | {"region": ["us"]}]}),
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_price_file_is_an_error_and_no_other_price(case: str, workspace: Workspace) -> None:
    path = Path(workspace.uri("prices.json"))
    path.parent.mkdir(parents=True)
    path.write_text(DAMAGED[case], encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SettingsError, match=r"prices\.json"):
        PriceBook.load(workspace)


def test_the_region_is_that_of_the_bucket(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert PriceBook.load(workspace).region == "eu-west-1"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert PriceBook.load(workspace).region == "us-east-1"


# Budgets


def test_a_job_that_would_pass_the_budget_is_refused(workspace: Workspace) -> None:
    PriceBook("us-east-1", BOOK.prices, workspace.uri("prices.json")).save()
    job = Job("train.ipynb", {}, Resources(spot=False))
    spent = run_of()  # 1.40 USD
    running = run_of(
        id="2", status="running", seconds=0.0, spent=0.0, started=(NOON - timedelta(minutes=1)).isoformat()
    )
    elsewhere = [run_of(id="3", runner="local"), run_of(id="4", created="2026-10-31T23:59:59+00:00")]
    runs = [spent, running, *elsewhere]
    expected = estimate(job, runs, BOOK)  # 1.40 USD, by all four
    assert check_budget(workspace, runs, expected, moment=NOON).budget is None  # none is set
    set_budget(workspace, 4.20)
    assert check_budget(workspace, runs, expected, moment=NOON).remaining == pytest.approx(1.4)
    set_budget(workspace, 4.19)
    with pytest.raises(BudgetError) as caught:
        check_budget(workspace, runs, expected, moment=NOON)
    for part in (
        "at most 1.39 USD",
        "1.43 USD spent",
        "1.36 USD promised",
        "budget 4.19 USD",
        "about 1.40 USD",
        "slml cost budget",
    ):
        assert part in str(caught.value), (part, str(caught.value))
    check_budget(workspace, runs, estimate(job, runs, BOOK, runner="local"), moment=NOON)  # it costs nothing
    set_budget(workspace, 0)
    with pytest.raises(BudgetError):
        check_budget(workspace, [], expected, moment=NOON)
    set_budget(workspace, None)
    check_budget(workspace, runs, expected, moment=NOON)


def test_a_run_that_passed_its_estimate_is_not_promised_more(workspace: Workspace) -> None:
    slow = run_of(id="2", status="running", seconds=0.0, spent=0.0, started=(NOON - timedelta(hours=5)).isoformat())
    stands = budget_balance(workspace, [run_of(), slow], BOOK, moment=NOON)
    assert stands.spent == pytest.approx(1.4 + 1.4 * (5 * 3600 + 30) / 3600)
    assert stands.promised == 0


def test_a_month_of_many_runs_is_added_up_in_a_moment(workspace: Workspace) -> None:
    runs = [run_of(id=f"{n:05}", status="waiting" if n % 2 else "done", attempt=1 - n % 2) for n in range(10_000)]
    runs = [replace(run, spent=0.0, seconds=0.0) if run.status == "waiting" else run for run in runs]
    begin = time.perf_counter()
    stands = budget_balance(workspace, runs, BOOK, moment=NOON)
    assert time.perf_counter() - begin < 10
    assert (stands.spent, stands.promised) == pytest.approx((7000, 7000))
    assert stands.pending == 5000


def test_of_two_arrays_at_once_none_overlooks_the_other(workspace: Workspace) -> None:
    """Their records came in between each other; each array counts what came before its own last run."""
    runs = [run_of(id=f"{n}", status="waiting", seconds=0.0, spent=0.0, attempt=0) for n in range(1, 9)]
    done = run_of(id="0", created="2026-10-02T10:00:00+00:00")
    first, second = ["1", "3", "5", "7"], ["2", "4", "6", "8"]
    assert budget_balance(workspace, [done, *runs], BOOK, first, NOON).pending == 3
    assert budget_balance(workspace, [done, *runs], BOOK, second, NOON).pending == 4
    assert budget_balance(workspace, [done, *runs], BOOK, second, NOON).promised == pytest.approx(4 * 1.4)
    assert budget_balance(workspace, [done, *runs], BOOK, moment=NOON).pending == 8


@pytest.mark.parametrize("usd", [-1, -0.01, math.nan, math.inf, True])
def test_a_budget_that_is_none_is_refused(usd: float, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="no budget"):
        set_budget(workspace, usd)
    assert read_budget(workspace) == Budget(None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"usd": -1}', '{"usd": "50"}', '{"usd": NaN}', '{"dollars": 5}', "\udcff"]
)
def test_a_damaged_budget_is_not_taken_for_none(text: str, workspace: Workspace) -> None:
    set_budget(workspace, 1)
    Path(workspace.uri("budget.json")).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SettingsError, match="slml cost budget"):
        check_budget(workspace, [], estimate(Job("train.ipynb", {}), [], BOOK))


def set_many(root: str, user: str) -> None:
    """Set a budget many times over."""
    workspace = Workspace(root=root, project="test", user=user)
    for usd in range(60):
        set_budget(workspace, usd)


def test_two_who_set_a_budget_at_once_leave_a_whole_one(workspace: Workspace) -> None:
    set_budget(workspace, 1)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=set_many, args=(workspace.root, user)) for user in ("ada", "bo")]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert read_budget(workspace).usd is not None
        reads += 1
    for writer in writers:
        writer.join(20)
        assert writer.exitcode == 0
    assert reads
    assert read_budget(workspace).usd == 59
    assert read_budget(workspace).user in ("ada", "bo")
    assert [path.name for path in Path(workspace.root).iterdir()] == ["budget.json"]


def test_of_many_submitted_at_once_just_as_many_pass_as_the_budget_holds(workspace: Workspace) -> None:
    """Each writes its record, then all check at the same moment; 5 USD hold three times 1.40 USD."""
    PriceBook("us-east-1", BOOK.prices, workspace.uri("prices.json")).save()
    set_budget(workspace, 5.0)
    job, limit = Job("train.ipynb", {}, Resources(spot=False, minutes=59)), threading.Barrier(8)
    passed: list[str] = []

    def submit() -> None:
        run = new_run("train", "train.ipynb", {}, workspace)
        save_run(replace(run, runner="batch", resources=job.resources))
        limit.wait(20)
        runs = list_runs(workspace)
        try:
            check_budget(workspace, runs, estimate(job, runs, BOOK), own_runs=run.id)
            passed.append(run.id)
        except BudgetError:
            pass

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(passed) == [run.id for run in list_runs(workspace)][:3]


# The Pricing API: a server that answers as AWS's does, and the EC2 of moto


def product(usage: str, usd: str, **attributes: str) -> str:
    """A product in the format of the Price List API."""
    step = {"unit": "Hrs", "beginRange": "0", "endRange": "Inf", "appliesTo": [], "pricePerUnit": {"USD": usd}}
    term = {"priceDimensions": {"S.T.R": step}, "sku": "S", "offerTermCode": "T", "termAttributes": {}}
    attributes |= {"usagetype": usage, "regionCode": "eu-central-1"}
    return json.dumps({"product": {"sku": "S", "attributes": attributes}, "terms": {"OnDemand": {"S.T": term}}})


ANSWERS = {
    "AmazonECS": [
        product("EUC1-Fargate-vCPU-Hours:perCPU", "0.0500000000"),
        product("EUC1-Fargate-GB-Hours", "0.0060000000"),
        product("EUC1-Fargate-ARM-GB-Hours", "0.0010000000"),
        product("EUC1-Fargate-EphemeralStorage-GB-Hours", "0.0001300000"),
    ],
    "AmazonEC2": [
        product("EUC1-BoxUsage:g5.xlarge", "1.3000000000", instanceType="g5.xlarge"),
        product("EUC1-BoxUsage:t2.nano", "0.0070000000", instanceType="t2.nano"),
        product("EUC1-EBS:VolumeUsage.gp3", "0.0952000000"),
    ],
    "AmazonAthena": [product("EUC1-DataScannedInTB", "5.0000000000")],
    "AmazonS3": [product("EUC1-Requests-Tier1", "0.0000054000"), product("EUC1-TimedStorage-ByteHrs", "0.0245")],
    "AWSLambda": [product("EUC1-Request", "0.0000002000"), product("EUC1-Request-ARM", "0.0000009000")],
}


class Pricing(BaseHTTPRequestHandler):
    """Answers GetProducts one product a page; every request is kept."""

    seen: list[dict] = []  # noqa: RUF012
    status = 200

    def do_POST(self) -> None:
        """Answer one page."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked)
        there, page = ANSWERS.get(asked["ServiceCode"], []), int(asked.get("NextToken") or 0)
        answer = {"FormatVersion": "aws_v1", "PriceList": there[page : page + 1]}
        answer |= {"NextToken": str(page + 1)} if page + 1 < len(there) else {}
        if self.status != 200:
            answer = {"__type": "AccessDeniedException", "Message": "not authorized to perform: pricing:GetProducts"}
        body = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pricing]]:
    """Both services on this machine."""
    from moto.server import ThreadedMotoServer

    server, moto = (
        ThreadingHTTPServer(("127.0.0.1", 0), Pricing),
        ThreadedMotoServer("127.0.0.1", port=0, verbose=False),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    moto.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", "http://{}:{}".format(*moto.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(Pricing, "seen", [])
    yield Pricing
    server.shutdown()
    server.server_close()
    moto.stop()


def test_a_refresh_reads_what_it_knows_and_marks_it(aws: type[Pricing], workspace: Workspace) -> None:
    done = refresh_prices(workspace, "eu-central-1", NOON)
    book = PriceBook.load(workspace, "eu-central-1")
    usd = {(p.service, p.item): (p.usd, p.verified) for p in book if p.region == "eu-central-1"}
    assert usd["fargate", "vcpu-hour"] == (0.05, True)
    assert usd["fargate", "gib-hour"] == (0.006, True)
    assert usd["fargate-spot", "vcpu-hour"] == (0.016, False)  # not told: 32 % of the price on demand
    assert usd["ec2", "g5.xlarge on-demand hour"] == (1.3, True)
    assert usd["ec2", "g5.xlarge spot hour"] == (0.00001, True)  # what moto says of every machine
    assert usd["s3", "put 1000"] == (0.0054, True)
    assert usd["lambda", "request million"] == (0.2, True)
    assert usd["cloudwatch", "logs gib"] == (0.63, False)  # not told: as it was
    assert book.price("fargate", "vcpu-hour").date == "2026-11-24"
    assert PriceBook.load(workspace, "us-east-1").price("fargate", "vcpu-hour").usd == 0.04048
    assert "Not verified" in str(done)
    assert "fargate-spot vcpu-hour" in done.unverified
    filters = [{f["Field"]: f["Value"] for f in asked["Filters"]} for asked in aws.seen]
    assert all(found["regionCode"] == "eu-central-1" for found in filters)
    assert any(found.get("operatingSystem") == "Linux" and found["tenancy"] == "Shared" for found in filters)
    assert refresh_prices(workspace, "eu-central-1", NOON).changed == 0


def test_a_refresh_that_is_refused_changes_nothing(
    aws: type[Pricing], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "status", 400)
    rights = "pricing:GetProducts and ec2:DescribeSpotPriceHistory"
    with pytest.raises(CloudError, match=rf"(?s)does not allow you to read the prices with {rights}.*not authorized"):
        refresh_prices(workspace, "eu-central-1")
    monkeypatch.setattr(aws, "status", 200)
    monkeypatch.setitem(ANSWERS, "AmazonAthena", ["<html>busy</html>"])
    with pytest.raises(CloudError, match="AmazonAthena cannot be understood"):
        refresh_prices(workspace, "eu-central-1")
    assert not Path(workspace.uri("prices.json")).exists()


def test_every_error_here_says_what_to_do() -> None:
    assert issubclass(BudgetError, SlmlError)
    assert BudgetError.exit_code == 1
