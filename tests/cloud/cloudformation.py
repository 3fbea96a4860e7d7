"""CloudFormation as it is, where moto's ends: the resources of slml's template that moto skips or refuses.

moto makes what it knows and leaves the rest out without a word. What each part follows, in the CloudFormation Template
Reference and the Batch API reference (docs.aws.amazon.com):

- AWS::Batch::ComputeEnvironment without ServiceRole uses the account's service-linked role
- AWS::Batch::JobQueue has a scheduling policy, AWS::Batch::SchedulingPolicy
- AWS::Batch::JobDefinition needs no RetryStrategy, may be multinode, and has tags, time-out and platform
- AWS::Glue::Database, AWS::Athena::WorkGroup, AWS::Scheduler::ScheduleGroup are made, and removed with the stack
- AWS::SageMaker::MlflowApp is a name only: its ARN can be read, nothing answers there
- AWS::Lambda::Function may be an image, with a limit and tags; AWS::Lambda::Version publishes the function as it is at
  that moment, under a number that is never used again; AWS::Lambda::Alias divides requests by weight and may keep
  copies warm, but not both at once; AWS::Lambda::Url belongs to the alias; AWS::Lambda::Permission is accepted
- DeletionPolicy RetainExceptOnCreate keeps a resource; a change set fills in the outputs of the stack
- an update makes and changes resources in the order in which they need each other, and removes the others last
"""

import json
from collections.abc import Callable
from typing import Any, ClassVar

from moto.athena.models import athena_backends
from moto.awslambda import models as functions
from moto.batch import models as batch
from moto.cloudformation import models, parsing, responses
from moto.core.common_models import CloudFormationModel
from moto.glue.models import glue_backends
from moto.iam.models import iam_backends
from moto.scheduler.models import scheduler_backends

YAML = models.Stack.parse_template
HOME = "moto.cloudformation"  # moto takes the service that a class belongs to from the name of its module
AS_THEY_ARE = ("Tags", "Parameters", "Options")  # dictionaries whose keys belong to their writer


def camel(value: Any, key: str = "") -> Any:
    """Properties as the API spells them."""
    if isinstance(value, dict):
        known = value if key in AS_THEY_ARE else {k[:1].lower() + k[1:]: camel(v, k) for k, v in value.items()}
        return dict(known)
    return [camel(one) for one in value] if isinstance(value, list) else value


def service_role(account: str) -> str:
    """The account's service-linked role of Batch, made by its first use."""
    backend = iam_backends[account]["aws"]
    for role in backend.get_roles():
        if role.name.lower() == "awsserviceroleforbatch":
            return role.arn
    return backend.create_service_linked_role("batch.amazonaws.com", "", "").arn


def compute_environment(cls: Any, name: str, properties: Any, account: str, region: str, **_: Any) -> Any:
    wanted, backend = properties["Properties"], batch.batch_backends[account][region]
    resources = camel(wanted["ComputeResources"])
    for key, value in resources.items():  # moto hands on parameters as texts, numbers and lists too
        if key.endswith("vCpus"):
            resources[key] = int(value)
        elif key in ("instanceTypes", "subnets") and isinstance(value, str):
            resources[key] = value.split(",")
    return backend.create_compute_environment(
        name,
        wanted["Type"],
        wanted.get("State", "ENABLED"),
        resources,
        service_role(account),
        wanted.get("Tags"),
    )


def job_queue(cls: Any, name: str, properties: Any, account: str, region: str, **_: Any) -> Any:
    wanted, backend = properties["Properties"], batch.batch_backends[account][region]
    return backend.create_job_queue(
        name, wanted["Priority"], wanted.get("SchedulingPolicyArn"), "ENABLED",
        camel(wanted["ComputeEnvironmentOrder"]), wanted.get("Tags"),
    )  # fmt: skip


def job_definition(cls: Any, name: str, properties: Any, account: str, region: str, **_: Any) -> Any:
    wanted, backend = camel(properties["Properties"]), batch.batch_backends[account][region]
    return backend.register_job_definition(
        name, wanted.get("parameters") or {}, wanted["type"], wanted.get("tags"), wanted.get("retryStrategy"),
        wanted.get("containerProperties"), wanted.get("nodeProperties"), None, wanted.get("timeout"),
        wanted.get("platformCapabilities"), wanted.get("propagateTags"),
    )  # fmt: skip


def unchanged(cls: Any, original_resource: Any, **_: Any) -> Any:
    """An update that this cloud does not need: the resource stays as it is."""
    return original_resource


def updated(cls: Any, original_resource: Any, new_resource_name: str, cloudformation_json: Any, **where: str) -> Any:
    """A job definition that is changed gets another revision."""
    return job_definition(cls, new_resource_name, cloudformation_json, where["account_id"], where["region_name"])


