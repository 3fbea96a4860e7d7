"""Jobs on AWS Batch: what is asked for, what is refused before the queue, and what Batch's answers come to.

AWS is moto's server, which keeps Batch's books and starts no container; where a job has to run, the test is the
container.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import boto3
import nbformat
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, NoRegionError
from botocore.session import get_session
from botocore.validate import validate_parameters
from moto.core.config import default_user_config
from moto.server import ThreadedMotoServer

from slml.aws.account import connect_account
from slml.costs.budget import set_budget
from slml.errors import BudgetError, CloudError, SubmissionError, UsageError
from slml.execution.entry import find_run
from slml.runners.batch import runner as batch
from slml.runners.batch.client import AwsClient, stack_region
from slml.runners.batch.errors import aws_errors, is_transient_aws_error
from slml.runners.batch.names import bucket_name
from slml.runners.batch.queries import JobLog
from slml.runners.batch.request import RETRY, job_request, join_request
from slml.runners.batch.runner import BatchRunner, BatchRuns
from slml.runners.open import open_runner
from slml.runners.runner import Destination, prepare_runs
from slml.runs import notebooks
from slml.runs.archive import pack_project
from slml.runs.environment import workspace_environment
from slml.runs.job import Job, job
from slml.runs.resources import Resources
from slml.runs.run import Failure, Run, list_runs, read_run, save_run
from slml.storage import read_text, write_text
from slml.workspace import Workspace

ACCOUNT, REGION = "123456789012", "eu-central-1"
BUCKET = bucket_name("slml", ACCOUNT, REGION)
CLOUD = Workspace(
    root=f"s3://{BUCKET}/taxi", project="taxi", user="ada", runner="batch", catalog_uri="glue", tracking_uri="", cores=2
)


# --- the request ---


def record(**given: object) -> Run:
    run = Run("20260101-120000-000-train-4f2a", "train", "/home/ada/fares/train.ipynb", {"rows": "x" * 100_000})
    folder = f"{CLOUD.root}/runs/{run.id}"
    run = replace(run, project="taxi", user="ada", runner="batch", folder=folder, executed=f"{folder}/executed.ipynb")
    return replace(run, archive=f"{CLOUD.root}/code/ab12.tar.gz", cwd="nbs/jobs", **given)


ENVIRONMENT = workspace_environment(CLOUD) | {
    "SLML_ARCHIVE": f"s3://{BUCKET}/taxi/code/ab12.tar.gz",
    "SLML_CORES": "2",
    "SLML_CWD": "nbs/jobs",
    "SLML_RUN": f"s3://{BUCKET}/taxi/runs/20260101-120000-000-train-4f2a",
}


def environment(**changed: str) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in sorted((ENVIRONMENT | changed).items())]


def needs(vcpu: int, mib: int, gpu: int = 0) -> list[dict[str, str]]:
    found = {"VCPU": vcpu, "MEMORY": mib} | ({"GPU": gpu} if gpu else {})
    return [{"type": name, "value": str(value)} for name, value in found.items()]


COMMON = {
    "jobName": "20260101-120000-000-train-4f2a",
    "shareIdentifier": "taxiXada",
    "schedulingPriorityOverride": 1,
    "retryStrategy": {
        "attempts": 3,
        "evaluateOnExit": [
            {"onStatusReason": "Host EC2*", "action": "RETRY"},
            {"onStatusReason": "Your Spot Task was interrupted*", "action": "RETRY"},
            {"onReason": "AGENT*", "action": "RETRY"},
            {"onExitCode": "143", "action": "RETRY"},
            {"onReason": "*", "action": "EXIT"},
        ],
    },
    "timeout": {"attemptDurationSeconds": 86_700},
    "tags": {"project": "taxi", "user": "ada", "run": "20260101-120000-000-train-4f2a"},
    "propagateTags": True,
    "dependsOn": [],
}


def fits(asked: dict) -> dict:
    """The request, which AWS's own description of SubmitJob takes."""
    validate_parameters(asked, get_session().get_service_model("batch").operation_model("SubmitJob").input_shape)
    assert len(json.dumps(asked)) < 10_000, "what is long travels through storage"
    return asked


