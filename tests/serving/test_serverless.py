"""A service in AWS Lambda: its template, its deployments on moto, and the function in the runtime client's loop."""

import fnmatch
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import boto3
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from cloud import cloudformation
from cloud.runtime import Runtime, event
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from slml.aws import service_deploy as deploy
from slml.aws.changes import discard_plan
from slml.aws.parts import UNTAGGED
from slml.aws.service_template import (
    Release,
    ServiceState,
    deploy_release,
    roll_back_release,
    service_policy,
    service_template,
)
from slml.aws.stack_template import INLINE, template_json, template_yaml
from slml.cli import main
from slml.errors import CloudError, SettingsError, UsageError
from slml.registry.aliases import Pointer, State, write_change
from slml.registry.bundle import Bundle
from slml.registry.tracking import open_tracking
from slml.serving import service as serving
from slml.serving.predictor import Predictor
from slml.workspace import Workspace

from support.aws import ACCOUNT, BUCKET, REGION, filled, holds
from support.bundles import by_hand

ROOT = f"s3://{BUCKET}/taxi"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/slml@sha256:{'a' * 64}"
THREE = Release("taxi@3", f"{ROOT}/runs/7/bundle", "3" * 64, IMAGE)
FOUR = replace(THREE, ref="taxi@4", bundle=f"{ROOT}/runs/9/bundle", hash="4" * 64)
ALONE = ServiceState(ROOT, "taxi", "taxi", THREE)
TRIED = deploy_release(ALONE, FOUR, 10)
WITH_KEY = replace(ALONE, live=replace(THREE, key="0123456789abcdef"))


# The template