def remover(kind: str) -> Callable[[Any, str, str], None]:
    """What removes a thing of Batch."""

    def remove(self: Any, account: str, region: str) -> None:
        known = getattr(batch.batch_backends[account][region], kind)
        for key in [key for key, one in known.items() if one.name == self.name]:
            del known[key]

    return remove


class Made(CloudFormationModel):
    """A resource that lives in some backend of moto, or nowhere."""

    __module__ = HOME
    type = name_key = ""

    def __init__(self, name: str, arn: str, remove: Callable[[], object] = lambda: None):
        self.name, self.arn, self.remove = name, arn, remove

    @property
    def physical_resource_id(self) -> str:
        return self.arn

    def get_cfn_attribute(self, attribute: str) -> str:
        return self.arn

    def delete(self, account: str, region: str) -> None:
        self.remove()

    @classmethod
    def cloudformation_type(cls) -> str:
        return cls.type

    @classmethod
    def cloudformation_name_type(cls) -> str:
        return cls.name_key

    @classmethod
    def create_from_cloudformation_json(cls, name: str, properties: Any, account: str, region: str, **_: Any) -> "Made":
        return cls.make(name, properties["Properties"], account, region)

    update_from_cloudformation_json = classmethod(unchanged)


class SchedulingPolicy(Made, CloudFormationModel):
    __module__ = HOME
    type, name_key = "AWS::Batch::SchedulingPolicy", "Name"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        backend = batch.batch_backends[account][region]
        made = backend.create_scheduling_policy(name, camel(wanted["FairsharePolicy"]), wanted.get("Tags"))
        return cls(name, made.arn, lambda: backend.delete_scheduling_policy(made.arn))


class Database(Made, CloudFormationModel):
    __module__ = HOME
    type, name_key = "AWS::Glue::Database", "DatabaseName"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        name, backend = wanted["DatabaseInput"]["Name"], glue_backends[account][region]
        backend.create_database(name, wanted["DatabaseInput"])
        return cls(name, name, lambda: backend.delete_database(name))


class WorkGroup(Made, CloudFormationModel):
    __module__ = HOME
    type, name_key = "AWS::Athena::WorkGroup", "Name"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        backend = athena_backends[account][region]
        backend.create_work_group(name, wanted["WorkGroupConfiguration"], "", wanted.get("Tags", []))
        return cls(name, name, lambda: backend.delete_work_group(name))


class ScheduleGroup(Made, CloudFormationModel):
    __module__ = HOME
    type, name_key = "AWS::Scheduler::ScheduleGroup", "Name"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        backend = scheduler_backends[account][region]
        made = backend.create_schedule_group(name, wanted.get("Tags", []))
        return cls(name, made.arn, lambda: backend.delete_schedule_group(name))


class MlflowApp(Made, CloudFormationModel):
    __module__ = HOME
    type, name_key = "AWS::SageMaker::MlflowApp", "Name"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        return cls(name, f"arn:aws:sagemaker:{region}:{account}:mlflow-app/app-{name}")


def function(cls: Any, name: str, properties: Any, account: str, region: str, **_: Any) -> Any:
    wanted = {key: value for key, value in properties["Properties"].items() if value}
    for key in ("MemorySize", "Timeout", "ReservedConcurrentExecutions"):
        wanted[key] = int(wanted[key]) if key in wanted else None
    wanted["Tags"] = {tag["Key"]: tag["Value"] for tag in wanted.get("Tags", ())}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    return functions.get_backend(account, region).create_function({**wanted, "FunctionName": name})


class Version(Made, CloudFormationModel):
    __module__ = HOME
    type = "AWS::Lambda::Version"
    numbers: ClassVar[dict[str, int]] = {}  # function -> how many were ever published

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        backend = functions.get_backend(account, region)
        held = backend._lambdas._functions[wanted["FunctionName"]]["versions"]
        before, made = len(held), backend.publish_version(wanted["FunctionName"], wanted["Description"])
        if len(held) > before:
            cls.numbers[made.function_name] = number = cls.numbers.get(made.function_name, 0) + 1
            made.set_version(number)
            made.reserved_concurrency = None
        return cls(str(made.version), made.function_arn, lambda: held.remove(made))

    def get_cfn_attribute(self, attribute: str) -> str:
        return self.name if attribute == "Version" else self.arn


