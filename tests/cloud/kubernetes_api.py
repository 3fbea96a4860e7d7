"""The few routes of a Kubernetes API server that slml asks, with pods that are processes of this machine.

The official client speaks to it over HTTP, with a kubeconfig of its own, and its answers have the shape of the real
ones. What it does with a Job follows the documentation of Kubernetes (Jobs; Pod failure policy; Pod lifecycle):

- a pod begins when a CPU is free for it, else its condition PodScheduled is False with the reason Unschedulable
- an image that is called `missing` stays in ImagePullBackOff
- Indexed Jobs have a pod for each index; a suspended Job has none
- a pod that failed is tried again by podFailurePolicy, backoffLimit and backoffLimitPerIndex
- deleting a Job or a pod sends SIGTERM, and SIGKILL after `terminationGracePeriodSeconds`; what a Job owns goes too
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

NAME, INDEX = "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Pod:
    """One pod: a process, or the wait for one."""

    def __init__(self, job: "Job", index: int | None):
        template = job.spec["template"]
        self.job, self.index, self.spec = job, index, template["spec"]
        number = f"-{index}" if index is not None else ""
        self.name = f"{job.name}{number}-{next(job.cluster.numbers):05d}"
        marks = {NAME: job.name, **({INDEX: str(index)} if index is not None else {})}
        self.meta = {"name": self.name, "labels": template["metadata"]["labels"] | marks, "creationTimestamp": now()}
        self.container = self.spec["containers"][0]
        self.cpu = float(self.container["resources"]["requests"]["cpu"].removesuffix("m"))
        self.cpu /= 1000 if self.container["resources"]["requests"]["cpu"].endswith("m") else 1
        self.log = job.cluster.folder / f"{self.name}.log"
        self.log.touch()
        self.process: subprocess.Popen | None = None
        self.marks: dict = {}  # what a test has done to it: reason, disrupted
        self.code: int | None = None

    def begin(self) -> None:
        told = {each["name"]: each["value"] for each in self.container["env"]}
        told |= {"JOB_COMPLETION_INDEX": str(self.index)} if self.index is not None else {}
        if "MASTER_ADDR" in told:  # what the headless service would resolve
            told["MASTER_ADDR"] = "127.0.0.1"
        command = [sys.executable, *self.container["command"][1:]]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | told, stdout=log, stderr=log, cwd=self.job.cluster.folder,
                start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """SIGTERM, then SIGKILL; returns when it has ended."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(self.spec.get("terminationGracePeriodSeconds", 30))
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def pulls(self) -> bool:
        return self.container["image"] == "missing"

    def describe(self) -> dict:
        name, conditions = self.container["name"], []
        status: dict = {"phase": "Pending"}
        spec = {"containers": [{"name": name}]}
        if self.process or self.pulls:
            spec["nodeName"] = "node-1"
        else:
            text = "0/1 nodes are available: 1 Insufficient cpu."
            conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}]
        if self.pulls:
            state = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "missing"'}}
            status["containerStatuses"] = [self._container(state)]
        elif self.code is not None:
            status["phase"] = "Succeeded" if self.code == 0 else "Failed"
            reason = self.marks.get("reason") or ("Completed" if self.code == 0 else "Error")
            status["containerStatuses"] = [self._container({"terminated": {"exitCode": self.code, "reason": reason}})]
        elif self.process:
            status |= {"phase": "Running", "containerStatuses": [self._container({"running": {"startedAt": now()}})]}
        if self.marks.get("disrupted"):
            text = "Node is shutting down."
            conditions.append({"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"})
            conditions[-1]["message"] = text
        return {"metadata": self.meta, "spec": spec, "status": status | {"conditions": conditions}}

    def _container(self, state: dict) -> dict:
        image = self.container["image"]
        fixed = {"name": self.container["name"], "image": image, "imageID": "", "ready": False, "restartCount": 0}
        return fixed | {"state": state}


