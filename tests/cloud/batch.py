"""AWS Batch as it is, where moto's ends: attempts, exit codes, reasons, dependencies, capacity, several nodes.

moto keeps the compute environments, queues and job definitions. Its `Job` makes one attempt, knows no reason and no
exit code before the end, collects the log afterwards and starts everything at once; so jobs are executed here. What
each part follows, in the AWS Batch User Guide and API reference (docs.aws.amazon.com/batch/latest):

- attempts and evaluateOnExit: "Automated job retries", API_RetryStrategy, API_EvaluateOnExit ("If none of the listed
  conditions match, then the job is retried"); a job that was terminated or timed out is not retried ("Job timeouts")
- SIGTERM, and SIGKILL 30 seconds later: "Job timeouts", API_TerminateJob
- a host that is taken away: "Automated job retries" (statusReason "Host EC2 (instance ...) terminated."). Here a test
  takes it away by TerminateJob with such a reason
- exit code, container.reason ("OutOfMemoryError: ...", "CannotPullContainerError: ..."), statusReason:
  API_AttemptDetail, "Troubleshooting"; Amazon ECS "Stopped tasks error messages"
- arrays, N_TO_N, SEQUENTIAL: "Array jobs", "Job dependencies"; the limits of 2 to 10,000 children, 20 dependencies and
  30 KiB: "Service quotas" and API_SubmitJob
- several nodes, the main node's address and index: "Multi-node parallel jobs", "Job environment variables"
- a job that finds no machine stays RUNNABLE with a reason: "Jobs stuck in RUNNABLE status"
"""

import fnmatch
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence

import docker
from moto.batch import models, urls
from moto.batch.exceptions import ClientException
from moto.batch.responses import BatchResponse
from moto.sts.models import sts_backends

ENDED = ("SUCCEEDED", "FAILED")
RECLAIMED = ("Host EC2", "Your Spot Task was interrupted")  # reasons by which a test takes a host away
NO_MACHINE = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity requested for instance type"
TOO_LARGE = "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) cannot meet the CPU requirement of the job"
GRACE = 30  # seconds between SIGTERM and SIGKILL
CAPACITY = float(os.environ.get("SLML_TEST_CLOUD_VCPUS", 4))  # of this machine, for all jobs together


def now() -> int:
    "Milliseconds since 1970, as the service counts."
    return int(time.time() * 1000)


class Capacity:
    "The machines: as many vCPUs as there are, given in the order of asking."

    def __init__(self, total: float):
        self.free = self.total = total
        self.changed = threading.Condition()

    def take(self, vcpus: float, job: "Job") -> bool:
        "Wait for vCPUs; False where the job is to end instead."
        wanted = min(vcpus, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= wanted or job.ending)
            if job.ending:
                return False
            self.free -= wanted
            return True

    def give(self, vcpus: float) -> None:
        "Hand vCPUs back."
        with self.changed:
            self.free += min(vcpus, self.total)
            self.changed.notify_all()


MACHINES = Capacity(CAPACITY)


def matches(rule: Mapping[str, str], exit_code: int | None, reason: str, status_reason: str) -> bool:
    "Whether all conditions of one rule of evaluateOnExit hold."
    seen = {"onExitCode": "" if exit_code is None else str(exit_code), "onReason": reason}
    seen["onStatusReason"] = status_reason
    return all(
        (value or name != "onExitCode") and fnmatch.fnmatchcase(value.lower(), rule[name].lower())
        for name, value in seen.items()
        if name in rule
    )


def retried(strategy: Mapping, exit_code: int | None, reason: str, status_reason: str) -> bool:
    "Whether an attempt that failed is made again: the first rule that matches decides; yes where none does."
    rules = strategy.get("evaluateOnExit") or []
    action = next((r["action"] for r in rules if matches(r, exit_code, reason, status_reason)), "RETRY")
    return action.upper() == "RETRY"


