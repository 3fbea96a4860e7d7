"""slml on the emulated cloud, through the commands that people type.

What is asked of AWS here is asked by the owner of the account only to look (has it the right status?) or to do what AWS
itself does (take a machine away). Everything else goes through `slml`, with the rights of a project's role."""

import ast
import json
import threading
import time

import boto3
import botocore
import iam
import nbformat
import pytest
from emulated import ACCOUNT, BUCKET, FOLDER, REGION, STACK

HELLO = [
    "seconds: float = 0.0  # to sleep\ntext: str = 'hello'  # to say\nfactor: int = 1  # of the result",
    "import time\nprint(text)\ntime.sleep(seconds)",
    "from slml import record\nrecord(metrics={'loss': 1 / factor}, outputs={'twice': 2 * factor})",
]
BROKEN = ["rows: int = 0  # to divide by", "print('so far so good')", "1 / rows"]
HUNGRY = ["gib: int = 1  # of memory to take", "kept = [b'x' * 2**20 for _ in range(gib * 1024)]"]
NEEDY = [
    "before: int = 0  # what the step before has found",
    "from pathlib import Path\nfrom slml import record\nrecord(outputs={'text': Path('note.txt').read_text()})",
]
STEPS = """
name: steps
parameters: {factor: {type: int, default: 3, help: a number}}
steps:
  first: {notebook: hello.ipynb, parameters: {factor: "${factor}"}}
  second: {notebook: needy.ipynb, parameters: {before: "${first.twice}"}}
summary: {text: "${second.text}"}
"""


def notebook(project, name, cells):
    """Write a job notebook into a project's folder; the first cell holds the parameters."""
    made = [nbformat.v4.new_code_cell(source) for source in cells]
    made[0].metadata.tags = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=made), project.folder / name)
    return name


def read(uri):
    """An object, as the owner of the bucket reads it."""
    return boto3.client("s3").get_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))["Body"].read()


def record(project, id):
    """The record of a run."""
    return json.loads(read(f"s3://{BUCKET}/{project}/runs/{id}/run.json"))


def remote(project, id):
    """The Batch job of a run."""
    return read(f"s3://{BUCKET}/{project}/runs/{id}/remote.txt").decode()


def described(id):
    """A Batch job, as Batch describes it."""
    return boto3.client("batch").describe_jobs(jobs=[id])["jobs"][0]