@pytest.mark.parametrize("service", [ALONE, TRIED, deploy_release(TRIED, FOUR), WITH_KEY])
def test_cfn_lint_finds_nothing(service: ServiceState, tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(template_yaml(service_template(service)))
    lint = Path(sys.executable).parent / "cfn-lint"
    done = subprocess.run(
        [lint, "--regions", "us-east-1", REGION, "--", path], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")
    for one in service_template(service)["Resources"].values():
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, one["Type"]).schema
        tags = {tag["Key"]: tag["Value"] for tag in one["Properties"].get("Tags", ())}
        if "Tags" in schema["properties"] and one["Type"] not in UNTAGGED:
            assert set(tags) == {"stack", "owner", "project"}
            assert tags["project"] == "taxi"


def test_a_template_travels_in_the_call() -> None:
    """A service has no bucket of its own to put a long one in."""
    longest = replace(TRIED, name="n" * 60, before=replace(THREE, memory=512))
    assert len(template_json(service_template(longest))) < INLINE / 2


def test_a_canary_and_warm_copies_never_meet() -> None:
    """Lambda refuses an alias that has both; the number of warm copies is kept in the parameter."""
    alone, tried = (service_template(service)["Resources"]["Alias"]["Properties"] for service in (ALONE, TRIED))
    assert "RoutingConfig" not in alone
    assert "ProvisionedConcurrencyConfig" in alone
    assert "ProvisionedConcurrencyConfig" not in tried
    assert "Warm" in service_template(TRIED)["Parameters"]


def test_what_was_published_is_never_published_again() -> None:
    """Also through canary, promotion and rollback: a version that CloudFormation replaced would be another bundle."""
    steps = [ALONE, TRIED, deploy_release(TRIED, FOUR), roll_back_release(deploy_release(TRIED, FOUR))]
    three = [
        [
            one
            for one in service_template(step)["Resources"].values()
            if "taxi@3" in one["Properties"].get("Description", "")
        ]
        for step in steps
    ]
    versions = [[one for one in found if one["Type"] == "AWS::Lambda::Version"] for found in three]
    assert all(found == versions[0] and len(found) == 1 for found in versions)


def allows(service: ServiceState, action: str, resource: str, **context: str) -> bool:
    """Whether the role of a service may do something to a resource."""
    context = {key.replace("__", ":"): value for key, value in context.items()}
    for one in filled(service_policy(service)["Statement"]):
        acts = any(fnmatch.fnmatchcase(action, pattern) for pattern in one["Action"])
        there = any(fnmatch.fnmatchcase(resource, pattern) for pattern in one["Resource"])
        if acts and there and holds(one.get("Condition", {}), context):
            return True
    return False


def test_the_role_reads_its_bundles_and_writes_its_log() -> None:
    for path in ("runs/7/bundle/model.onnx", "runs/9/bundle/manifest.json", "models/taxi/taxi/changes/00000001.json"):
        assert allows(TRIED, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/taxi/{path}")
    assert allows(TRIED, "s3:PutObject", f"arn:aws:s3:::{BUCKET}/taxi/served/taxi/taxi/date=2026-01-01/00-a-1.parquet")
    assert allows(TRIED, "s3:ListBucket", f"arn:aws:s3:::{BUCKET}", s3__prefix="taxi/runs/9/bundle/")
    assert allows(TRIED, "logs:PutLogEvents", f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/slml/slml:log-stream:1")


def test_the_role_reaches_nothing_else() -> None:
    for path in (
        "runs/8/bundle/model.onnx",
        "runs/7/run.json",
        "tables/trips/1.parquet",
        "models/taxi/other/changes/1",
    ):
        assert not allows(TRIED, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/taxi/{path}")
    assert not allows(TRIED, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/taxi/served/taxi/taxi/1.parquet"), "write only"
    for path in ("runs/7/bundle/model.onnx", "models/taxi/taxi/changes/00000002.json", "served/taxi/other/1.parquet"):
        assert not allows(TRIED, "s3:PutObject", f"arn:aws:s3:::{BUCKET}/taxi/{path}")
    for action in ("s3:DeleteObject", "s3:GetObjectVersion", "lambda:InvokeFunction", "iam:PassRole", "glue:GetTable"):
        assert not allows(TRIED, action, f"arn:aws:s3:::{BUCKET}/taxi/runs/7/bundle/model.onnx")
    assert not allows(TRIED, "s3:ListBucket", f"arn:aws:s3:::{BUCKET}", s3__prefix="taxi/")
    assert not allows(ALONE, "s3:GetObject", f"arn:aws:s3:::{BUCKET}/taxi/runs/9/bundle/model.onnx"), "not deployed"


def test_only_with_a_key_may_everybody_knock() -> None:
    found = service_template(ALONE)["Resources"]
    assert found["Url"]["Properties"]["AuthType"] == "AWS_IAM"
    assert "AWS::Lambda::Permission" not in {one["Type"] for one in found.values()}
    assert "SLML_API_KEY" not in found["Function"]["Properties"]["Environment"]["Variables"]
    keyed = service_template(WITH_KEY)
    assert keyed["Resources"]["Url"]["Properties"]["AuthType"] == "NONE"
    assert keyed["Resources"]["Function"]["Properties"]["Environment"]["Variables"]["SLML_API_KEY"] == {"Ref": "ApiKey"}
    assert keyed["Parameters"]["ApiKey"]["NoEcho"] is True


# Deployments


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """moto, for boto3 and for s3fs."""
    cloudformation.install()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def cloud(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A new account, with a bucket and a repository of images."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    told = {"AWS_ENDPOINT_URL": server, "AWS_DEFAULT_REGION": REGION, "AWS_CONFIG_FILE": str(tmp_path / "none")}
    for name, value in (told | {"MOTO_LAMBDA_STUB_ECR": "false"}).items():
        monkeypatch.setenv(name, value)
    for module in ("changes", "events"):
        monkeypatch.setattr(f"slml.aws.{module}.POLL_SECONDS", 0)
    urlopen(f"{server}/moto-api/reset", b"")  # what it holds belongs to the process
    boto3.setup_default_session()
    S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    boto3.client("ecr").create_repository(repositoryName="slml")


MANIFEST = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}


def push(content: str) -> str:
    """An image of services; returns its digest."""
    layers = {"config": {"size": 1}, "layers": [{"digest": content, "size": 1}]}
    image = {"imageManifest": json.dumps({**MANIFEST, **layers}), "imageTag": "service"}
    return boto3.client("ecr").put_image(repositoryName="slml", **image)["image"]["imageId"]["imageDigest"]


@pytest.fixture(scope="session")  # pytest-xdist may set up a module twice, and the database is one for the session
def registry(tracking_uri: str) -> Workspace:
    """A project with three registered versions."""
    workspace = Workspace(root=ROOT, project="taxi", tracking_uri=tracking_uri, catalog_uri="glue")
    client = open_tracking(workspace)
    client.create_registered_model("taxi.fare")
    for number in (1, 2, 3):
        tags = {"hash": f"{number}" * 64, "metric": "mae", "value": f"{3 - number / 10}", "data": "trips@1"}
        client.create_model_version("taxi.fare", workspace.uri("runs", str(number), "bundle"), tags=tags)
    return workspace


@pytest.fixture
def workspace(cloud: None, registry: Workspace) -> Workspace:
    """The project in a new account, with an image of services; the first version is the champion."""
    champion = Pointer(1, registry.uri("runs", "1", "bundle"), "1" * 64)
    state = msgspec.structs.replace(State().next("promote", "ada"), aliases={"champion": champion})
    write_change(ROOT, "taxi", "fare", state)
    push("first")
    return registry


def nothing(_: str) -> None:
    pass


@pytest.fixture
def put(workspace: Workspace) -> Callable[..., deploy.DeployedService]:
    """Deploys a version."""

    def go(ref: str, percent: int = 100, **more: object) -> deploy.DeployedService:
        return deploy.deploy_service(deploy.plan_deploy(ref, workspace, percent, **more), nothing)

    return go


def weights(workspace: Workspace) -> Mapping[str, int]:
    """What callers get by now: the bundle that each version reads, and its percent of the requests."""
    client, name = boto3.client("lambda"), f"slml-{workspace.project}-fare"
    alias = client.get_alias(FunctionName=name, Name="live")
    extra = (alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights", {})
    shares = {alias["FunctionVersion"]: 1 - sum(extra.values()), **extra}
    told = {
        one["Version"]: one["Environment"]["Variables"]
        for one in client.list_versions_by_function(FunctionName=name)["Versions"]
    }
    return {told[version]["SLML_VERSION"]: round(100 * share) for version, share in shares.items()}


def test_a_version_is_tried_promoted_and_taken_back(workspace: Workspace, put: Callable) -> None:
    found = put("fare@champion")
    assert weights(workspace) == {"fare@1": 100}
    assert found.stack.outputs["Url"].startswith("https://")
    put("fare@2", 10)
    assert weights(workspace) == {"fare@1": 90, "fare@2": 10}
    put("fare@2", 50)
    assert weights(workspace) == {"fare@1": 50, "fare@2": 50}
    put("fare@2")
    assert weights(workspace) == {"fare@2": 100}
    put("fare@3", 1)
    assert weights(workspace) == {"fare@2": 99, "fare@3": 1}
    back = deploy.deploy_service(deploy.plan_rollback("fare", workspace), nothing)
    assert weights(workspace) == {"fare@2": 100}
    assert str(back.service) == "fare@2 gets all requests; before: fare@1"
    deploy.deploy_service(deploy.plan_rollback("fare", workspace), nothing)
    assert weights(workspace) == {"fare@1": 100}
    with pytest.raises(UsageError, match="only version"):
        deploy.plan_rollback("fare", workspace)
    put("fare@3")
    assert weights(workspace) == {"fare@3": 100}


def test_the_address_stays(workspace: Workspace, put: Callable) -> None:
    address = put("fare@1").stack.outputs["Url"]
    assert put("fare@2", 10).stack.outputs["Url"] == address
    assert put("fare@2").stack.outputs["Url"] == address


def test_a_rollback_starts_nothing(workspace: Workspace, put: Callable) -> None:
    put("fare@1")
    put("fare@2")
    plan = deploy.plan_rollback("fare", workspace).plan
    assert not [one for one in plan.changes if one.action in ("add", "replace")]
    assert {one.type for one in plan.changes if one.action == "remove"} == {"AWS::Lambda::Version"}


def test_a_plan_changes_nothing_and_says_what_callers_will_get(workspace: Workspace, put: Callable) -> None:
    step = deploy.plan_deploy("fare@champion", workspace)
    assert str(step).splitlines()[0] == "fare: fare@1 gets all requests"
    assert {one.action for one in step.plan.changes} == {"add"}
    assert boto3.client("lambda").list_functions()["Functions"] == []
    discard_plan(step.plan)
    assert boto3.client("cloudformation").describe_stacks()["Stacks"] == []
    put("fare@1")
    again = deploy.plan_deploy("fare@1", workspace)
    assert again.plan.changes == ()
    assert "nothing to change" in str(again)


def test_settings_stay_until_they_are_changed(workspace: Workspace, put: Callable) -> None:
    put("fare@1", settings={"Concurrency": "5", "Memory": "3538", "Share": "20"})
    found = put("fare@2", 10, settings={"Warm": "2"})
    assert found.stack.parameters["Concurrency"] == "5"
    assert (found.service.canary.memory, found.service.canary.share) == (3538, 20)
    assert found.facts()["kept warm"] == 0, "not while there is a canary"
    assert put("fare@2").facts()["kept warm"] == "2"
    with pytest.raises(UsageError, match="did you mean 'Memory'"):
        deploy.plan_deploy("fare@2", workspace, settings={"Memry": "1"})


def test_a_key_is_never_shown_and_a_new_one_is_another_release(workspace: Workspace, put: Callable) -> None:
    first = put("fare@1", key="open sesame")
    said = "".join(map(str, (first, deploy.load_service("fare", workspace), first.service)))
    assert "sesame" not in said
    assert "show a key" in said
    second = put("fare@1", key="another")
    assert second.service.live.id != first.service.live.id
    assert put("fare@2").service.live.key == second.service.live.key, "it stays"
    assert put("fare@2", key="").facts()["callers"] == "sign with their AWS credentials"
    with pytest.raises(UsageError, match="same key"):
        deploy.plan_deploy("fare@3", workspace, 10, key="third")


def test_an_image_that_a_service_runs_is_not_thrown_away(workspace: Workspace, put: Callable) -> None:
    """The repository removes what no tag names; the tag of the newest image moves on."""
    put("fare@1")
    tried = put("fare@2", 10).service.canary
    push("second")
    assert put("fare@2").service.live == tried, "the canary becomes live with the image on which it was tried"
    newest = put("fare@3").service.live
    assert newest.image != tried.image
    held = {
        image["imageDigest"]: image["imageTags"]
        for image in boto3.client("ecr").describe_images(repositoryName="slml")["imageDetails"]
    }
    for one in (tried, newest):
        digest = one.image.partition("@")[2]
        assert f"service-{digest[7:19]}" in held[digest]


def test_removing_a_service_leaves_the_project_alone(workspace: Workspace, put: Callable) -> None:
    put("fare@1")
    deploy.remove_service("fare", workspace, nothing)
    assert boto3.client("lambda").list_functions()["Functions"] == []
    with pytest.raises(UsageError, match="is not deployed"):
        deploy.load_service("fare", workspace)
    assert put("fare@1").service.live.ref == "fare@1"


def test_what_cannot_be_deployed(workspace: Workspace, put: Callable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a canary needs a version"):
        deploy.plan_deploy("fare@2", workspace, 10)
    with pytest.raises(UsageError, match="is not deployed"):
        deploy.plan_rollback("fare", workspace)
    with pytest.raises(SettingsError, match="slml serve"):
        deploy.plan_deploy("fare@1", Workspace(root=str(tmp_path), project="taxi"))
    put("fare@1")
    with pytest.raises(UsageError, match="is live already"):
        deploy.plan_deploy("fare@champion", workspace, 10)
    with pytest.raises(UsageError, match="1 to 99"):
        deploy.plan_deploy("fare@2", workspace, 0)
    boto3.client("ecr").batch_delete_image(repositoryName="slml", imageIds=[{"imageTag": "service"}])
    with pytest.raises(CloudError, match="slml aws image --variant service"):
        deploy.plan_deploy("fare@2", workspace)


def test_the_command_shows_asks_and_does(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    told = {"ROOT": workspace.root, "PROJECT": "taxi", "TRACKING_URI": workspace.tracking_uri, "CATALOG_URI": "glue"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLML_{name}", value)

    def slml(*words: str, code: int = 0) -> str:
        assert main(["deploy", *words, "--on", ""]) == code
        out, err = capsys.readouterr()
        return out + err

    assert "Nothing was changed" in slml("fare@champion", code=2), "nobody is there to say yes"
    assert boto3.client("cloudformation").describe_stacks()["Stacks"] == [], "and no plan stays in the account"
    slml("fare@champion", "--yes", "-p", "Concurrency=3")
    said = slml("fare@2", "--canary", "10", "--yes")
    assert "fare@2 gets 10 % of the requests, fare@1 the others" in said
    assert weights(workspace) == {"fare@1": 90, "fare@2": 10}
    assert "3 requests at one time" in slml("fare", "--status")
    slml("fare", "--rollback", "--yes")
    assert json.loads(slml("fare", "--status", "--json"))["answers"] == "fare@1 gets all requests"
    assert "do not go together" in slml("fare@2", "--canary", "10", "--rollback", code=2)
    assert "There is no version 'fare@9'" in slml("fare@9", code=1)
    slml("fare", "--remove", "--yes")
    assert "is not deployed" in slml("fare", "--status", code=2)


# The function, in the loop of AWS's own client for Python


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that can be checked by hand."""
    return by_hand(str(tmp_path_factory.mktemp("bundle") / "fare"))


@pytest.fixture
def variables(bundle: Bundle, tmp_path: Path) -> Mapping[str, str]:
    """What the template tells a function."""
    told = {"SLML_BUNDLE": bundle.uri, "SLML_BUNDLE_HASH": bundle.hash, "SLML_VERSION": "fare@3"}
    return {**os.environ, **told, "SLML_SERVED": str(tmp_path / "served"), "SLML_LOG_SHARE": "100"}


COMMAND = [sys.executable, "-m", "slml.serving.serverless"]


@pytest.fixture
def run() -> Iterator[Callable[[Mapping[str, str]], Runtime]]:
    """Starts a copy of the function."""
    started = []

    def go(environment: Mapping[str, str]) -> Runtime:
        started.append(Runtime(lambda api: COMMAND, environment))
        return started[-1]

    yield go
    for one in started:
        if one.process.returncode is None:
            one.end()


def logged(environment: Mapping[str, str]) -> list[Path]:
    """The files of the request log."""
    return sorted(Path(environment["SLML_SERVED"]).rglob("*.parquet"))


def test_the_function_answers_as_the_server_does(run: Callable, variables: Mapping[str, str], bundle: Bundle) -> None:
    copy, here = run(variables), serving.Service(serving.ServedVersions(Predictor(bundle, "fare@3", 3)))
    for asked in (
        event("POST", "/predict", '{"miles": 3}'),
        event("POST", "/predict", '{"rows": [{"miles": 3}, {"miles": 400}], "key": "ann"}'),
        event("POST", "/predict", '{"miles": "far"}'),
        event("POST", "/predict", "{"),
        event("GET", "/health"),
        event("GET", "/schema"),
        event("GET", "/"),
        event("GET", "/nothing"),
        event("PUT", "/predict"),
    ):
        kind, got = copy.invoke(asked)
        method, body = asked["requestContext"]["http"]["method"], asked.get("body", "").encode()
        wanted = here.answer(method, asked["rawPath"], asked["headers"], body)
        assert (kind, got["statusCode"]) == ("response", wanted.status)
        assert got["headers"]["content-type"] == wanted.kind
        if wanted.kind == serving.JSON:
            answer, expected = json.loads(got["body"]), json.loads(wanted.body)
            assert answer | {"request": ""} == expected | {"request": ""}


def test_no_answer_waits_for_the_log_and_nothing_of_it_is_lost(run: Callable, variables: Mapping[str, str]) -> None:
    copy = run(variables)
    for number in range(5):
        copy.invoke(event("POST", "/predict", f'{{"miles": {number}}}'), f"{number}")
        assert len(logged(variables)) == 1, "the first one at once, as it may be the last; the others wait"
    assert copy.end() < 0.5
    assert copy.process.returncode == 0
    table = pa.concat_tables(map(pq.read_table, logged(variables)))
    assert sorted(table["miles"].to_pylist()) == [0, 1, 2, 3, 4]
    assert set(table["_version"].to_pylist()) == {3}


def test_a_storage_that_fails_keeps_nobody_waiting(run: Callable, variables: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "served").write_text("no folder")
    copy = run(variables)
    for _ in range(3):
        assert copy.invoke(event("POST", "/predict", '{"miles": 1}'))[1]["statusCode"] == 200


def test_a_function_with_a_key(run: Callable, variables: Mapping[str, str]) -> None:
    copy = run({**variables, "SLML_API_KEY": "sesame", "SLML_LOG_SHARE": "0"})
    asked = event("POST", "/predict", '{"miles": 1}')
    assert copy.invoke(asked)[1]["statusCode"] == 401
    assert copy.invoke(event("POST", "/predict", '{"miles": 1}', x_api_key="sesame"))[1]["statusCode"] == 200
    assert not copy.extensions, "nothing is logged, so nobody has to be told"


def test_what_is_no_request_is_an_error_and_the_next_one_is_answered(
    run: Callable, variables: Mapping[str, str]
) -> None:
    copy = run(variables)
    kind, error = copy.invoke({"miles": 1})
    assert kind == "error"
    assert "does not come from a function URL" in error["errorMessage"]
    assert copy.invoke(event("POST", "/predict", '{"miles": 1}'))[1]["statusCode"] == 200


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"SLML_BUNDLE_HASH": "0" * 64}, "not the one that was registered"),
        ({"SLML_BUNDLE": "/nowhere"}, "no whole bundle"),
        ({"SLML_VERSION": ""}, "not told what to serve"),
    ],
)
def test_a_function_that_cannot_start_says_why(
    wrong: Mapping[str, str], words: str, run: Callable, variables: Mapping[str, str]
) -> None:
    assert words in run({**variables, **wrong}).failure()


def test_the_process_loads_nothing_heavy(variables: Mapping[str, str]) -> None:
    code = "from slml.serving import serverless; serverless.current_function(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)
    assert not {"torch", "mlflow", "boto3", "pandas", "granian", "typer"} & set(done.stdout.split()), done.stderr