def merged(base: Mapping, over: Mapping) -> dict:
    "A container's properties with what the submission overrides."
    result = {**base, **{k: v for k, v in over.items() if v and k not in ("environment", "resourceRequirements")}}
    for name, key in (("environment", "name"), ("resourceRequirements", "type")):
        both = {item[key]: item for item in [*(base.get(name) or []), *(over.get(name) or [])]}
        result[name] = list(both.values())
    return result


def needs(container: Mapping, kind: str) -> float:
    "How much of VCPU, MEMORY or GPU a container asks for."
    return next((float(r["value"]) for r in container.get("resourceRequirements", []) if r["type"] == kind), 0.0)


class Node(threading.Thread):
    "One container of one attempt, and its log."

    def __init__(self, job: "Job", container: Mapping, environment: Mapping[str, str], main: bool):
        super().__init__(daemon=True)
        self.job, self.spec, self.main = job, container, main
        options = (container.get("logConfiguration") or {}).get("options") or {}
        self.group = options.get("awslogs-group", "/aws/batch/job")
        prefix = options.get("awslogs-stream-prefix", job.definition.name)
        self.task = uuid.uuid4().hex
        self.stream = f"{prefix}/default/{self.task}"
        self.environment = {
            **{item["name"]: item.get("value", "") for item in container["environment"]},
            **cloud_environment(job.backend, container.get("jobRoleArn", "")),
            **environment,
        }
        self.exit_code: int | None = None
        self.reason = ""
        self.container = None
        self.begun, self.gone = threading.Event(), threading.Event()

    def run(self) -> None:
        client = docker.from_env(timeout=3600)
        try:
            self.container = client.containers.create(
                self.spec["image"],
                [str(part) for part in self.spec.get("command") or []],
                environment=self.environment,
                network_mode="host",
                hostname=f"ip-{self.task[:12]}",  # as on AWS, each task is a host of its own
                mem_limit=f"{int(needs(self.spec, 'MEMORY') or 2048)}m",
                shm_size=f"{(self.spec.get('linuxParameters') or {}).get('sharedMemorySize', 64)}m",
                user=self.spec.get("user") or None,
                labels={"slml-test-cloud": self.job.job_id},
                read_only=bool(self.spec.get("readonlyRootFilesystem")),
            )
            logs = self.job.backend.logs_backend
            logs.ensure_log_group(self.group)
            logs.ensure_log_stream(self.group, self.stream)
            self.container.start()
            self.begun.set()
            self._follow(logs)
            self.exit_code = self.container.wait()["StatusCode"]
            self.container.reload()
            if self.container.attrs["State"].get("OOMKilled") or killed_for_memory(self.container.id):
                self.reason = "OutOfMemoryError: Container killed due to memory usage"
        except docker.errors.ImageNotFound:
            self.reason = (
                f"CannotPullContainerError: pull image manifest has been retried 1 time(s): {self.spec['image']}"
            )
            self.reason += ": not found"
        except docker.errors.APIError as error:
            self.reason = f"CannotStartContainerError: {error.explanation}"
        finally:
            self.begun.set()
            self.gone.set()
            if self.container:
                self.container.remove(force=True)
            client.close()

    def _follow(self, logs: object) -> None:
        "Hand the log on as it comes, one event a line."
        rest = b""
        for piece in self.container.logs(stream=True, follow=True):
            *lines, rest = (rest + piece).split(b"\n")
            self._put(logs, lines)
        self._put(logs, [rest] if rest else [])

    def _put(self, logs: object, lines: Sequence[bytes]) -> None:
        events = [{"timestamp": now(), "message": line.decode(errors="replace")} for line in lines]
        if events:
            logs.put_log_events(self.group, self.stream, events)

    def end(self, grace: float) -> None:
        "SIGTERM, and SIGKILL where that does not help in time."
        for signal, seconds in (("SIGTERM", grace), ("SIGKILL", 10)):
            if self.container and not self.gone.is_set():
                try:
                    self.container.kill(signal)
                except docker.errors.APIError:  # it has just gone
                    return
                self.gone.wait(seconds)