def test_a_job_on_cpus_goes_to_fargate() -> None:
    assert fits(job_request(record(resources=Resources(cores=2)), CLOUD)) == {
        **COMMON,
        "jobQueue": "slml-cpu",
        "jobDefinition": "slml-taxi-cpu",
        "containerOverrides": {"resourceRequirements": needs(2, 8192), "environment": environment()},
    }


def test_a_gpu_without_spot_goes_to_ec2_on_demand() -> None:
    run = record(resources=Resources(cores=4, gpus=1, spot=False, minutes=60, attempts=1), pipeline="fares")
    assert fits(job_request(run, CLOUD, ["a", "b:2"])) == {
        **COMMON,
        "jobQueue": "slml-gpu-ondemand",
        "jobDefinition": "slml-taxi-gpu",
        "retryStrategy": {"attempts": 1, "evaluateOnExit": [dict(rule) for rule in RETRY]},
        "timeout": {"attemptDurationSeconds": 3900},
        "tags": {**COMMON["tags"], "pipeline": "fares"},
        "dependsOn": [{"jobId": "a"}, {"jobId": "b"}],
        "containerOverrides": {
            "resourceRequirements": needs(4, 14745, 1),
            "environment": environment(SLML_CORES="4"),
        },
    }


def test_several_nodes_are_one_job() -> None:
    run = record(resources=Resources(cores=8, memory=48, gpus=1, nodes=3, processes=1))
    container = {"resourceRequirements": needs(8, 49152, 1), "environment": environment(SLML_CORES="8")}
    assert fits(job_request(run, CLOUD)) == {
        **COMMON,
        "jobQueue": "slml-nodes",
        "jobDefinition": "slml-taxi-nodes",
        "nodeOverrides": {
            "numNodes": 3,
            "nodePropertyOverrides": [{"targetNodes": "0:", "containerOverrides": container}],
        },
    }


def test_an_array_is_told_where_its_list_is() -> None:
    run, place = record(resources=Resources(cores=2)), f"{CLOUD.root}/runs/x/array.txt"
    assert fits(job_request(run, CLOUD, (), place, 10_000)) == {
        **COMMON,
        "jobQueue": "slml-cpu",
        "jobDefinition": "slml-taxi-cpu",
        "containerOverrides": {"resourceRequirements": needs(2, 8192), "environment": environment(SLML_RUN=place)},
        "arrayProperties": {"size": 10_000},
    }


def test_a_job_that_joins_others() -> None:
    least = [{"type": "VCPU", "value": "0.25"}, {"type": "MEMORY", "value": "512"}]
    assert fits(join_request("r", ["a"], CLOUD)) == {
        **COMMON,
        "jobName": "join-r",
        "jobQueue": "slml-cpu",
        "jobDefinition": "slml-taxi-cpu",
        "timeout": {"attemptDurationSeconds": 300},
        "tags": {"project": "taxi", "user": "ada", "run": "r"},
        "dependsOn": [{"jobId": "a"}],
        "containerOverrides": {"command": ["true"], "resourceRequirements": least, "environment": []},
    }


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"cores": 17}, "16 cores"),
        ({"memory": 121.0}, "120 GiB"),
        ({"cores": 1, "attempts": 11}, "at most 10 attempts"),
    ],
)
def test_what_batch_has_not_is_refused(given: dict, part: str) -> None:
    with pytest.raises(SubmissionError, match=part):
        job_request(record(resources=Resources(**given)), CLOUD)


# --- an emulated AWS, with the stack as the template makes it ---


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    before = default_user_config["batch"]["use_docker"]
    default_user_config["batch"]["use_docker"] = False
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    told = {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()), "AWS_ACCESS_KEY_ID": "key"}
    told |= {"AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": REGION}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        make_stack()
        yield
    server.stop()
    default_user_config["batch"]["use_docker"] = before