def until(found, seconds=240):
    """What a question answers, once it answers anything."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.3)
    return answer


def started(project, *words):
    """The id of a run that was submitted and left alone."""
    return project.slml("run", *words, "--on", "batch", "--no-wait").split()[-1]


def ended(project, name, id, seconds=300):
    """The record of a run, once `slml` says that it has ended."""
    until(lambda: record(name, id)["status"] in ("done", "failed", "cancelled"), seconds)
    return record(name, id)


def test_the_stack(stack, owner):
    for said in ("Batch::JobQueue", "Glue::Database", "SageMaker::MlflowApp", "The stack slml is ready"):
        assert said in stack
    assert "nothing but what is stored" in owner.slml("aws", "status")
    assert boto3.client("glue").get_database(Name="taxi")
    assert boto3.client("athena").get_work_group(WorkGroup="slml-taxi")
    queue = boto3.client("batch").describe_job_queues(jobQueues=["slml-cpu"])["jobQueues"][0]
    assert queue["schedulingPolicyArn"].endswith("scheduling-policy/slml-fair")


@pytest.fixture(scope="module")
def pipeline(taxi):
    """The worked example on Batch, once."""
    return taxi.json(
        "pipeline", "run", "pipelines/taxi.yaml", "--on", "batch", "-p", "source=data/*.txt", "-p", "epochs=2"
    )


def test_the_worked_example_from_raw_trips_to_a_registered_model(pipeline, taxi):
    found = pipeline
    assert (found["rows_in"], found["version"]) == (5000, "taxi@1")
    assert found["rows_kept"] + found["rows_quarantined"] == 5000
    runs = found["runs"]
    assert all(described(remote("taxi", id))["status"] == "SUCCEEDED" for id in runs.values())
    tables = boto3.client("glue").get_tables(DatabaseName="taxi")["TableList"]
    assert {"taxi_raw", "taxi_trips", "taxi_quarantine"} <= {table["Name"] for table in tables}
    assert all(table["Parameters"]["metadata_location"].startswith(f"s3://{BUCKET}/taxi/") for table in tables)
    count = taxi.slml("query", "select count(*) as n from taxi_trips")
    assert f"{found['rows_kept']}" in count.replace(",", "")
    assert "done" in taxi.slml("why", runs["train"])
    assert "Executing Cell" in taxi.slml("logs", runs["train"])
    assert len(list(filter(None, (record("taxi", id)["tracking"] for id in runs.values())))) == 6


def test_a_second_call_runs_nothing(pipeline, taxi):
    begin = time.monotonic()
    again = taxi.json(
        "pipeline", "run", "pipelines/taxi.yaml", "--on", "batch", "-p", "source=data/*.txt", "-p", "epochs=2"
    )
    assert again["runs"] == pipeline["runs"]
    assert time.monotonic() - begin < 60


def test_what_it_cost(pipeline, taxi):
    found = taxi.json("cost", "--by", "job")
    lines = {line["name"]: line for line in found["lines"]}
    assert {"ingest", "audit", "split", "train", "evaluate", "register"} <= set(lines)
    assert 0 < found["total"]["paid"] < 1
    assert "taxi@1" in taxi.slml("cost", "--by", "version")


def test_a_training_whose_machine_is_taken_away_goes_on_to_the_same_weights(pipeline, taxi):
    outputs = {step: record("taxi", id)["outputs"] for step, id in pipeline["runs"].items()}
    given = {"split": outputs["split"]["split"], "contract": outputs["audit"]["contract"]}
    given |= {"epochs": 60, "patience": 60, "width": 384, "batch_rows": 64}
    words = ["nbs/jobs/train.ipynb", *(word for name, value in given.items() for word in ("-p", f"{name}={value}"))]
    s3 = boto3.client("s3")

    def saved(id):
        place = f"taxi/checkpoints/{record('taxi', id)['fingerprint'][:16]}"
        return s3.list_objects_v2(Bucket=BUCKET, Prefix=place).get("KeyCount")

    id = started(taxi, *words)
    until(lambda: saved(id))
    why = "Host EC2 (instance i-0) terminated."
    boto3.client("batch").terminate_job(jobId=remote("taxi", id), reason=why)
    until(lambda: record("taxi", id)["status"] == "done", 300)
    run = record("taxi", id)
    assert run["attempt"] == 2
    job = until(lambda: (job := described(remote("taxi", id)))["status"] == "SUCCEEDED" and job)
    assert [attempt["container"]["exitCode"] for attempt in job["attempts"]] == [143, 0]
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=f"taxi/runs/{id}/executed-1.ipynb")["KeyCount"] == 1
    straight = taxi.json("run", *words, "--on", "batch")
    assert straight["id"] != id
    assert run["metrics"] == {**record("taxi", straight["id"])["metrics"], **_times(run["metrics"])}
    assert "attempt" in taxi.slml("why", id)


def _times(metrics):
    return {name: value for name, value in metrics.items() if "second" in name}


def test_a_sweep_is_one_array(taxi):
    name = notebook(taxi, "hello.ipynb", HELLO)
    found = taxi.json("sweep", name, "-s", "factor=1,2,4", "--on", "batch")
    ids = [run["id"] for run in found]
    assert [record("taxi", id)["parameters"]["factor"] for id in ids] == [4, 2, 1]  # the lowest loss first
    assert len({remote("taxi", id).partition(":")[0] for id in ids}) == 1


def test_a_failing_notebook_is_kept_and_told(taxi):
    name = notebook(taxi, "broken.ipynb", BROKEN)
    taxi.slml("run", name, "--on", "batch", code=1)
    assert "ZeroDivisionError" in taxi.said
    id = next(run["id"] for run in taxi.json("runs") if run["job"] == "broken")
    run = record("taxi", id)
    assert (run["status"], run["error"]["type"], run["attempt"]) == ("failed", "ZeroDivisionError", 1)
    cells = json.loads(read(run["executed"]))["cells"]
    marked = [cell["source"] for cell in cells if cell["metadata"].get("papermill", {}).get("exception")]
    assert ["".join(source) for source in marked] == ["1 / rows"]
    assert "so far so good" in taxi.slml("logs", id)
    assert "ZeroDivisionError" in taxi.slml("why", id)
    assert len(described(remote("taxi", id))["attempts"]) == 1  # not tried again


def test_a_job_that_runs_out_of_memory_is_named_so(taxi):
    name = notebook(taxi, "hungry.ipynb", HUNGRY)
    taxi.slml("run", name, "-p", "gib=8", "--memory", "2", "--on", "batch", code=1)
    id = next(run["id"] for run in taxi.json("runs") if run["job"] == "hungry")
    run = record("taxi", id)
    assert (run["error"]["type"], run["error"]["cell"] > 0, run["attempt"]) == ("OutOfMemory", True, 1)
    assert "memory" in taxi.slml("why", id)


def test_a_pipeline_goes_on_where_it_failed(taxi):
    notebook(taxi, "hello.ipynb", HELLO)
    notebook(taxi, "needy.ipynb", NEEDY)
    (taxi.folder / "steps.yaml").write_text(STEPS)
    taxi.slml("pipeline", "run", "steps.yaml", "--on", "batch", code=1)
    assert "note.txt" in taxi.said
    (taxi.folder / "note.txt").write_text("found")
    found = taxi.json("pipeline", "run", "steps.yaml", "--on", "batch")
    assert found["text"] == "found"
    first, second = (record("taxi", found["runs"][step]) for step in ("first", "second"))
    assert first["created"] < second["created"]
    runs = [run for run in taxi.json("runs") if run["job"] in ("hello", "needy")]
    assert sum(run["job"] == "needy" and run["status"] == "failed" for run in runs) == 1
    assert second["parameters"]["before"] == 6


def test_a_job_without_a_machine_says_why_and_can_be_cancelled(taxi):
    name = notebook(taxi, "hello.ipynb", HELLO)
    id = started(taxi, name, "--gpus", "1")
    until(lambda: described(remote("taxi", id)).get("statusReason"))
    assert "capacity" in taxi.slml("why", id).lower()
    taxi.slml("cancel", id)
    assert (record("taxi", id)["status"], described(remote("taxi", id))["status"]) == ("cancelled", "FAILED")
    running = started(taxi, name, "-p", "seconds=300")
    until(lambda: record("taxi", running)["status"] == "running")
    begin = time.monotonic()
    taxi.slml("cancel", running)
    assert time.monotonic() - begin < 45
    assert record("taxi", running)["status"] == "cancelled"
    assert described(remote("taxi", running))["status"] == "FAILED"


def test_what_can_be_known_is_said_before_the_queue(taxi):
    name = notebook(taxi, "hello.ipynb", HELLO)
    before = boto3.client("batch").list_jobs(jobQueue="slml-cpu", filters=[{"name": "JOB_NAME", "values": ["*"]}])
    for words, said in ((["-p", "sedonds=1"], "seconds"), (["--cores", "64"], "Fargate")):
        taxi.slml("run", name, *words, "--on", "batch", code=2)
        assert said in taxi.said
    after = boto3.client("batch").list_jobs(jobQueue="slml-cpu", filters=[{"name": "JOB_NAME", "values": ["*"]}])
    assert len(after["jobSummaryList"]) == len(before["jobSummaryList"])


def test_a_budget_refuses_what_would_pass_it(taxi):
    name = notebook(taxi, "hello.ipynb", HELLO)
    taxi.slml("cost", "budget", "0.000001")
    try:
        taxi.slml("run", name, "--on", "batch", code=1)
        assert "budget" in taxi.said.lower()
    finally:
        taxi.slml("cost", "budget", "none")


def test_two_projects_at_once_do_not_reach_each_other(pipeline, taxi, other):
    name = notebook(other, "hello.ipynb", HELLO)
    notebook(taxi, "hello.ipynb", HELLO)
    both = {}
    threads = [
        threading.Thread(
            target=lambda p=p, n=n: both.update({n: p.json("run", name, "-p", f"text={n}", "--on", "batch")})
        )
        for p, n in ((taxi, "taxi"), (other, "other"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(both) == {"taxi", "other"}
    theirs, own = both["taxi"]["id"], both["other"]["id"]
    s3, glue, batch, logs = (other.client(service) for service in ("s3", "glue", "batch", "logs"))
    assert s3.get_object(Bucket=BUCKET, Key=f"other/runs/{own}/run.json")
    key = f"taxi/runs/{theirs}/run.json"
    container = described(remote("taxi", theirs))["container"]
    ask = {"jobName": "theft", "jobQueue": "slml-cpu", "shareIdentifier": "otherXeve", "tags": {"project": "other"}}
    schedule = {"FlexibleTimeWindow": {"Mode": "OFF"}, "ScheduleExpression": "rate(1 day)", "GroupName": STACK}
    target = {"Arn": "arn:aws:scheduler:::aws-sdk:batch:submitJob", "Input": "{}"}
    role = f"arn:aws:iam::{ACCOUNT}:role/slml-"
    create = other.client("scheduler").create_schedule
    for refused in (
        lambda: s3.get_object(Bucket=BUCKET, Key=key),
        lambda: s3.put_object(Bucket=BUCKET, Key=key, Body=b""),
        lambda: s3.delete_object(Bucket=BUCKET, Key=key),
        lambda: s3.list_objects_v2(Bucket=BUCKET, Prefix="taxi/"),
        lambda: s3.copy_object(Bucket=BUCKET, Key="other/stolen", CopySource=f"{BUCKET}/{key}"),
        lambda: glue.get_tables(DatabaseName="taxi"),
        lambda: glue.get_table(DatabaseName="taxi", Name="taxi_trips"),
        lambda: glue.delete_table(DatabaseName="taxi", Name="taxi_trips"),
        lambda: batch.submit_job(**ask, jobDefinition="slml-taxi-cpu"),
        lambda: batch.submit_job(**{**ask, "shareIdentifier": "taxiXada"}, jobDefinition="slml-other-cpu"),
        lambda: batch.submit_job(**{**ask, "tags": {"project": "taxi"}}, jobDefinition="slml-other-cpu"),
        lambda: batch.terminate_job(jobId=remote("taxi", theirs), reason="mine"),
        lambda: logs.get_log_events(logGroupName=f"/slml/{STACK}", logStreamName=container["logStreamName"]),
        lambda: other.client("athena").start_query_execution(QueryString="select 1", WorkGroup="slml-taxi"),
        lambda: create(Name="taxi-nightly", Target={**target, "RoleArn": f"{role}other"}, **schedule),
        lambda: create(Name="other-nightly", Target={**target, "RoleArn": f"{role}taxi"}, **schedule),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            refused()
    theft = (
        ("[batch]", f"s3://{BUCKET}/other", 'project = "other"'),
        ("[theft]", f"s3://{BUCKET}/taxi", 'project = "taxi"'),
    )
    text = (other.folder / "slml.toml").read_text()
    copy = text
    for mine, yours in zip(*theft, strict=True):
        copy = copy.replace(mine, yours)
    (other.folder / "slml.toml").write_text(f"{text}\n{copy}")
    other.environment = {**other.environment, "SLML_PROFILE": "theft"}
    try:
        for words in (
            ["query", "select count(*) from taxi_trips"],
            ["show", theirs],
            ["logs", theirs],
            ["cancel", theirs],
            ["cost", "budget", "1000000"],
            ["run", name, "--on", "theft"],
        ):
            with pytest.raises(AssertionError, match=r": [12]\n"):
                other.slml(*words)
    finally:
        other.environment = {**other.environment, "SLML_PROFILE": "batch"}
    # MLflow's server here knows no rights: what the App's would refuse, the role's policies say.
    policies = [ast.literal_eval(text) if isinstance(text, str) else text for text in _policies("slml-other")]
    rules = [rule for policy in policies for rule in policy["Statement"]]
    app = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:mlflow-app/app-slml-"
    for action in ("sagemaker-mlflow:GetRun", "sagemaker-mlflow:CreateModelVersion", "sagemaker:CallMlflowAppApi"):
        assert not iam.allowed(rules, action, f"{app}taxi", {})
    refusals = (FOLDER / "refused.txt").read_text().splitlines()
    assert refusals
    assert not [line for line in refusals if line.startswith("slml-taxi ")], "refused something in its own house"


def _policies(role):
    client = boto3.client("iam")
    names = client.list_role_policies(RoleName=role)["PolicyNames"]
    return [client.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]


def test_a_schedule_asks_for_what_batch_takes(taxi):
    notebook(taxi, "hello.ipynb", HELLO)
    notebook(taxi, "needy.ipynb", NEEDY)
    (taxi.folder / "note.txt").write_text("found")
    (taxi.folder / "steps.yaml").write_text(STEPS)
    taxi.slml("pipeline", "schedule", "steps.yaml", "0 6 * * *", "--on", "batch")
    scheduler = boto3.client("scheduler")
    name = scheduler.list_schedules(GroupName=STACK)["Schedules"][0]["Name"]
    found = scheduler.get_schedule(GroupName=STACK, Name=name)
    target = found["Target"]
    assert target["RoleArn"].endswith("role/slml-taxi")
    asked = json.loads(target["Input"])  # what EventBridge Scheduler hands to SubmitJob, with capitals
    lowered = {key[0].lower() + key[1:]: value for key, value in asked.items()}
    del lowered
    job = _fire(taxi, target)
    until(lambda: described(job)["status"] in ("SUCCEEDED", "FAILED"), 300)
    assert described(job)["status"] == "SUCCEEDED"


def _fire(project, target):
    """What the scheduler does at its time: SubmitJob with the target's input, as its role."""

    def small(value):
        if isinstance(value, dict):
            return {key[:1].lower() + key[1:]: small(one) for key, one in value.items()}
        return [small(one) for one in value] if isinstance(value, list) else value

    return project.client("batch").submit_job(**small(json.loads(target["Input"])))["jobId"]


def test_one_model_on_two_nodes(pipeline, taxi):
    outputs = {step: record("taxi", id)["outputs"] for step, id in pipeline["runs"].items()}
    given = {"split": outputs["split"]["split"], "contract": outputs["audit"]["contract"], "epochs": 2}
    given |= {"dropout": 0.0}  # each rank draws its own, which is another model though not a worse one
    words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    ids = [
        taxi.json("run", "nbs/jobs/train.ipynb", *words, "--nodes", str(nodes), "--on", "batch")["id"]
        for nodes in (1, 2)
    ]
    one, two = (record("taxi", id) for id in ids)
    assert (one["status"], two["status"]) == ("done", "done")
    errors = {name: value for name, value in one["metrics"].items() if "loss" in name or "rmse" in name}
    assert errors
    for name, value in errors.items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-3)


def test_the_stack_goes_and_the_data_stays(pipeline, owner, taxi):
    said = owner.slml("aws", "destroy", "--yes") + owner.said
    assert f"keeps the bucket {BUCKET}" in said
    assert read(f"s3://{BUCKET}/taxi/runs/{pipeline['runs']['train']}/run.json")