def killed_for_memory(container: str) -> bool:
    "Whether the kernel killed something of a container for its memory; podman misses it with cgroups of version 1."
    log = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace").stdout
    return any("oom-kill:" in line and container in line for line in log.splitlines())


def cloud_environment(backend: models.BatchBackend, role: str) -> dict[str, str]:
    "Where a container finds the cloud, and who it is there: on AWS the agent and the network say so."
    found = {"AWS_ENDPOINT_URL": os.environ["MOTO_URL"], "AWS_REGION": backend.region_name}
    found["AWS_DEFAULT_REGION"] = backend.region_name
    if role:
        sts = sts_backends[backend.account_id]["aws"]
        key = sts.assume_role(backend.region_name, "batch", role, "", 43200, "")
        found |= {"AWS_ACCESS_KEY_ID": key.access_key_id, "AWS_SECRET_ACCESS_KEY": key.secret_access_key}
        found |= {"AWS_SESSION_TOKEN": key.session_token}
    return found


class Job(threading.Thread):
    "A job, a child of an array, or an array itself (which runs nothing)."

    def __init__(self, backend: models.BatchBackend, request: Mapping, parent: "Job | None" = None, index: int = -1):
        super().__init__(daemon=True)
        self.backend, self.request, self.parent, self.index = backend, request, parent, index
        self.definition = backend.get_job_definition(request["jobDefinition"])
        self.queue = backend.get_job_queue(request["jobQueue"])
        for kind, found in (("definition", self.definition), ("queue", self.queue)):
            if found is None or getattr(found, "status", "") == "INACTIVE":
                raise ClientException(f"Job {kind} {request['job' + kind.capitalize()]} does not exist")
        self.job_name = request["jobName"]
        self.job_id = f"{parent.job_id}:{index}" if parent else str(uuid.uuid4())
        self.arn = models.make_arn_for_job(backend.account_id, self.job_id, backend.region_name)
        self.strategy = request.get("retryStrategy") or self.definition.retry_strategy or {}
        self.timeout = request.get("timeout") or self.definition.timeout or {}
        self.children: list[Job] = []
        self.attempts: list[dict] = []
        self.nodes: list[Node] = []
        self._status, self.reason = "SUBMITTED", ""
        self.created, self.started, self.stopped = now(), 0, 0
        self.cancelled = self.terminated = self.late = False
        self.reclaim = ""
        self.earliest = now()

    # ---- what moto's backend asks of a job
    @property
    def _child_jobs(self) -> list["Job"]:
        return self.children

    @property
    def status(self) -> str:
        states = [child.status for child in self.children]
        if not states:
            return self._status
        if all(state in ENDED for state in states):
            return "FAILED" if "FAILED" in states else "SUCCEEDED"
        return "PENDING"

    @property
    def stop(self) -> bool:
        return self.ending

    @stop.setter
    def stop(self, _: bool) -> None:  # moto's reset
        self.terminate("reset")

    @property
    def ending(self) -> bool:
        return self.cancelled or self.terminated

    # ---- its life
    def run(self) -> None:
        try:
            self._live()
        except Exception as error:  # a fault of this emulation: to be seen, not to hang
            self._ended("FAILED", f"emulation: {type(error).__name__}: {error}")
            raise

    def _live(self) -> None:
        self._status = "PENDING"
        if not self._dependencies():
            return
        for attempt in range(1, int(self.strategy.get("attempts") or 1) + 1):
            self._status, self.earliest = "RUNNABLE", now()
            specs = self.specs()
            vcpus = sum(needs(spec, "VCPU") for spec in specs)
            if not self._fits(specs, vcpus) or not MACHINES.take(vcpus, self):
                return self._ended("FAILED", self.reason)
            try:
                exit_code, reason, status_reason = self._attempt(attempt, specs)
            finally:
                MACHINES.give(vcpus)
            if exit_code == 0 and not self.terminated:
                return self._ended("SUCCEEDED", status_reason)
            if self.ending or self.late or not retried(self.strategy, exit_code, reason, status_reason):
                break
        return self._ended("FAILED", self.reason if self.ending else status_reason)

    def _ended(self, status: str, reason: str) -> None:
        self.reason, self.stopped = reason, now()
        self._status = status

    def _dependencies(self) -> bool:
        "Wait for what this job comes after; False where that failed or this job is to end."
        jobs = self.backend._jobs
        waiting = []
        for other in self.request.get("dependsOn") or []:
            if other.get("type") == "SEQUENTIAL":
                waiting += [f"{self.parent.job_id}:{self.index - 1}"] if self.index > 0 else []
            elif other.get("type") == "N_TO_N":
                waiting.append(f"{other['jobId']}:{self.index}")
            else:
                waiting.append(other["jobId"])
        while waiting and not self.ending:
            states = {id: jobs[id].status for id in waiting if id in jobs}
            if "FAILED" in states.values():
                self._ended("FAILED", "Dependent Job failed")
                return False
            waiting = [id for id, state in states.items() if state != "SUCCEEDED"]
            time.sleep(0.1 if waiting else 0)
        if self.ending:
            self._ended("FAILED", self.reason)
        return not self.ending

    def _fits(self, specs: Sequence[Mapping], vcpus: float) -> bool:
        "Wait for ever, with the reason that the service gives, where no machine of the queue can take the job."
        limits = [int(e.compute_resources.get("maxvCpus", 0)) for e in self.queue.environments]
        if any(needs(spec, "GPU") for spec in specs):
            blocked = NO_MACHINE
        elif vcpus > max(limits, default=0):
            blocked = TOO_LARGE
        else:
            return True
        self.reason = blocked
        while not self.ending:
            time.sleep(0.2)
        return False

    def specs(self) -> list[dict]:
        "The container of each node, overrides applied."
        properties = self.definition.node_properties
        if not properties:
            return [merged(self.definition.container_properties, self.request.get("containerOverrides") or {})]
        over = self.request.get("nodeOverrides") or {}
        count = int(over.get("numNodes") or properties["numNodes"])
        result: list[dict] = [{} for _ in range(count)]
        for part in properties["nodeRangeProperties"]:
            for n in _range(part["targetNodes"], count):
                result[n] = merged(part["container"], {})
        for part in over.get("nodePropertyOverrides") or []:
            for n in _range(part["targetNodes"], count):
                result[n] = merged(result[n], part.get("containerOverrides") or {})
        return result

    def _attempt(self, attempt: int, specs: Sequence[Mapping]) -> tuple[int | None, str, str]:
        "One attempt: exit code, the container's reason, the status reason."
        self._status, begin = "STARTING", now()
        self.nodes = [Node(self, spec, self._variables(attempt, n, len(specs)), n == 0) for n, spec in enumerate(specs)]
        self.reclaim = ""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.begun.wait()
        self._status, self.started = "RUNNING", now()
        main = self.nodes[0]
        limit = self.timeout.get("attemptDurationSeconds")
        while not main.gone.wait(0.2):
            if limit and now() - begin > limit * 1000:
                self.late = True
            if self.late or self.terminated or self.reclaim:
                grace = 120 if self.reclaim and not (self.late or self.terminated) else GRACE
                threads = [threading.Thread(target=node.end, args=(grace,)) for node in self.nodes]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        for node in self.nodes:
            node.end(GRACE)
            node.join()
        status_reason = "Task failed to start" if main.exit_code is None else "Essential container in task exited"
        status_reason = "Job attempt duration exceeded timeout" if self.late else self.reclaim or status_reason
        record = {"taskArn": self._task(main), "logStreamName": main.stream, "networkInterfaces": []}
        record |= {"exitCode": main.exit_code} if main.exit_code is not None else {}
        record |= {"reason": main.reason} if main.reason else {}
        self.attempts.append(
            {"container": record, "startedAt": begin, "stoppedAt": now(), "statusReason": status_reason}
        )
        return main.exit_code, main.reason, status_reason

    def _task(self, node: Node) -> str:
        return f"arn:aws:ecs:{self.backend.region_name}:{self.backend.account_id}:task/batch/{node.task}"

    def _variables(self, attempt: int, node: int, nodes: int) -> dict[str, str]:
        "What Batch tells a container about itself."
        found = {"AWS_BATCH_JOB_ID": self.job_id, "AWS_BATCH_JOB_ATTEMPT": str(attempt)}
        found |= {"AWS_BATCH_JQ_NAME": self.queue.name, "AWS_BATCH_CE_NAME": self.queue.environments[0].name}
        if self.parent:
            found["AWS_BATCH_JOB_ARRAY_INDEX"] = str(self.index)
            found["AWS_BATCH_JOB_ARRAY_SIZE"] = str(len(self.parent.children))
        if self.definition.node_properties:
            found |= {"AWS_BATCH_JOB_MAIN_NODE_INDEX": "0", "AWS_BATCH_JOB_NODE_INDEX": str(node)}
            found["AWS_BATCH_JOB_NUM_NODES"] = str(nodes)
            found |= {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "127.0.0.1"} if node else {}
        return found

    def terminate(self, reason: str, cancel: bool = False) -> None:
        "End it, or only where it has not started yet; a reason of RECLAIMED takes its host away instead."
        for child in self.children:
            child.terminate(reason, cancel)
        if self.children or self.status in ENDED:
            return
        if self.status in ("STARTING", "RUNNING"):
            if reason.startswith(RECLAIMED):
                self.reclaim = reason
            elif not cancel:
                self.terminated, self.reason = True, reason
        else:
            self.reason = reason
            self.cancelled, self.terminated = cancel, not cancel
        with MACHINES.changed:
            MACHINES.changed.notify_all()

    # ---- what is told about it
    def describe_short(self) -> dict:
        found = {"jobId": self.job_id, "jobArn": self.arn, "jobName": self.job_name, "createdAt": self.created}
        found |= {"status": self.status, "jobDefinition": self.definition.arn}
        found |= {"statusReason": self.reason or self._last("statusReason")} if self.reason or self.attempts else {}
        found |= {"startedAt": self.started} if self.started else {}
        found |= {"stoppedAt": self.stopped} if self.stopped else {}
        if self.children:
            found["arrayProperties"] = {"size": len(self.children)}
        elif self.parent:
            found["arrayProperties"] = {"index": self.index}
        container = {k: v for k, v in self._last("container", {}).items() if k in ("exitCode", "reason")}
        return found | ({"container": container} if container else {})

    def _last(self, name: str, default: object = "") -> object:
        return self.attempts[-1].get(name, default) if self.attempts else default

    def describe(self) -> dict:
        found = self.describe_short()
        found |= {"jobQueue": self.queue.arn, "dependsOn": self.request.get("dependsOn") or []}
        found |= {"attempts": self.attempts, "retryStrategy": self.strategy, "parameters": {}}
        found |= {"isCancelled": self.cancelled, "isTerminated": self.terminated}
        found |= {"tags": self.request.get("tags") or {}, "timeout": self.timeout} if self.timeout else {}
        found["platformCapabilities"] = self.definition.platform_capabilities or []
        if "shareIdentifier" in self.request:
            found["shareIdentifier"] = self.request["shareIdentifier"]
        if self.children:
            states = [child.status for child in self.children]
            summary = {state: states.count(state) for state in models.JobStatus.job_statuses()}
            found["arrayProperties"] = {"size": len(states), "statusSummary": summary}
        if self.definition.node_properties:
            found["nodeProperties"] = self.definition.node_properties
        else:
            last = {k: v for k, v in self._last("container", {}).items() if k != "networkInterfaces"}
            streams = {"logStreamName": self.nodes[0].stream} if self.nodes else {}
            found["container"] = {**self.specs()[0], **streams, **last}
        return found

    def describe_node(self, n: int) -> dict:
        node = self.nodes[n]
        container = {**node.spec, "logStreamName": node.stream}
        container |= {"exitCode": node.exit_code} if node.exit_code is not None else {}
        container |= {"reason": node.reason} if node.reason else {}
        return {**self.describe_short(), "jobId": f"{self.job_id}#{n}", "container": container, "attempts": []}


