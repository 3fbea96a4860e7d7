"""IAM as it is, where moto's ends: what a role may do is looked at by resource and condition.

moto either allows everything or looks at the names of actions alone. Here every request that is signed with a role's
temporary credentials is held against the role's policies, before moto sees it: allowed by some statement whose action,
resource and conditions fit, and denied by none (IAM User Guide, "Policy evaluation logic"). Requests with long-lived
keys belong to the owner of the account, who may do everything. Which resource an action is about comes from the
Service Authorization Reference. Actions outside of SERVICES are refused, so that nothing passes by being unknown.
"""

import fnmatch
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import parse_qs, unquote

from moto.batch.models import batch_backends
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

ACCOUNT = "123456789012"
CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/")
Found = tuple[str, list[str], dict[str, str]]  # action, resources, what conditions can ask for

S3_VERBS = {"GET": "Get", "HEAD": "Get", "PUT": "Put", "DELETE": "Delete", "POST": "Put"}


def s3(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
    "What a request to S3 is about; several where it deletes many objects or copies one."
    bucket, _, key = unquote(request["PATH_INFO"]).lstrip("/").partition("/")
    query = parse_qs(request.get("QUERY_STRING", ""), keep_blank_values=True)
    arn, method = f"arn:aws:s3:::{bucket}", request["REQUEST_METHOD"]
    if key:
        action = f"{S3_VERBS[method]}Object"
        if "uploadId" in query and method == "DELETE":
            action = "AbortMultipartUpload"
        elif "uploadId" in query and method == "GET":
            action = "ListMultipartUploadParts"
        elif "versionId" in query:
            action += "Version"
        yield f"s3:{action}", [f"{arn}/{key}"], {}
        if source := request.get("HTTP_X_AMZ_COPY_SOURCE"):
            yield "s3:GetObject", [f"arn:aws:s3:::{unquote(source).lstrip('/').partition('?')[0]}"], {}
    elif "delete" in query:
        for name in re.findall(rb"<Key>(.*?)</Key>", body):
            yield "s3:DeleteObject", [f"{arn}/{name.decode()}"], {}
    elif not bucket:
        yield "s3:ListAllMyBuckets", ["*"], {}
    elif "location" in query:
        yield "s3:GetBucketLocation", [arn], {}
    elif method in ("GET", "HEAD"):
        action = "ListBucketVersions" if "versions" in query else "ListBucket"
        yield f"s3:{action}", [arn], {"s3:prefix": query.get("prefix", [""])[0]}
    else:
        yield f"s3:{method}Bucket", [arn], {}


def glue(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
    "Tables need the right to the catalog, the database and the table."
    action, wanted = request["HTTP_X_AMZ_TARGET"].split(".")[-1], json.loads(body or b"{}")
    base = f"arn:aws:glue:{region}:{ACCOUNT}:"
    database = wanted.get("DatabaseName") or (wanted.get("DatabaseInput") or {}).get("Name")
    database = database or (wanted.get("Name") if "Database" in action else None)
    table = (wanted.get("TableInput") or {}).get("Name") or (wanted.get("Name") if "Database" not in action else None)
    resources = [f"{base}catalog"] + ([f"{base}database/{database}"] if database else [])
    if "Table" in action:
        resources.append(f"{base}table/{database}/{table or '*'}")
    yield f"glue:{action}", resources, {}


BATCH_ACTIONS = (
    "SubmitJob", "CancelJob", "TerminateJob", "DescribeJobs", "ListJobs", "DescribeJobQueues", "DescribeJobDefinitions",
    "DescribeComputeEnvironments", "DescribeSchedulingPolicies", "GetJobQueueSnapshot", "RegisterJobDefinition",
    "CreateJobQueue", "UpdateJobQueue", "DeleteJobQueue", "UpdateComputeEnvironment",
)  # fmt: skip


def batch(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
    "Submitting needs the queue and the definition; a job's tags say whose it is."
    name, wanted = request["PATH_INFO"].split("/")[2], json.loads(body or b"{}")
    action = next((a for a in BATCH_ACTIONS if a.lower() == name), name)
    base, about = f"arn:aws:batch:{region}:{ACCOUNT}:", {}
    if action == "SubmitJob":
        about = {f"aws:RequestTag/{k}": v for k, v in (wanted.get("tags") or {}).items()}
        if "shareIdentifier" in wanted:
            about["batch:ShareIdentifier"] = wanted["shareIdentifier"]
        kinds = (("job-queue", wanted["jobQueue"]), ("job-definition", wanted["jobDefinition"]))
        resources = [name if name.startswith("arn:") else f"{base}{kind}/{name}" for kind, name in kinds]
        if wanted.get("tags"):
            yield "batch:TagResource", [f"{base}job/new"], {k: v for k, v in about.items() if "Tag" in k}
    elif action in ("CancelJob", "TerminateJob"):
        job = batch_backends[ACCOUNT][region].get_job_by_id(wanted["jobId"])
        top = job.parent or job if job else None
        about = {f"aws:ResourceTag/{k}": v for k, v in ((top.request.get("tags") if top else {}) or {}).items()}
        resources = [f"{base}job/{wanted['jobId']}"]
    else:
        resources = ["*"]
    yield f"batch:{action}", resources, about


def by_target(service: str, resource: Callable[[Mapping], str]) -> Callable:
    "A service whose requests name their action in a header."

    def found(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
        action = request["HTTP_X_AMZ_TARGET"].split(".")[-1]
        named = resource(json.loads(body or b"{}"))
        yield f"{service}:{action}", [named if named == "*" else f"arn:aws:{service}:{region}:{ACCOUNT}:{named}"], {}

    return found


def scheduler(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
    "A schedule; making one also needs the right to hand its role on."
    wanted = json.loads(body or b"{}")
    name = unquote(request["PATH_INFO"]).removeprefix("/schedules").lstrip("/")
    query = parse_qs(request.get("QUERY_STRING", ""))
    group = wanted.get("GroupName") or query.get("groupName", ["default"])[0]
    verb = {"POST": "Create", "PUT": "Update", "GET": "Get", "DELETE": "Delete"}[request["REQUEST_METHOD"]]
    if not name:
        yield "scheduler:ListSchedules", ["*"], {}
        return
    yield f"scheduler:{verb}Schedule", [f"arn:aws:scheduler:{region}:{ACCOUNT}:schedule/{group}/{name}"], {}
    if role := (wanted.get("Target") or {}).get("RoleArn"):
        yield "iam:PassRole", [role], {"iam:PassedToService": "scheduler.amazonaws.com"}


def sts(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
    "Everybody may ask who they are."
    action = parse_qs(body.decode()).get("Action", [""])[0]
    if action != "GetCallerIdentity":
        yield f"sts:{action}", [parse_qs(body.decode()).get("RoleArn", ["*"])[0]], {}


def by_query(service: str) -> Callable:
    "A service that is asked by a form, whose action is one of its fields."

    def found(request: Mapping, body: bytes, region: str) -> Iterator[Found]:
        yield f"{service}:{parse_qs(body.decode()).get('Action', [''])[0]}", ["*"], {}

    return found


SERVICES = {
    "s3": s3,
    "glue": glue,
    "batch": batch,
    "scheduler": scheduler,
    "sts": sts,
    "cloudformation": by_query("cloudformation"),
    "autoscaling": by_query("autoscaling"),
    "athena": by_target("athena", lambda wanted: f"workgroup/{wanted.get('WorkGroup', 'primary')}"),
    "logs": by_target(
        "logs",
        lambda wanted: (
            f"log-group:{wanted.get('logGroupName')}"
            + (f":log-stream:{wanted['logStreamName']}" if "logStreamName" in wanted else "")
        ),
    ),
    "ecr": by_target("ecr", lambda wanted: f"repository/{wanted.get('repositoryName')}"),
    "servicequotas": by_target("servicequotas", lambda _: "*"),
}


def like(patterns: str | Iterable[str], value: str) -> bool:
    "Whether one of the patterns of a policy fits; * and ? are all there is."
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in patterns)


def holds(conditions: Mapping, about: Mapping[str, str]) -> bool:
    "Whether all conditions of a statement hold; one of an unknown kind does not."
    for kind, wanted in conditions.items():
        for key, values in wanted.items():
            values = [values] if isinstance(values, str) else values
            if key not in about and kind.endswith("IfExists"):
                continue
            found = about.get(key)
            if kind.removesuffix("IfExists") == "StringEquals" and found in values:
                continue
            if kind.removesuffix("IfExists") == "StringLike" and found is not None and like(values, found):
                continue
            return False
    return True


def statements(role: str) -> list[dict]:
    "All statements of a role's policies."
    backend = iam_backends[ACCOUNT]["aws"]
    documents = [backend.get_role_policy(role, name)[1] for name in backend.list_role_policies(role)]
    documents += [policy.document for policy in backend.list_attached_role_policies(role)[0] if policy.document]
    read = [json.loads(one) if isinstance(one, str) else one for one in documents]
    return [one for document in read for one in _listed(document["Statement"])]


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def allowed(rules: Iterable[Mapping], action: str, resource: str, about: Mapping[str, str]) -> bool:
    "Whether policies allow an action on a resource."
    fits = [
        rule["Effect"]
        for rule in rules
        if any(like(pattern.lower(), action.lower()) for pattern in _listed(rule["Action"]))
        and like(_listed(rule["Resource"]), resource)
        and holds(rule.get("Condition") or {}, about)
    ]
    return "Allow" in fits and "Deny" not in fits


def refusal(service: str, role: str, action: str, resource: str) -> tuple[str, bytes]:
    "What AWS answers: XML from S3, JSON from most others."
    text = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{role}/batch is not authorized to perform: {action}"
    text += f" on resource: {resource} because no identity-based policy allows the {action} action"
    if service == "s3":
        return "application/xml", f"<Error><Code>AccessDenied</Code><Message>{text}</Message></Error>".encode()
    if service in ("sts", "cloudformation", "iam", "autoscaling"):
        error = f"<Error><Code>AccessDenied</Code><Message>{text}</Message></Error>"
        return "text/xml", f"<ErrorResponse>{error}</ErrorResponse>".encode()
    return "application/json", json.dumps({"__type": "AccessDeniedException", "message": text}).encode()


class Guard:
    "A WSGI application in front of moto's: refuses what a role may not do."

    def __init__(self, application: Callable, log: str):
        self.application, self.log = application, log

    def __call__(self, request: dict, start: Callable) -> Iterable[bytes]:
        signed = CREDENTIAL.search(request.get("HTTP_AUTHORIZATION", ""))
        role = self._role(signed[1]) if signed else ""
        if not role:
            return self.application(request, start)
        region, service = signed[2], signed[3]
        size = int(request.get("CONTENT_LENGTH") or 0)
        needs_body = service != "s3" or "delete" in request.get("QUERY_STRING", "")
        body = request["wsgi.input"].read(size) if needs_body else b""
        if needs_body:
            request["wsgi.input"] = io.BytesIO(body)
        rules = statements(role)
        unknown = [(f"{service}:Unknown", ["*"], {})]
        for action, resources, about in SERVICES.get(service, lambda *_: unknown)(request, body, region):
            for resource in resources:
                if not allowed(rules, action, resource, about):
                    return self._refuse(start, service, role, action, resource)
        return self.application(request, start)

    def _role(self, key: str) -> str:
        "Whose temporary credentials these are; nobody's where they are not temporary."
        roles = [one for one in sts_backends[ACCOUNT]["aws"].assumed_roles if one.access_key_id == key]
        return roles[0].role_arn.split("/")[-1] if roles else ""

    def _refuse(self, start: Callable, service: str, role: str, action: str, resource: str) -> list[bytes]:
        with open(self.log, "a") as log:
            log.write(f"{role} {action} {resource}\n")
        kind, answer = refusal(service, role, action, resource)
        headers = [("Content-Type", kind), ("Content-Length", str(len(answer)))]
        headers += [("x-amzn-ErrorType", "AccessDeniedException")] if kind == "application/json" else []
        start("403 Forbidden", headers)
        return [answer]
