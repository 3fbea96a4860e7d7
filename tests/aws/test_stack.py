"""The stack: one clean template, projects that cannot reach each other, and plan, deploy, status, destroy on moto."""

import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest
from botocore.validate import ParamValidator
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from cloud import cloudformation
from moto import mock_aws

from slml.aws import events, schedule
from slml.aws import stack_deploy as stack
from slml.aws.account import Account
from slml.aws.changes import ResourceChange, StackPlan, discard_plan, plan_stack
from slml.aws.parts import UNTAGGED
from slml.aws.roles import project_policy, project_role
from slml.aws.stack_template import INLINE, PARAMETERS, stack_template, template_json, template_yaml
from slml.errors import CloudError, SettingsError, UsageError
from slml.runners.batch import names
from slml.runs.archive import pack_project
from slml.workspace import Workspace

from support.aws import ACCOUNT, BUCKET, REGION, filled, holds

# The template


@pytest.fixture(scope="module")
def whole() -> Mapping[str, object]:
    return stack_template(["taxi", "houses_eu"])


def test_cfn_lint_finds_nothing(whole: Mapping[str, object], tmp_path: Path) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(template_yaml(whole))
    lint = Path(sys.executable).parent / "cfn-lint"
    done = subprocess.run(
        [lint, "--regions", "us-east-1", REGION, "--", path], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_cfn_lint_knows_every_type_of_resource(whole: Mapping[str, object]) -> None:
    """A type that it did not know would be clean as well."""
    for type in {one["Type"] for one in whole["Resources"].values()}:
        assert PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, type).schema["properties"]


def test_every_resource_that_can_have_tags_has_them(whole: Mapping[str, object]) -> None:
    for name, one in whole["Resources"].items():
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, one["Type"]).schema
        if "Tags" not in schema["properties"]:
            assert one["Type"] in UNTAGGED
            continue
        found = one["Properties"]["Tags"]
        found = found if isinstance(found, dict) else {tag["Key"]: tag["Value"] for tag in found}
        assert set(found) == {"stack", "owner", "project"}, name
        project = next((p for p in ("taxi", "housesZeu") if name.endswith(p)), "shared").replace("Z", "_")
        assert found["project"] == project, name


def test_nothing_is_paid_while_nothing_runs(whole: Mapping[str, object]) -> None:
    resources = whole["Resources"]
    types = {one["Type"] for one in resources.values()}
    assert not types & {"AWS::EC2::NatGateway", "AWS::EC2::EIP", "AWS::EC2::Instance", "AWS::KMS::Key"}
    for one in resources.values():
        if one["Type"] == "AWS::Batch::ComputeEnvironment":
            assert one["Properties"]["ComputeResources"].get("MinvCpus", 0) == 0
        if one["Type"] == "AWS::EC2::VPCEndpoint" and one["Properties"]["VpcEndpointType"] == "Interface":
            assert one["Condition"] == "MakeEndpoints"
            assert PARAMETERS["NodeEndpoints"]["Default"] == "no"