class Job:
    """One Job, and what the controller does with it."""

    def __init__(self, cluster: "Cluster", asked: dict):
        self.cluster, self.asked = cluster, asked
        self.name, self.spec, self.uid = asked["metadata"]["name"], asked["spec"], f"uid-{asked['metadata']['name']}"
        self.pods: list[Pod] = []
        self.done: set[int | None] = set()
        self.failed: set[int | None] = set()
        self.over = ""  # Complete or Failed
        self.reason = ""

    @property
    def indexes(self) -> list[int | None]:
        indexed = self.spec.get("completionMode") == "Indexed"
        return list(range(self.spec["completions"])) if indexed else [None]

    def step(self) -> None:
        """Look at the pods, and begin those that are due."""
        for pod in self.pods:
            if pod.process and pod.code is None and (code := pod.process.poll()) is not None:
                pod.code = 128 - code if code < 0 else code
                self._judge(pod)
        if self.over or self.spec.get("suspend"):
            return
        for index in self.indexes:
            mine = [pod for pod in self.pods if pod.index == index]
            if index not in self.done | self.failed and all(pod.code is not None for pod in mine):
                self.pods.append(Pod(self, index))
        for pod in self.pods:
            if not pod.process and not pod.pulls and pod.code is None and self.cluster.free() >= pod.cpu:
                pod.begin()

    def _judge(self, pod: Pod) -> None:
        if pod.code == 0:
            self.done.add(pod.index)
        else:
            action = next((r["action"] for r in self._rules() if self._fits(r, pod)), "Count")
            tries = [p for p in self.pods if p.index == pod.index and p.code]
            per_index = "backoffLimitPerIndex" in self.spec
            limit = self.spec.get("backoffLimitPerIndex", self.spec.get("backoffLimit", 6))
            if action == "FailIndex" or (per_index and len(tries) > limit):
                self.failed.add(pod.index)
            elif action == "FailJob" or (not per_index and len([p for p in self.pods if p.code]) > limit):
                self.over, self.reason = "Failed", "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
                threading.Thread(target=lambda: [p.end() for p in self.pods]).start()
        if not self.over and len(self.done | self.failed) == len(self.indexes):
            self.over, self.reason = ("Failed", "FailedIndexes") if self.failed else ("Complete", "")

    def _rules(self) -> list[dict]:
        return self.spec.get("podFailurePolicy", {}).get("rules", [])

    def _fits(self, rule: dict, pod: Pod) -> bool:
        if "onPodConditions" in rule:
            return bool(pod.marks.get("disrupted"))
        codes = rule["onExitCodes"]
        return (pod.code in codes["values"]) == (codes["operator"] == "In")

    def describe(self) -> dict:
        status = {"conditions": [{"type": self.over, "status": "True", "reason": self.reason}] if self.over else []}
        if self.spec.get("suspend"):
            status["conditions"].append({"type": "Suspended", "status": "True", "reason": "JobSuspended"})
        if self.spec.get("completionMode") == "Indexed":
            status["completedIndexes"] = ",".join(map(str, sorted(self.done)))
            status["failedIndexes"] = ",".join(map(str, sorted(self.failed)))
        meta = self.asked["metadata"] | {"uid": self.uid, "creationTimestamp": now()}
        return {**self.asked, "metadata": meta, "status": status}