def _range(text: str, count: int) -> range:
    "The nodes that '0:', ':1', '1:3' or '2' names."
    first, colon, last = text.partition(":")
    return range(int(first or 0), (int(last) + 1 if last else count) if colon else int(first) + 1)


def submit(response: BatchResponse) -> str:
    "SubmitJob, with the service's own limits."
    body = response.body
    request = json.loads(body)
    size = int((request.get("arrayProperties") or {}).get("size") or 0)
    if len(body) > 30 * 1024:
        raise ClientException("Job submission payload exceeds 30 KiB")
    if len(request.get("dependsOn") or []) > 20:
        raise ClientException("A job can have at most 20 dependencies")
    if size and not 2 <= size <= 10_000:
        raise ClientException("Array size must be between 2 and 10000")
    if models.JOB_NAME_REGEX.match(request["jobName"]) is None:
        raise ClientException("Job name should match valid pattern")
    backend = response.batch_backend
    job = Job(backend, request)
    if job.queue.schedule_policy and not request.get("shareIdentifier"):
        raise ClientException("Share identifier is required for a fair share queue")
    job.children = [Job(backend, request, job, index) for index in range(size)]
    for one in (job, *job.children):
        backend._jobs[one.job_id] = one
        job.queue.jobs += [one] if one.parent is None else []
    if request.get("tags"):
        backend.tag_resource(job.arn, request["tags"])
    for one in job.children or [job]:
        one.start()
    return json.dumps({"jobId": job.job_id, "jobName": job.job_name, "jobArn": job.arn})