def test_the_bucket_is_encrypted_versioned_closed_and_kept(whole: Mapping[str, object]) -> None:
    bucket = whole["Resources"]["Bucket"]
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["Properties"]["VersioningConfiguration"] == {"Status": "Enabled"}
    assert "AES256" in str(bucket["Properties"]["BucketEncryption"])
    assert bucket["DeletionPolicy"] == "RetainExceptOnCreate"
    refused = whole["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"][0]
    assert refused["Effect"] == "Deny"
    assert refused["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_queues_are_those_a_runner_submits_to(whole: Mapping[str, object]) -> None:
    found = filled(whole["Resources"])
    queues = {one["Properties"]["JobQueueName"] for one in found.values() if one["Type"] == "AWS::Batch::JobQueue"}
    assert queues == {names.queue_name("slml", kind, spot) for kind in names.KINDS for spot in (True, False)}
    definitions = {
        one["Properties"]["JobDefinitionName"] for one in found.values() if one["Type"] == "AWS::Batch::JobDefinition"
    }
    assert definitions == {
        names.definition_name("slml", p, kind) for p in ("taxi", "houses_eu") for kind in names.KINDS
    }


def test_no_queue_mixes_fargate_with_ec2_and_nodes_never_run_on_spot(whole: Mapping[str, object]) -> None:
    resources = whole["Resources"]
    for one in resources.values():
        if one["Type"] == "AWS::Batch::JobQueue":
            order = [entry["ComputeEnvironment"]["Ref"] for entry in one["Properties"]["ComputeEnvironmentOrder"]]
            kinds = [resources[name]["Properties"]["ComputeResources"]["Type"] for name in order]
            assert len({kind.startswith("FARGATE") for kind in kinds}) == 1
            assert kinds == sorted(kinds, key=lambda kind: not kind.endswith("SPOT")), "Spot comes first"
    assert resources["Nodes"]["Properties"]["ComputeResources"]["Type"] == "EC2"


def test_no_container_reaches_the_role_of_its_machine(whole: Mapping[str, object]) -> None:
    data = whole["Resources"]["Machine"]["Properties"]["LaunchTemplateData"]
    assert data["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def test_a_project_without_a_good_name_is_refused() -> None:
    for projects in (["taxi-demo"], ["taxi", "Taxi"], [""], []):
        with pytest.raises(UsageError):
            stack_template(projects)


def test_projects_whose_names_look_alike_stay_apart() -> None:
    """`a_b` and `ab` are different inside the template, where underscores are not allowed."""
    two, one = stack_template(["a_b", "ab"]), stack_template(["ab"])
    assert (
        len(two["Resources"]) - len(one["Resources"])
        == len(one["Resources"]) - len(stack_template(["c"])["Resources"]) + 8
    )


# Who may do what: a small evaluator of policies, for what these policies use


def allows(project: str, action: str, resource: str, **context: str) -> bool:
    """Whether the role of a project may do something to a resource."""
    context = {key.replace("__", ":").replace("_tag_", "Tag/"): value for key, value in context.items()}
    for one in filled(project_policy(project)["Statement"]):
        assert one["Effect"] == "Allow"
        acts = any(fnmatch.fnmatchcase(action, pattern) for pattern in one["Action"])
        there = any(fnmatch.fnmatchcase(resource, pattern) for pattern in one["Resource"])
        if acts and there and holds(one.get("Condition", {}), context):
            return True
    return False


def arn(service: str, what: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{what}"


def test_a_role_works_in_its_own_project() -> None:
    own = names.share_identifier("taxi", "ada")
    assert allows("taxi", "s3:PutObject", f"arn:aws:s3:::{BUCKET}/taxi/runs/1/run.json")
    assert allows("taxi", "s3:ListBucket", f"arn:aws:s3:::{BUCKET}", s3__prefix="taxi/runs/")
    assert allows("taxi", "glue:UpdateTable", arn("glue", "table/taxi/trips"))
    assert allows("taxi", "athena:StartQueryExecution", arn("athena", "workgroup/slml-taxi"))
    for resource in ("job-queue/slml-cpu", "job-queue/slml-gpu-ondemand", "job-definition/slml-taxi-gpu"):
        assert allows("taxi", "batch:SubmitJob", arn("batch", resource), batch__ShareIdentifier=own)
    assert allows("taxi", "batch:SubmitJob", arn("batch", "job-definition/slml-taxi-gpu:3"), batch__ShareIdentifier=own)
    assert allows("taxi", "batch:TerminateJob", arn("batch", "job/1"), aws__Resource_tag_project="taxi")
    assert allows("taxi", "batch:TagResource", arn("batch", "job/1"), aws__Request_tag_project="taxi")
    assert allows("taxi", "logs:GetLogEvents", arn("logs", "log-group:/slml/slml:log-stream:taxi/default/1"))
    assert allows("taxi", "scheduler:CreateSchedule", arn("scheduler", "schedule/slml/taxi-table"))
    assert allows("taxi", "batch:DescribeJobs", "*")


@pytest.mark.parametrize("other", ["houses", "taxi2", "taxi_demo", "tax", "axi"])
def test_a_role_reaches_nothing_of_another_project(other: str) -> None:
    """Also where the other's name begins as its own does, or is the beginning of it."""
    share, mine = names.share_identifier(other, "ada"), names.share_identifier("taxi", "ada")
    for verb in ("GetObject", "PutObject", "DeleteObject", "GetObjectVersion", "AbortMultipartUpload"):
        assert not allows("taxi", f"s3:{verb}", f"arn:aws:s3:::{BUCKET}/{other}/runs/1/run.json")
    for prefix in (other, f"{other}/", f"{other}/runs/", "", "/"):
        assert not allows("taxi", "s3:ListBucket", f"arn:aws:s3:::{BUCKET}", s3__prefix=prefix)
    assert not allows("taxi", "s3:ListBucket", f"arn:aws:s3:::{BUCKET}"), "a listing without a prefix shows everything"
    for verb in ("GetTable", "GetTables", "CreateTable", "UpdateTable", "DeleteTable"):
        assert not allows("taxi", f"glue:{verb}", arn("glue", f"table/{other}/trips"))
        assert not allows("taxi", f"glue:{verb}", arn("glue", f"database/{other}"))
    for verb in ("StartQueryExecution", "GetQueryResults", "GetWorkGroup", "StopQueryExecution"):
        assert not allows("taxi", f"athena:{verb}", arn("athena", f"workgroup/slml-{other}"))
    for kind in names.KINDS:
        definition = arn("batch", f"job-definition/slml-{other}-{kind}")
        for given in (share, mine):
            assert not allows("taxi", "batch:SubmitJob", definition, batch__ShareIdentifier=given)
    assert not allows("taxi", "batch:SubmitJob", arn("batch", "job-queue/slml-cpu"), batch__ShareIdentifier=share)
    assert not allows("taxi", "batch:SubmitJob", arn("batch", "job-queue/slml-cpu"))
    for verb in ("CancelJob", "TerminateJob"):
        assert not allows("taxi", f"batch:{verb}", arn("batch", "job/1"), aws__Resource_tag_project=other)
        assert not allows("taxi", f"batch:{verb}", arn("batch", "job/1"))
    tags = {"aws__Request_tag_project": "taxi", "aws__Resource_tag_project": other}
    assert not allows("taxi", "batch:TagResource", arn("batch", "job/1"), **tags), "or it could end it afterwards"
    assert not allows("taxi", "batch:TagResource", arn("batch", "job/1"), aws__Request_tag_project=other)
    stream = f"log-group:/slml/slml:log-stream:{other}/default/1"
    assert not allows("taxi", "logs:GetLogEvents", arn("logs", stream))
    assert not allows("taxi", "scheduler:DeleteSchedule", arn("scheduler", f"schedule/slml/{other}-table"))
    role = f"arn:aws:iam::{ACCOUNT}:role/slml-{other}"
    assert not allows("taxi", "iam:PassRole", role, iam__PassedToService="scheduler.amazonaws.com")
    assert not allows("taxi", "sts:AssumeRole", role)


def test_a_role_reaches_nothing_of_the_stack_itself() -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/slml-taxi"
    assert not allows("taxi", "iam:PassRole", role, iam__PassedToService="ec2.amazonaws.com")
    assert not allows("taxi", "s3:PutObject", f"arn:aws:s3:::{BUCKET}/templates/x.json")
    for action in ("batch:RegisterJobDefinition", "batch:UpdateJobQueue", "iam:PutRolePolicy", "s3:DeleteBucket"):
        assert not allows("taxi", action, "*")
    assert not allows("taxi", "batch:SubmitJob", arn("batch", "job-queue/other-cpu"), batch__ShareIdentifier="taxiXada")


def test_a_role_may_call_its_own_mlflow_only() -> None:
    """The App of another project has another ARN, which this policy does not name."""
    policy = project_role("taxi")["MlflowUsetaxi"]["Properties"]["PolicyDocument"]
    assert [one["Resource"] for one in policy["Statement"]] == [{"Fn::GetAtt": ["Mlflowtaxi", "Arn"]}]
    assert "mlflow" not in json.dumps(project_policy("taxi")).lower()


# Plan, deploy, status, destroy


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for module in ("changes", "events"):
        monkeypatch.setattr(f"slml.aws.{module}.POLL_SECONDS", 0)
    cloudformation.install()
    with mock_aws():
        yield


def nothing(_: str) -> None:
    pass


def test_a_plan_changes_nothing(cloud: None) -> None:
    found = plan_stack("slml", ["taxi"])
    assert found.new
    assert {one.action for one in found.changes} == {"add"}
    assert str(found).splitlines()[0] == (
        f"stack slml in {REGION} of account {ACCOUNT} (taxi): {len(found.changes)} to add"
    )
    assert boto3.client("s3").list_buckets()["Buckets"] == []
    with pytest.raises(UsageError, match="There is no stack 'slml'"):
        stack.stack_status("slml")
    discard_plan(found)
    assert boto3.client("cloudformation").describe_stacks()["Stacks"] == []


def test_deploy_makes_everything_under_the_names_of_the_convention(cloud: None) -> None:
    said: list[str] = []
    found = stack.deploy_stack(plan_stack("slml", ["taxi"], {"MonthlyBudgetUsd": "50"}), said.append)
    assert said
    assert found.projects == ("taxi",)
    assert found.parameters["MonthlyBudgetUsd"] == "50"
    assert found.settings("taxi") == {
        "root": f"s3://{BUCKET}/taxi",
        "project": "taxi",
        "runner": "batch",
        "stack": "slml",
        "catalog_uri": "glue",
        "tracking_uri": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:mlflow-app/app-slml-taxi",
    }
    assert [one["Name"] for one in boto3.client("s3").list_buckets()["Buckets"]] == [BUCKET]
    assert boto3.client("glue").get_database(Name="taxi")
    assert boto3.client("athena").get_work_group(WorkGroup="slml-taxi")["WorkGroup"]
    assert boto3.client("ecr").describe_repositories(repositoryNames=["slml"])["repositories"]
    queues = boto3.client("batch").describe_job_queues()["jobQueues"]
    assert {one["jobQueueName"] for one in queues} == {f"slml-{name}" for name in names.QUEUES}


def test_another_project_joins_and_the_first_stays(cloud: None) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"], {"MaxVcpus": "8"}), nothing)
    boto3.client("s3").put_object(Bucket=BUCKET, Key="taxi/x", Body=b"1")
    added = plan_stack("slml", ["houses"])
    assert not added.new
    assert added.projects == ("houses", "taxi")
    assert {one.name for one in added.changes if one.action == "add"} >= {
        "Rolehouses",
        "Databasehouses",
        "CpuJobhouses",
    }
    assert not [one for one in added.changes if one.action in ("remove", "replace")]
    found = stack.deploy_stack(added, nothing)
    assert found.projects == ("houses", "taxi")
    assert found.parameters["MaxVcpus"] == "8"
    assert boto3.client("s3").get_object(Bucket=BUCKET, Key="taxi/x")["Body"].read() == b"1"


def test_the_same_again_is_nothing_to_change(cloud: None) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing)
    again = plan_stack("slml", values=dict(stack.stack_status("slml").stack.parameters))
    assert again.changes == ()
    assert "nothing to change" in str(again)
    assert stack.deploy_stack(again, nothing).state == "CREATE_COMPLETE"


def test_many_projects_travel_through_the_bucket(cloud: None) -> None:
    many = [f"project{n}" for n in range(5)]
    assert len(template_json(stack_template(many))) > INLINE
    with pytest.raises(UsageError, match="one project first"):
        plan_stack("slml", many)
    stack.deploy_stack(plan_stack("slml", many[:1]), nothing)
    assert stack.deploy_stack(plan_stack("slml", many), nothing).projects == tuple(many)


def test_status_counts_what_waits_and_what_is_paid(cloud: None) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing)
    found = stack.stack_status("slml")
    assert found.paid == []
    assert sum(found.waiting.values()) == 0
    assert set(found.machines) >= {"slml-gpu", "slml-nodes"}
    assert "nothing but what is stored" in str(found)
    assert "<th>state</th>" in found._repr_html_()


def test_destroy_keeps_the_data_and_a_new_stack_finds_it(cloud: None) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing)
    s3, glue = boto3.client("s3"), boto3.client("glue")
    s3.put_object(Bucket=BUCKET, Key="taxi/x", Body=b"1")
    glue.create_table(DatabaseName="taxi", TableInput={"Name": "trips"})
    said: list[str] = []
    assert "MLflow of taxi" in str(stack.stack_losses("slml").lost)
    stack.destroy_stack("slml", echo=said.append)
    assert f"keeps the bucket {BUCKET}, which is not empty" in said
    assert "keeps the database taxi" in said
    with pytest.raises(UsageError):
        stack.stack_status("slml")
    assert stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing).projects == ("taxi",)
    assert s3.get_object(Bucket=BUCKET, Key="taxi/x")["Body"].read() == b"1"
    assert [table["Name"] for table in glue.get_tables(DatabaseName="taxi")["TableList"]] == ["trips"]


