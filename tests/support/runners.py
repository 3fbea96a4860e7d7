"""Each runner with what it runs on: processes of this machine, an emulated AWS Batch, an emulated Kubernetes.

In both emulations a container is a process of this machine, started with the command and the variables of its request.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from slml.runners.local import LocalRunner
from slml.runners.runner import Runner
from slml.runs.run import load_run
from slml.storage import read_text
from slml.workspace import Workspace

from support.aws import ACCOUNT, BUCKET, REGION


@dataclass
class Implementation:
    """A runner with room for one job at a time, and what a test has to know of it."""

    runner: Runner
    process_of: Callable[[str], int]  # the process that executes a run
    killed: str = "OutOfMemory"  # the failure of a run whose process got SIGKILL; for a container that is the usual one
    cancel_code: int = 143  # with which a run ends that somebody has cancelled
    lacks: dict[str, str] = field(default_factory=dict)  # what it cannot do here -> why


@contextmanager
def local(folder: Path, tracking_uri: str) -> Iterator[Implementation]:
    workspace = Workspace(root=str(folder / "root"), project="test", cores=1, tracking_uri=tracking_uri)
    yield Implementation(LocalRunner(workspace), lambda id: load_run(workspace, id).pid, killed="ProcessGone")


@contextmanager
def kubernetes(folder: Path, tracking_uri: str) -> Iterator[Implementation]:
    from cloud.kubernetes_api import Cluster

    from slml.runners.kubernetes.runner import KubernetesRunner

    (folder / "cluster").mkdir()
    cluster = Cluster(folder / "cluster")
    workspace = Workspace(
        root=f"file://{folder}/root", project="test", stack="ml", image="slml:cpu", runner="kubernetes", cores=1,
        tracking_uri=tracking_uri,
    )  # fmt: skip

    def process_of(id: str) -> int:
        name = read_text(f"{workspace.uri('runs', id)}/remote.txt").partition(":")[0]
        return next(pod.process.pid for pod in cluster.jobs[name].pods if pod.process)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig()))
        yield Implementation(KubernetesRunner(workspace), process_of)
    cluster.close()


@contextmanager
def batch(folder: Path, tracking_uri: str) -> Iterator[Implementation]:
    import boto3
    from cloud import batch as emulation
    from moto.batch import urls
    from moto.batch.models import batch_backends
    from moto.batch.responses import BatchResponse
    from moto.server import ThreadedMotoServer

    from slml.runners.batch.runner import BatchRunner

    with pytest.MonkeyPatch.context() as patch:
        for name in ("submitjob", "describejobs", "canceljob", "terminatejob", "getjobqueuesnapshot"):
            patch.setattr(BatchResponse, name, getattr(BatchResponse, name, None), raising=False)  # put back at the end
        patch.setitem(urls.url_paths, "{0}/v1/getjobqueuesnapshot", BatchResponse.dispatch)
        emulation.install()
        patch.setattr(emulation, "Node", _process_node(emulation, folder))
        patch.setattr(emulation, "MACHINES", emulation.Capacity(1))
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
        for name in ("AWS_ENDPOINT_URL", "MOTO_URL"):
            patch.setenv(name, url)
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": REGION}
        for name, value in keys.items():
            patch.setenv(name, value)
        _reset(url)  # moto keeps one AWS for the whole process
        _make_stack(boto3)
        root = f"s3://{BUCKET}/test"
        workspace = Workspace(
            root=root, project="test", user="ada", runner="batch", catalog_uri="glue", tracking_uri="", cores=1
        )

        def process_of(id: str) -> int:
            job = batch_backends[ACCOUNT][REGION]._jobs[read_text(f"{root}/runs/{id}/remote.txt")]
            return job.nodes[0].process.pid

        why = "a Batch job does not reach the file of this machine that MLflow writes"
        yield Implementation(BatchRunner(workspace), process_of, cancel_code=130, lacks={"tracking": why})
        jobs = list(batch_backends[ACCOUNT][REGION]._jobs.values())
        for job in jobs:
            job.terminate("the test is over")
        for job in jobs:
            if job.is_alive():  # an array itself runs nothing
                job.join(60)
        _reset(url)
        server.stop()


def _reset(url: str) -> None:
    with urlopen(Request(f"{url}/moto-api/reset", method="POST")):
        pass


def _process_node(emulation: object, folder: Path) -> type:
    """A container as a process of this machine, whose log goes where the service would put it."""

    class ProcessNode(emulation.Node):
        process: subprocess.Popen | None = None

        def run(self) -> None:
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLML_")}
            logs = self.job.backend.logs_backend
            logs.ensure_log_group(self.group)
            logs.ensure_log_stream(self.group, self.stream)
            self.process = subprocess.Popen(
                [sys.executable, *self.spec["command"][1:]], env=inherited | self.environment, cwd=folder,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self.begun.set()
            for line in self.process.stdout:
                self._put(logs, [line.rstrip(b"\n")])
            code = self.process.wait()
            self.exit_code = 128 - code if code < 0 else code
            self.gone.set()

        def end(self, grace: float) -> None:
            for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 10)):
                if self.process and self.process.poll() is None:
                    os.killpg(self.process.pid, number) if number == signal.SIGKILL else self.process.send_signal(
                        number
                    )
                    self.gone.wait(seconds)

    return ProcessNode


def _make_stack(boto3: object) -> None:
    s3, ec2, iam, client = (boto3.client(name) for name in ("s3", "ec2", "iam", "batch"))
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    role = iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    machines = {"type": "FARGATE", "maxvCpus": 16, "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]]}
    machines |= {"securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]]}
    client.create_compute_environment(
        computeEnvironmentName="slml-cpu", type="MANAGED", computeResources=machines, serviceRole=role
    )
    order = [{"order": 1, "computeEnvironment": "slml-cpu"}]
    client.create_job_queue(jobQueueName="slml-cpu", priority=1, computeEnvironmentOrder=order, state="ENABLED")
    needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "4096"}]
    container = {
        "image": "slml:cpu",
        "command": ["python", "-m", "slml.execution.entry"],
        "resourceRequirements": needs,
    }
    client.register_job_definition(jobDefinitionName="slml-test-cpu", type="container", containerProperties=container)


IMPLEMENTATIONS = {"local": local, "batch": batch, "kubernetes": kubernetes}