def make_stack() -> None:
    s3, ec2, iam, aws = (boto3.client(name) for name in ("s3", "ec2", "iam", "batch"))
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    role = iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    place = {"subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]], "maxvCpus": 16}
    place |= {"securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]], "type": "FARGATE"}
    for name in ("cpu", "gpu"):  # a "gpu" queue on Fargate is what a stack must not have
        aws.create_compute_environment(
            computeEnvironmentName=f"slml-{name}", type="MANAGED", computeResources=place, serviceRole=role
        )
        order = [{"order": 1, "computeEnvironment": f"slml-{name}"}]
        aws.create_job_queue(jobQueueName=f"slml-{name}", priority=1, computeEnvironmentOrder=order, state="ENABLED")
    aws.create_job_queue(jobQueueName="slml-gpu-ondemand", priority=1, computeEnvironmentOrder=order, state="DISABLED")
    for name in ("taxi-cpu", "taxi-gpu", "noimage-cpu"):
        image = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/slml:cpu" if name.startswith("noimage") else "slml:cpu"
        container = {"image": image, "command": ["python"], "resourceRequirements": needs(1, 4096)}
        aws.register_job_definition(jobDefinitionName=f"slml-{name}", type="container", containerProperties=container)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a job in it, as the current folder."""
    (tmp_path / "slml.toml").touch()
    (tmp_path / "rate.py").write_text("RATE = 2.5\n")
    source = (
        "import rate\nfrom slml.runs.record import record\nrecord({'fare': rows * rate.RATE})\nprint('hello', rows)"
    )
    cells = [nbformat.v4.new_code_cell("rows: int = 10  # rows", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell("import sys\nsys.path.insert(0, '.')"), nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "fare.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runner(aws: None, project: Path) -> BatchRunner:
    return BatchRunner(CLOUD.model_copy(update={"root": f"s3://{BUCKET}/{project.name}"}))


def described(run: Run) -> dict:
    return boto3.client("batch").describe_jobs(jobs=[run.remote])["jobs"][0]


def container(run: Run, **more: str) -> subprocess.CompletedProcess:
    """What the container of a job does, as a process of this machine."""
    told = {each["name"]: each["value"] for each in described(run)["container"]["environment"]}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLML_")}
    command = [sys.executable, "-m", "slml.execution.entry"]
    return subprocess.run(command, env=inherited | told | more, cwd="/", capture_output=True, text=True, timeout=120)


def record_of(runner: BatchRunner, id: str) -> Run:
    run = read_run(f"{runner.workspace.root}/runs/{id}")
    return replace(run, remote=read_text(f"{run.folder}/remote.txt"))


def test_a_job_runs_from_its_request_alone(runner: BatchRunner) -> None:
    id = runner.submit(job("fare.ipynb", {"rows": "30"}))
    run = record_of(runner, id)
    assert (run.status, run.runner, run.cwd, run.host) == ("waiting", "batch", ".", "")
    assert run.archive.startswith(f"{runner.workspace.root}/code/")
    assert described(run)["tags"] == {"project": "taxi", "user": "ada", "run": id}
    done = container(run)
    assert done.returncode == 0, done.stdout + done.stderr
    run = runner.wait(id)
    assert (run.status, run.metrics, run.attempt) == ("done", {"fare": 75.0}, 1)
    assert "It is done" in runner.why(id).why
    runner.cancel(id)
    assert runner.status(id) == "done", "a run that has ended stays as it is"


def test_a_notebook_that_ships_with_slml_runs_in_the_project(
    runner: BatchRunner, project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path_factory.mktemp("site-packages") / "fare.ipynb"
    (project / "fare.ipynb").rename(installed)
    monkeypatch.setattr(notebooks, "packaged_notebooks", lambda: {"fare": installed})
    id = runner.submit(job("fare", {"rows": "30"}))
    assert "fare.ipynb" not in pack_project(project).files
    installed.unlink()  # it is not where the job runs; the run has its text, and the archive the project's code
    done = container(record_of(runner, id))
    assert done.returncode == 0, done.stdout + done.stderr
    run = runner.wait(id)
    assert (run.job, run.status, run.metrics) == ("fare", "done", {"fare": 75.0})


def test_the_name_of_the_runner_gives_it(aws: None) -> None:
    assert isinstance(open_runner(CLOUD), BatchRunner)


def test_an_array_is_one_job_of_batch(runner: BatchRunner) -> None:
    ids = runner.submit_array([job("fare.ipynb", {"rows": n}) for n in range(5)])
    runs = [record_of(runner, id) for id in ids]
    parent = runs[0].remote.partition(":")[0]
    assert [run.remote for run in runs] == [f"{parent}:{n}" for n in range(5)]
    assert [run.parameters["rows"] for run in runs] == list(range(5))
    told = {each["name"]: each["value"] for each in described(runs[0])["container"]["environment"]}
    assert [find_run(told | {"AWS_BATCH_JOB_ARRAY_INDEX": str(n)}) for n in range(5)] == [run.folder for run in runs]
    with pytest.raises(UsageError, match="same resources"):
        runner.submit_array([job("fare.ipynb", {}), job("fare.ipynb", {}, Resources(cores=2))])


def test_the_next_step_waits_for_the_one_before(runner: BatchRunner) -> None:
    class Open(AwsClient):
        def job(self, id: str, age: float = 0.0) -> Mapping:
            return {"status": "RUNNABLE"}

    runner = BatchRunner(runner.workspace, Open(REGION))
    first = runner.submit(job("fare.ipynb", {}), pipeline="fares")
    then = runner.submit(job("fare.ipynb", {"rows": f"${{{first}.rows}}"}), after=[first], pipeline="fares")
    assert described(record_of(runner, then))["dependsOn"] == [{"jobId": record_of(runner, first).remote}]
    assert record_of(runner, then).after == (first,)


def test_a_step_after_a_failed_one_is_not_submitted(runner: BatchRunner) -> None:
    first = runner.submit(job("fare.ipynb", {}))
    assert runner.wait(first).error.type == "ProcessGone", "Batch calls it done, and there is no result"
    then = runner.submit(job("fare.ipynb", {}), after=[first])
    run = runner.wait(then)
    assert (run.status, run.error.type) == ("cancelled", "Skipped")
    assert first in run.error.message
    assert "that one first" in runner.why(then).todo


def test_more_than_20_needs_are_joined(runner: BatchRunner) -> None:
    class Counting(AwsClient):
        asked: list[dict] = []  # noqa: RUF012

        def call(self, service: str, action: str, **arguments: object) -> dict:
            self.asked.append(fits(arguments))
            return {"jobId": f"j{len(self.asked)}"}

    runs, service = [replace(record(), folder=f"memory://join/{n}") for n in range(1)], Counting()
    batch.submit_to_batch(runs, [str(n) for n in range(450)], CLOUD, service)
    sizes = [len(asked["dependsOn"]) for asked in service.asked]
    assert sizes == [20] * 22 + [10] + [20, 3] + [2]
    assert service.asked[-1]["dependsOn"] == [{"jobId": "j24"}, {"jobId": "j25"}]
    assert read_text("memory://join/0/remote.txt") == "j26"


# --- refused before the queue ---


def test_everything_wrong_is_told_at_once(aws: None, project: Path) -> None:
    workspace = Workspace(root=str(project / ".slml"), project="taxi", stack="SLML")
    with pytest.raises(SubmissionError) as refused:
        BatchRunner(workspace).submit(job("fare.ipynb", {}, Resources(cores=64)))
    said = str(refused.value)
    assert all(part in said for part in ("cannot reach the root", "--on batch", "'SLML'", "16 cores"))
    assert not (project / ".slml").exists()


@pytest.mark.parametrize(
    ("changed", "resources", "part"),
    [
        ({}, Resources(gpus=1), "Fargate cannot give"),
        ({}, Resources(gpus=1, spot=False), "slml-gpu-ondemand is disabled"),
        ({}, Resources(nodes=2), "no queue slml-nodes"),
        ({"stack": "other"}, Resources(), "no queue other-cpu"),
        ({"project": "fares"}, Resources(), "does not know the project fares"),
        ({"project": "noimage"}, Resources(), "slml:cpu is not there: push it"),
        ({"image": "mine:1"}, Resources(), "mine:1"),
        ({"tracking_uri": "sqlite:////home/mlflow.db"}, Resources(), "cannot reach tracking_uri"),
    ],
)
def test_what_nobody_has_is_refused(runner: BatchRunner, changed: dict, resources: Resources, part: str) -> None:
    workspace = runner.workspace.model_copy(update=changed)
    with pytest.raises(SubmissionError, match=part):
        BatchRunner(workspace).submit(job("fare.ipynb", {}, resources))
    assert list_runs(workspace) == [], "nothing is left behind"


def test_more_vcpus_than_the_stack_may_have_are_refused(runner: BatchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = AwsClient.call

    def small(self: AwsClient, service: str, action: str, **arguments: object) -> dict:
        answer = ask(self, service, action, **arguments)
        for each in answer.get("computeEnvironments", ()):
            each["computeResources"]["maxvCpus"] = 4
        return answer

    monkeypatch.setattr(AwsClient, "call", small)
    with pytest.raises(SubmissionError, match="more than the 4 vCPUs"):
        runner.submit(job("fare.ipynb", {}, Resources(cores=8)))


def test_a_missing_input_is_refused(runner: BatchRunner, tmp_path_factory: pytest.TempPathFactory) -> None:
    cells = [nbformat.v4.new_code_cell("source: str = ''  # a file", metadata={"tags": ["parameters"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), "read.ipynb")
    outside = tmp_path_factory.mktemp("outside") / "trips.csv"
    outside.write_text("a\n1\n")
    with pytest.raises(SubmissionError, match="outside of the project"):
        runner.submit(job("read.ipynb", {"source": str(outside)}))


def test_code_over_the_limit_is_refused(runner: BatchRunner, project: Path) -> None:
    with open(project / "trips.bin", "wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(SubmissionError, match="too large to travel"):
        runner.submit(job("fare.ipynb", {}))
    assert list_runs(runner.workspace) == []


def test_over_the_budget_nothing_is_submitted(runner: BatchRunner) -> None:
    set_budget(runner.workspace, 0.0)
    with pytest.raises(BudgetError):
        runner.submit(job("fare.ipynb", {}))
    assert list_runs(runner.workspace) == []


def test_who_may_not_look_may_submit(runner: BatchRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = AwsClient.call

    def guarded(self: AwsClient, service: str, action: str, **arguments: object) -> dict:
        if action.startswith("describe_job_") or action == "describe_compute_environments":
            with aws_errors(service, action):
                raise denied("AccessDeniedException", 403)
        return ask(self, service, action, **arguments)

    monkeypatch.setattr(AwsClient, "call", guarded)
    run = record_of(runner, runner.submit(job("fare.ipynb", {})))
    assert run.remote
    assert "not checked before submission: the queue" in run.notes


# --- trouble with AWS ---


def denied(code: str, status: int = 400) -> ClientError:
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "DescribeJobs")


@pytest.mark.parametrize(
    ("error", "type", "part", "passes"),
    [
        (NoCredentialsError(), UsageError, "does not know who you are", False),
        (NoRegionError(), UsageError, "No region", False),
        (denied("ExpiredTokenException"), UsageError, "login to AWS is not valid", False),
        (EndpointConnectionError(endpoint_url="https://batch"), CloudError, "could not be reached to list jobs", True),
        (denied("AccessDeniedException", 403), CloudError, "does not allow you to list jobs", False),
        (denied("TooManyRequestsException", 429), CloudError, "could not list jobs", True),
        (denied("ClientException"), CloudError, "could not list jobs", False),
    ],
)
def test_trouble_is_one_sentence(error: Exception, type: type, part: str, passes: bool) -> None:
    with pytest.raises(type, match=part) as told, aws_errors("list jobs", "look at slml aws status."):
        raise error
    assert is_transient_aws_error(told.value) == passes
    assert told.value.todo


def test_without_credentials_it_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(project / "none"))
    with pytest.raises(UsageError, match="does not know who you are") as told:
        BatchRunner(CLOUD).submit(job("fare.ipynb", {}))
    assert "aws configure" in told.value.todo
    with pytest.raises(UsageError) as alike:
        connect_account(REGION)
    assert (str(told.value), told.value.exit_code) == (str(alike.value), alike.value.exit_code), "as every command"


def test_the_region_is_in_the_name_of_the_bucket() -> None:
    assert stack_region(CLOUD) == REGION
    assert stack_region(Workspace(root="s3://mine/taxi", catalog_uri="glue", tracking_uri="")) is None


# --- how it stands, from planted answers ---


class Planted(AwsClient):
    """A Batch that says what it is told to, one answer after the other; the last one stays."""

    def __init__(self, *answers: Mapping | Exception):
        super().__init__()
        self.answers, self.ended = list(answers), []

    def job(self, id: str, age: float = 0.0) -> Mapping:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            with aws_errors("list jobs"):
                raise answer
        return answer() if callable(answer) else answer

    def call_if_allowed(self, service: str, action: str, **arguments: object) -> None:
        return None

    def end_job(self, id: str, reason: str) -> None:
        self.ended.append((id, reason))
        self.answers = [{"status": "FAILED", "statusReason": reason}]


@pytest.fixture
def submitted(project: Path) -> Run:
    """The record of a run that Batch has."""
    workspace = Workspace(root=str(project / "root"), project="taxi", user="ada", tracking_uri="")
    run = prepare_runs(
        [Job(str(project / "fare.ipynb"), {"rows": 1})], workspace, destination=Destination("batch", "s3://b/c", ".")
    )[0]
    write_text(f"{run.folder}/remote.txt", "job-1")
    return run


def planted(run: Run, *answers: Mapping | Exception | Callable) -> BatchRunner:
    root = run.folder.rpartition("/runs/")[0]
    return BatchRunner(Workspace(root=root, project="taxi", user="ada", tracking_uri=""), Planted(*answers))


EXITED = "Essential container in task exited"
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
NO_IMAGE = "CannotPullContainerError: slml:cpu: not found"


def failed(why: str, **container: object) -> dict:
    attempt = {"container": container, "statusReason": why}
    return {"status": "FAILED", "statusReason": why, "attempts": [attempt]}


@pytest.mark.parametrize(
    ("job", "status", "type"),
    [
        (failed(EXITED, exitCode=137, reason=OUT_OF_MEMORY), "failed", "OutOfMemory"),
        (failed(EXITED, exitCode=137), "failed", "OutOfMemory"),
        (failed("Job attempt duration exceeded timeout"), "failed", "TimedOut"),
        (failed("Host EC2 (instance i-0a1b2c) terminated."), "failed", "HostLost"),
        (failed("Your Spot Task was interrupted."), "failed", "HostLost"),
        (failed("Task failed to start", reason=NO_IMAGE), "failed", "ImageNotFound"),
        (failed("ECS was unable to assume the role 'arn:aws:iam::1:role/slml-taxi'"), "failed", "RoleRefused"),
        ({"status": "FAILED", "statusReason": "Dependent Job failed", "attempts": []}, "cancelled", "Skipped"),
        ({"status": "FAILED", "statusReason": "wrong sample", "isTerminated": True}, "cancelled", "Cancelled"),
        (failed(EXITED, exitCode=2), "failed", "ProcessGone"),
        ({"status": "SUCCEEDED"}, "failed", "ProcessGone"),
    ],
)  # fmt: skip
def test_what_the_job_could_not_say_is_said_for_it(submitted: Run, job: dict, status: str, type: str) -> None:
    runner = planted(submitted, job)
    run = runner.wait(submitted.id)
    assert (run.status, run.error.type) == (status, type)
    assert read_run(submitted.folder) == run, "it is in the record"
    reason = runner.why(run.id)
    assert run.error.message in reason.why
    assert reason.todo


def test_the_record_is_right_about_what_the_job_said(submitted: Run) -> None:
    save_run(replace(submitted, status="failed", error=Failure("ValueError", "no rows", 3)))
    runner = planted(submitted, failed(EXITED, exitCode=1))
    run = runner.wait(submitted.id)
    assert (run.error.type, run.error.cell) == ("ValueError", 3)
    assert "in cell 3: ValueError: no rows" in runner.why(run.id).why


def test_a_reclaimed_job_goes_on(submitted: Run) -> None:
    """Told to end, back in the queue, running again, done: nobody takes the first for an end."""
    told = Failure("Cancelled", "the run was cancelled: it was told to end (SIGTERM)", 4, 143)
    save_run(replace(submitted, status="cancelled", attempt=1, error=told))
    lost = [{"statusReason": "Host EC2 (instance i-0a1) terminated.", "container": {"exitCode": 143}}]
    states = [{"status": state, "attempts": lost} for state in ("RUNNABLE", "STARTING", "RUNNING")]
    runner = planted(submitted, *states)
    assert [runner.status(submitted.id) for _ in states] == ["waiting", "waiting", "running"]
    reason = runner.why(submitted.id)
    assert "attempt 2" in reason.why
    assert "Host EC2 (instance i-0a1) terminated" in reason.why

    def over() -> dict:
        save_run(replace(submitted, status="done", attempt=2))
        return {"status": "SUCCEEDED", "attempts": lost}

    run = planted(submitted, states[0], over).wait(submitted.id)
    assert (run.status, run.attempt) == ("done", 2)


def test_a_job_reclaimed_too_often_has_lost_its_host(submitted: Run) -> None:
    told = Failure("Cancelled", "the run was cancelled: it was told to end (SIGTERM)", 4, 143)
    save_run(replace(submitted, status="cancelled", attempt=3, error=told))
    run = planted(submitted, failed("Host EC2 (instance i-0a1) terminated.", exitCode=143)).wait(submitted.id)
    assert (run.status, run.error.type, run.error.cell) == ("failed", "HostLost", 4)


def test_a_wait_survives_throttling_and_a_lost_network(submitted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "FIRST_PAUSE", 0.01)
    lost = EndpointConnectionError(endpoint_url="https://batch")
    trouble = [denied("TooManyRequestsException", 429), lost, denied("ServerException", 500)]
    runner = planted(submitted, {"status": "RUNNING"}, *trouble, failed("Host EC2 (instance i-1) terminated."))
    assert runner.wait(submitted.id).error.type == "HostLost"
    runner = planted(replace(submitted, status="waiting"), lost)
    save_run(submitted)
    assert "could not be reached" in runner.why(submitted.id).why
    with pytest.raises(CloudError, match="does not allow"):
        planted(submitted, {"status": "RUNNING"}, denied("AccessDeniedException", 403)).wait(submitted.id)


def test_cancel_ends_the_job_and_says_who(submitted: Run) -> None:
    runner = planted(submitted, {"status": "RUNNING"})
    runner.cancel(submitted.id)
    run = read_run(submitted.folder)
    assert (run.status, run.error.message, run.error.exit_code) == ("cancelled", "cancelled by ada", 130)
    assert runner.service.ended == [("job-1", "cancelled by ada")]
    runner.cancel(submitted.id)
    assert len(runner.service.ended) == 1, "an ended run stays as it is"


def test_a_job_that_batch_never_got(submitted: Run) -> None:
    Path(submitted.folder, "remote.txt").unlink()
    save_run(replace(submitted, created="2026-01-01T00:00:00.000+00:00"))
    runner = planted(submitted, {})
    assert runner.status(submitted.id) == "waiting"
    assert "never submitted" in runner.why(submitted.id).why
    assert runner.logs(submitted.id) == ""
    assert "never handed to Batch" in runner.wait(submitted.id).error.message


def test_many_waits_ask_together(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, service = [], AwsClient(REGION)
    monkeypatch.setattr(service, "call", lambda *_, jobs: (asked.append(len(jobs)), {"jobs": []})[1])
    ids = [str(n) for n in range(100)]
    for id in ids:
        service.watch(id)
    threads = [threading.Thread(target=service.job, args=(id, 5)) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [100]


def test_a_log_is_all_attempts_in_their_order(aws: None) -> None:
    logs, service = boto3.client("logs"), AwsClient(REGION)
    logs.create_log_group(logGroupName="/slml/slml")
    now = int(time.time() * 1000)
    for stream, lines in {"taxi/1": ["first try"], "taxi/2": [f"line {n}" for n in range(30)]}.items():
        logs.create_log_stream(logGroupName="/slml/slml", logStreamName=stream)
        events = [{"timestamp": now + n, "message": text} for n, text in enumerate(lines)]
        logs.put_log_events(logGroupName="/slml/slml", logStreamName=stream, logEvents=events)
    options = {"logConfiguration": {"options": {"awslogs-group": "/slml/slml"}}}
    attempts = [{"container": {"logStreamName": stream}} for stream in ("taxi/1", "taxi/2")]
    found = {"container": {**options, "logStreamName": "taxi/2"}, "attempts": attempts}
    log = JobLog(service)
    text = "first try\n" + "".join(f"line {n}\n" for n in range(30))
    assert log.text([found]) == text
    event = {"timestamp": now + 100, "message": "one more"}
    logs.put_log_events(logGroupName="/slml/slml", logStreamName="taxi/2", logEvents=[event])
    assert log.text([found]) == text + "one more\n"
    assert log.text([{"container": {**options, "logStreamName": "not/yet"}}]) == ""


def test_watch_is_quiet_about_a_run_that_is_done(submitted: Run) -> None:
    save_run(replace(submitted, status="done"))
    watch = BatchRuns(planted(submitted, denied("AccessDenied", 403)).workspace, Planted(denied("AccessDenied", 403)))
    assert watch.wait(submitted.id).status == "done", "the record is enough"