def test_destroy_with_the_data_leaves_nothing(cloud: None) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing)
    s3 = boto3.client("s3")
    for text in (b"1", b"2"):
        s3.put_object(Bucket=BUCKET, Key="taxi/x", Body=text)
    s3.delete_object(Bucket=BUCKET, Key="taxi/x")
    assert stack.stack_losses("slml", data=True).preserved == ()
    stack.destroy_stack("slml", data=True, echo=nothing)
    assert s3.list_buckets()["Buckets"] == []
    assert boto3.client("glue").get_databases()["DatabaseList"] == []


def test_destroy_of_a_stack_that_was_never_used_leaves_nothing(cloud: None) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing)
    stack.destroy_stack("slml", echo=nothing)
    assert boto3.client("s3").list_buckets()["Buckets"] == []


def test_a_database_of_somebody_else_is_not_touched(cloud: None) -> None:
    boto3.client("glue").create_database(DatabaseInput={"Name": "taxi", "LocationUri": "s3://payroll/"})
    with pytest.raises(CloudError, match="not of this stack"):
        plan_stack("slml", ["taxi"])


# Schedules


@pytest.fixture
def project(cloud: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    """A folder with a pipeline, in the workspace of a deployed stack."""
    stack.deploy_stack(plan_stack("slml", ["taxi", "houses"]), nothing)
    (tmp_path / "slml.toml").touch()
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/table.yaml").write_text("steps: {}\n")
    monkeypatch.chdir(tmp_path)
    return Workspace(**stack.stack_status("slml").stack.settings("taxi"), user="ada")


def shipped(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto answers boto3 in this process, and s3fs does not ask boto3: the archive is put where a bucket would be."""
    monkeypatch.setattr(schedule, "upload_project", lambda folder, workspace: workspace.uri("code", "1.tar.gz"))


def test_a_schedule_is_made_changed_listed_and_removed(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped(project, monkeypatch)
    made = schedule.schedule_pipeline("pipelines/table.yaml", "0 3 * * *", project, {"table": "trips"}, "Europe/Berlin")
    assert (made.name, made.when) == ("taxi-table", "cron(0 3 * * ? *)")
    schedule.schedule_pipeline("pipelines/table.yaml", "rate(1 day)", project)
    assert [(one.name, one.when) for one in schedule.list_schedules(project)] == [("taxi-table", "rate(1 day)")]
    assert schedule.unschedule_pipeline("pipelines/table.yaml", project) == "taxi-table"
    assert schedule.list_schedules(project) == []
    with pytest.raises(UsageError, match="There is no schedule 'taxi-table'"):
        schedule.unschedule_pipeline("table", project)


def test_a_project_sees_its_own_schedules_only(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped(project, monkeypatch)
    other = Workspace(**stack.stack_status("slml").stack.settings("houses"), user="ben")
    schedule.schedule_pipeline("pipelines/table.yaml", "rate(1 day)", project)
    schedule.schedule_pipeline("pipelines/table.yaml", "rate(1 day)", other)
    assert [one.name for one in schedule.list_schedules(other)] == ["houses-table"]


def test_what_a_schedule_submits_is_what_batch_takes_and_the_role_may(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped(project, monkeypatch)
    schedule.schedule_pipeline("pipelines/table.yaml", "0 3 * * *", project, {"table": "trips"})
    found = boto3.client("scheduler").get_schedule(GroupName="slml", Name="taxi-table")
    asked = cloudformation.camel(json.loads(found["Target"]["Input"]))
    batch = boto3.client("batch")
    shape = batch.meta.service_model.operation_model("SubmitJob").input_shape
    assert ParamValidator().validate(asked, shape).generate_report() == ""
    assert asked["containerOverrides"]["command"] == [
        "python", "-m", "slml.aws.schedule",
        "pipeline", "run", "pipelines/table.yaml", "--on", "batch", "--no-wait", "-p", "table=trips",
    ]  # fmt: skip
    told = {one["name"]: one["value"] for one in asked["containerOverrides"]["environment"]}
    assert told["SLML_ROOT"] == f"s3://{BUCKET}/taxi"
    assert told["SLML_ARCHIVE"] == f"s3://{BUCKET}/taxi/code/1.tar.gz"
    assert found["Target"]["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/slml-taxi"
    for what in (f"job-queue/{asked['jobQueue']}", f"job-definition/{asked['jobDefinition']}"):
        assert allows("taxi", "batch:SubmitJob", arn("batch", what), batch__ShareIdentifier=asked["shareIdentifier"])
    role = found["Target"]["RoleArn"]
    assert allows("taxi", "iam:PassRole", role, iam__PassedToService="scheduler.amazonaws.com")


def test_a_pipeline_outside_of_the_project_or_the_cloud_is_not_scheduled(project: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outside of the project"):
        schedule.schedule_pipeline("/etc/hostname", "rate(1 day)", project)
    with pytest.raises(SettingsError, match="in the cloud"):
        schedule.schedule_pipeline("pipelines/table.yaml", "rate(1 day)", Workspace(root=str(tmp_path)))
    with pytest.raises(UsageError, match="does not say when"):
        schedule.schedule_pipeline("pipelines/table.yaml", "nightly", project)


def test_a_scheduled_job_runs_slml_in_the_code_that_was_shipped(tmp_path: Path) -> None:
    """The archive holds a project with settings of its own; `slml runs` is asked inside of it."""
    folder = tmp_path / "project"
    (folder / "nbs").mkdir(parents=True)
    (folder / "slml.toml").write_text("[default]\nproject = 'shipped'\nno_such_setting = 1\n")
    archive = pack_project(folder)
    path = tmp_path / f"{archive.hash}.tar.gz"
    path.write_bytes(archive.content)
    told = {"SLML_ARCHIVE": str(path), "SLML_CWD": "nbs"}
    done = subprocess.run(
        [sys.executable, "-m", "slml.aws.schedule", "runs"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, **told},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.startswith("slml runs")
    assert "no_such_setting" in done.stderr


# What goes wrong


def test_without_login_or_region_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UsageError, match="No region"):
        plan_stack("slml", ["taxi"])
    with pytest.raises(UsageError, match="who you are"):
        plan_stack("slml", ["taxi"], region=REGION)


def test_slips_are_told_before_anything_is_asked() -> None:
    with pytest.raises(UsageError, match="did you mean 'MaxVcpus'"):
        plan_stack("slml", ["taxi"], {"MaxVcpu": "8"})
    with pytest.raises(SettingsError, match="no stack can be called"):
        plan_stack("Slml", ["taxi"])


def test_a_stack_that_was_never_made_has_to_be_removed_first(cloud: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.deploy_stack(plan_stack("slml", ["taxi"]), nothing)
    from moto.cloudformation.models import cloudformation_backends

    made = next(iter(cloudformation_backends[ACCOUNT][REGION].stacks.values()))
    for state, words in (("ROLLBACK_COMPLETE", "slml aws destroy"), ("UPDATE_IN_PROGRESS", "wait for it")):
        made.status = state
        with pytest.raises(CloudError, match=words):
            plan_stack("slml", ["taxi"])


def test_the_first_failure_is_told_and_not_its_echo(cloud: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, state: str, why: str = "", type: str = "AWS::S3::Bucket") -> dict[str, object]:
        return {"LogicalResourceId": name, "ResourceType": type, "ResourceStatus": state, "ResourceStatusReason": why}

    whole = [event("slml", state, type=events.STACK) for state in ("CREATE_IN_PROGRESS", "DELETE_COMPLETE")]
    failed = [
        event("Gpu", "CREATE_FAILED", "Resource creation cancelled"),
        event("Role", "CREATE_FAILED", "ada is not authorized to perform: iam:CreateRole on resource: slml-taxi"),
        event("Bucket", "CREATE_FAILED", "something later"),
    ]
    with pytest.raises(CloudError, match=r"Role \(AWS::S3::Bucket\) failed") as told:
        events.check_events("slml", [whole[0], *failed, whole[1]])
    assert "get the right iam:CreateRole" in str(told.value)


def test_a_plan_shows_the_gravest_first() -> None:
    account = Account(ACCOUNT, REGION, "arn:aws:iam::1:user/ada", None)
    lines = (
        ResourceChange("replace", "Bucket", "AWS::S3::Bucket"),
        ResourceChange("add", "<Topic>", "AWS::SNS::Topic"),
    )
    found = StackPlan("slml", account, ("taxi",), lines, "id")
    assert str(found).splitlines()[1].startswith("±")
    assert "1 to replace, 1 to add" in found.title
    assert "&lt;Topic&gt;" in found._repr_html_()
    assert "<Topic>" in found.__rich__().plain