def cancel(response: BatchResponse) -> str:
    "CancelJob: only what has not started."
    _find(response).terminate(response._get_param("reason"), cancel=True)
    return "{}"


def terminate(response: BatchResponse) -> str:
    "TerminateJob."
    _find(response).terminate(response._get_param("reason"))
    return "{}"


def _find(response: BatchResponse) -> Job:
    job = response.batch_backend.get_job_by_id(response._get_param("jobId"))
    if job is None:
        raise ClientException("Job does not exist")
    return job


def describe(response: BatchResponse) -> str:
    "DescribeJobs, at most 100; ID#2 is node 2 of a job of several nodes."
    ids = response._get_param("jobs") or []
    if len(ids) > 100:
        raise ClientException("At most 100 jobs can be described at a time")
    found = []
    for id in ids:
        job, _, node = id.rpartition("/")[2].partition("#")
        job = response.batch_backend.get_job_by_id(job)
        if job and (not node or int(node) < len(job.nodes)):
            found.append(job.describe_node(int(node)) if node else job.describe())
    return json.dumps({"jobs": found})


def snapshot(response: BatchResponse) -> str:
    "GetJobQueueSnapshot: what waits at the front of a queue."
    queue = response.batch_backend.get_job_queue(response._get_param("jobQueue"))
    if queue is None:
        raise ClientException("Job queue does not exist")
    every = [one for job in queue.jobs for one in (job.children or [job])]
    front = [{"jobArn": j.arn, "earliestTimeAtPosition": j.earliest} for j in every if j.status == "RUNNABLE"]
    return json.dumps({"frontOfQueue": {"jobs": front[:100], "lastUpdatedAt": now()}})


def install() -> None:
    "Put all this in the place of moto's."
    BatchResponse.submitjob, BatchResponse.describejobs, BatchResponse.canceljob = submit, describe, cancel
    BatchResponse.terminatejob, BatchResponse.getjobqueuesnapshot = terminate, snapshot
    urls.url_paths["{0}/v1/getjobqueuesnapshot"] = BatchResponse.dispatch