class Alias(Made, CloudFormationModel):
    __module__ = HOME
    type = "AWS::Lambda::Alias"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        backend = functions.get_backend(account, region)
        made = backend.create_alias(
            wanted["Name"],
            wanted["FunctionName"],
            wanted["FunctionVersion"],
            wanted["Description"],
            cls.weights(wanted),
        )
        return cls(wanted["Name"], made.arn)

    @staticmethod
    def weights(wanted: Any) -> Any:
        divided = wanted.get("RoutingConfig", {}).get("AdditionalVersionWeights", [])
        if divided and wanted.get("ProvisionedConcurrencyConfig"):
            raise ValueError("Alias with weights can not be used with Provisioned Concurrency")
        return {"AdditionalVersionWeights": {one["FunctionVersion"]: one["FunctionWeight"] for one in divided}}

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource: Any, new_resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> Any:
        wanted = cloudformation_json["Properties"]
        functions.get_backend(account_id, region_name).update_alias(
            wanted["Name"],
            wanted["FunctionName"],
            wanted["FunctionVersion"],
            wanted["Description"],
            cls.weights(wanted),
        )
        return original_resource


class Url(Made, CloudFormationModel):
    __module__ = HOME
    type = "AWS::Lambda::Url"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        made = functions.get_backend(account, region).create_function_url_config(wanted["TargetFunctionArn"], wanted)
        return cls(name, made.url)


class Permission(Made, CloudFormationModel):
    __module__ = HOME
    type = "AWS::Lambda::Permission"

    @classmethod
    def make(cls, name: str, wanted: Any, account: str, region: str) -> Made:
        return cls(name, name)


def read(change: models.ChangeSet) -> None:
    """A template that is JSON is read as JSON, which takes moto a second otherwise."""
    change.template_dict = models.Stack.parse_template(change.template)


def read_text(template: str) -> Any:
    return json.loads(template) if template.startswith("{") else YAML(template)


def apply(change: models.ChangeSet) -> None:
    """What a change set does to a stack, outputs and tags included."""
    stack = change.stack
    stack.resource_map.update(change.template_dict, change.parameters)
    stack.template, stack.parameters = change.template, change.parameters
    stack._parse_template()
    stack.description = stack.template_dict.get("Description")
    stack.output_map = stack._create_output_map()


def renew(resources: parsing.ResourceMap, template: Any, parameters: Any = None) -> None:
    """Updates a stack in the order in which its resources need each other, that of slml's templates; removes last."""
    changes, before = resources.build_resource_diff(template, parameters), resources._resource_json_map
    resources._template = template
    resources.input_parameters = parameters or resources.input_parameters
    resources.load_mapping()
    resources.load_parameters()
    resources.load_conditions()
    resources._resource_json_map = template["Resources"]
    where = {"account_id": resources._account_id, "region_name": resources._region_name}
    for name, wanted in template["Resources"].items():
        if name in changes["Modify"]:
            made = parsing.parse_and_update_resource(name, wanted, resources, **where)
            resources._parsed_resources[name] = made
        elif name in changes["Add"]:
            resources[name]
    for name in changes["Remove"]:
        made = resources._parsed_resources.pop(name, None)
        if made is not None:
            resources._delete_resource(made, before[name])


def delete(resources: parsing.ResourceMap) -> None:
    """Removes what the stack made, last things first; what is to be kept stays."""
    kept = ("Retain", "RetainExceptOnCreate")
    names = [name for name, one in resources._resource_json_map.items() if one.get("DeletionPolicy") not in kept]
    for name in reversed(names):
        made = resources._parsed_resources.pop(name, None)
        if made is not None and not isinstance(made, str):
            try:
                resources._delete_resource(made, resources._resource_json_map[name])
            except Exception:  # moto cannot remove everything it makes, and nothing here depends on that
                continue


def install() -> None:
    """Put all of this into moto, in this process."""
    for model, make, update, kind in (
        (batch.ComputeEnvironment, compute_environment, unchanged, "_compute_environments"),
        (batch.JobQueue, job_queue, unchanged, "_job_queues"),
        (batch.JobDefinition, job_definition, updated, "_job_definitions"),
    ):
        model.create_from_cloudformation_json = classmethod(make)
        model.update_from_cloudformation_json = classmethod(update)
        model.delete = remover(kind)
    functions.LambdaFunction.create_from_cloudformation_json = classmethod(function)
    for model in (functions.LambdaVersion, functions.Permission):
        model.cloudformation_type = staticmethod(lambda: "replaced by a class of this file")
    responses.CloudFormationResponse._validate_different_update = lambda *_: None  # a change set tells it, and fails
    models.ChangeSet._parse_template = read
    models.Stack.parse_template = staticmethod(read_text)
    models.ChangeSet.apply = apply
    parsing.ResourceMap.update = renew
    parsing.ResourceMap.delete = delete
    for cached in (parsing.get_model_list, parsing.get_model_map, parsing.get_name_type_map):
        cached.cache_clear()