class Cluster:
    """A namespace with a number of CPUs, behind a server on the loopback."""

    def __init__(self, folder: Path, cpus: float = 1.5):
        self.folder, self.cpus, self.numbers = folder, cpus, itertools.count()
        self.jobs: dict[str, Job] = {}
        self.services: dict[str, dict] = {}
        self.quota = ""  # a message: then no pod can be created
        self.forbidden = False
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"cluster": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        threading.Thread(target=self._control, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def kubeconfig(self) -> Path:
        """A file as kubectl has it."""
        named = {"name": "test", "cluster": {"server": self.url}}
        context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
        found = {"apiVersion": "v1", "kind": "Config", "clusters": [named], "contexts": [context]}
        found |= {"current-context": "test", "users": [{"name": "test", "user": {"token": "t"}}]}
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps(found))
        return path

    def free(self) -> float:
        running = [pod for job in self.jobs.values() for pod in job.pods if pod.process and pod.process.poll() is None]
        return self.cpus - sum(pod.cpu for pod in running)

    def pods(self) -> list[Pod]:
        return [pod for job in self.jobs.values() for pod in job.pods]

    def _control(self) -> None:
        while not self.server._BaseServer__shutdown_request:
            with self.lock:
                for job in list(self.jobs.values()):
                    if not self.quota:
                        job.step()
            time.sleep(0.05)

    def delete(self, name: str) -> None:
        """A Job, its pods, and what it owns."""
        with self.lock:
            owned = [j for j in self.jobs.values() if self._owner(j.asked) == f"uid-{name}"]
            going = [self.jobs[name], *owned]
            for job in going:
                job.over = "Failed"

        def end() -> None:
            for pod in [pod for job in going for pod in job.pods]:
                pod.end()
            with self.lock:
                for job in going:
                    self.jobs.pop(job.name, None)

        threading.Thread(target=end).start()

    @staticmethod
    def _owner(asked: dict) -> str:
        return (asked["metadata"].get("ownerReferences") or [{"uid": ""}])[0]["uid"]

    def close(self) -> None:
        self.server.shutdown()
        for pod in self.pods():
            if pod.process and pod.process.poll() is None:
                os.killpg(pod.process.pid, signal.SIGKILL)
                pod.process.wait()


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    cluster: Cluster

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: dict | str, status: int = 200) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, message: str) -> None:
        self.answer({"kind": "Status", "status": "Failure", "code": status, "message": message}, status)

    def route(self) -> None:
        url, cluster = urlparse(self.path), self.cluster
        asked = {key: value[0] for key, value in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        found = re.fullmatch(r"/(?:api|apis/batch)/v1/namespaces/[^/]+/(\w+)(?:/([^/]+))?(/log)?", url.path)
        kind, name, log = found.groups() if found else ("", "", "")
        if cluster.forbidden:
            return self.refuse(403, f'{kind} is forbidden: User "ada" cannot do that in the namespace "ml"')
        with cluster.lock:
            if kind == "jobs" and self.command == "POST":
                job = Job(cluster, body)
                cluster.jobs[job.name] = job
                return self.answer(job.describe(), 201)
            if kind == "jobs" and name in cluster.jobs:
                if self.command == "PATCH":
                    cluster.jobs[name].spec |= body["spec"]
                if self.command == "DELETE":
                    cluster.delete(name)
                return self.answer(cluster.jobs[name].describe())
            if kind == "services":
                cluster.services[body["metadata"]["name"]] = body
                return self.answer(body, 201)
            if kind == "events":
                text = {"reason": "FailedCreate", "message": cluster.quota, "lastTimestamp": now()}
                event = {"metadata": {"name": "e"}, "involvedObject": {"name": "x"}, **text}
                return self.answer({"items": [event] if cluster.quota else []})
            pods = {pod.name: pod for pod in cluster.pods()}
            if kind == "pods" and not name:
                wanted = [part.split("=") for part in asked["labelSelector"].split(",")]
                held = [p for p in pods.values() if all(p.meta["labels"].get(key) == value for key, value in wanted)]
                return self.answer({"items": [pod.describe() for pod in held]})
            if kind == "pods" and name in pods:
                if log and not pods[name].process:
                    return self.refuse(400, f'container "job" in pod "{name}" is waiting to start: ContainerCreating')
                if log:
                    return self.answer(pods[name].log.read_text())
                if self.command == "DELETE":
                    threading.Thread(target=pods[name].end).start()
                return self.answer(pods[name].describe())
        return self.refuse(404, f'{kind} "{name}" not found')

    do_GET = do_POST = do_PATCH = do_DELETE = route  # noqa: N815
