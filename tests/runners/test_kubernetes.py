"""Jobs on Kubernetes: what is asked is what its own client knows, and what comes back is told in plain words."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from cloud.kubernetes_api import Cluster as Emulated
from kubernetes import client

from slml.errors import CloudError, SubmissionError
from slml.runners.kubernetes.manifest import job_manifest, service_manifest, waiter_manifest
from slml.runners.kubernetes.runner import KubernetesRunner
from slml.runners.kubernetes.why import cluster_failure, cluster_reason, job_state, lacks_image, pod_messages
from slml.runners.open import open_runner
from slml.runs.job import Job, job
from slml.runs.resources import Resources
from slml.runs.run import Run
from slml.workspace import Workspace

RUN = Run(
    "20230105-101500-123-train-4f2a", "train", "train.ipynb", {}, project="taxi_dc", user="ada@example.org",
    folder="gs://fares/taxi/runs/1", archive="gs://fares/taxi/code/2c26.tar.gz", cwd="nbs", pipeline="nightly",
)  # fmt: skip
REMOTE = Workspace(root="gs://fares/taxi", project="taxi_dc", user="ada@example.org", stack="ml", image="slml:cpu")


# What is asked


def as_typed(asked: dict, kind: str) -> object:
    """A dictionary through the client's own models; a field that these do not know is lost, and found missing."""
    api = client.ApiClient(client.Configuration())
    typed = api.deserialize(json.dumps(asked), kind, "application/json")
    assert api.sanitize_for_serialization(typed) == asked
    return typed


@pytest.mark.parametrize(
    "needs",
    [Resources(), Resources(cores=8, memory=30.5, gpus=2), Resources(processes=4), Resources(nodes=3, processes=2)],
    ids=str,
)
def test_the_clients_models_know_every_field(needs):
    run = replace(RUN, resources=needs)
    typed = as_typed(job_manifest(run, REMOTE, suspend=True), "V1Job")
    pod = typed.spec.template.spec
    assert pod.restart_policy == "Never"
    assert pod.containers[0].resources.requests == pod.containers[0].resources.limits
    assert pod.service_account_name.startswith("slml-taxi-dc")
    assert (typed.spec.completions or 1) == needs.nodes
    assert (
        as_typed(waiter_manifest(run, REMOTE, "uid"), "V1Job").metadata.owner_references[0].name == typed.metadata.name
    )
    assert as_typed(service_manifest(run, "ml", "uid"), "V1Service").spec.cluster_ip == "None"


def test_an_array_fails_index_by_index():
    typed = as_typed(job_manifest(RUN, REMOTE, "gs://fares/taxi/runs/1/array.txt", 500), "V1Job")
    assert (typed.spec.completions, typed.spec.backoff_limit, typed.spec.backoff_limit_per_index) == (500, None, 2)
    assert typed.spec.pod_failure_policy.rules[1].action == "FailIndex"


def test_names_and_labels_are_as_kubernetes_takes_them():
    odd = replace(RUN, id=f"20230105-101500-123-{'A_job' * 30}-4f2a", user="Ädä @ home ", project="p" * 90)
    asked = job_manifest(odd, REMOTE)
    names = [asked["metadata"]["name"], asked["spec"]["template"]["spec"]["serviceAccountName"]]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,55}[a-z0-9])?", name) for name in names)
    values = asked["metadata"]["labels"].values()
    assert all(re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value) for value in values)
    other = job_manifest(replace(odd, id=odd.id[:-1] + "b"), REMOTE)
    assert other["metadata"]["name"] != names[0]


def test_nothing_in_a_pod_is_root():
    pod = job_manifest(RUN, REMOTE)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


# What comes back: pods as Kubernetes describes them


def pod(phase: str = "Pending", **status: object) -> dict:
    return {
        "metadata": {"name": "p", "creationTimestamp": "2023-01-05T10:15:00Z"},
        "status": {"phase": phase, **status},
    }


def container(**state: dict) -> dict:
    return {"containerStatuses": [{"name": "job", "state": state}]}


FAILED = {"spec": {}, "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]}}
DISRUPTED = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]}
GONE = {"spec": {}, "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}}


@pytest.mark.parametrize(
    ("pods", "kind"),
    [
        ([pod("Failed", **container(terminated={"exitCode": 137, "reason": "OOMKilled"}))], "OutOfMemory"),
        ([pod("Failed", **container(terminated={"exitCode": 137, "reason": "Error"}))], "OutOfMemory"),
        ([pod("Failed", reason="DeadlineExceeded", message="Pod was active longer")], "TimedOut"),
        ([pod("Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage.")], "HostLost"),
        ([pod("Failed", **DISRUPTED, **container(terminated={"exitCode": 143, "reason": "Error"}))], "HostLost"),
        ([pod(**container(waiting={"reason": "ErrImagePull", "message": "not found"}))], "ImageNotFound"),
        ([pod(**container(waiting={"reason": "CreateContainerConfigError"}))], "RoleRefused"),
        ([pod("Failed", **container(terminated={"exitCode": 2, "reason": "Error"}))], "ProcessGone"),
        ([], "ProcessGone"),
    ],
)
def test_a_pod_that_could_not_speak_is_spoken_for(pods, kind):
    failure = cluster_failure(FAILED if pods else GONE, pods)
    assert failure.type == kind
    assert failure.message


def test_each_state_has_a_sentence():
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    quota = {"reason": "FailedCreate", "message": "exceeded quota: team"}
    account = {"reason": "FailedCreate", "message": 'serviceaccount "slml-taxi" not found'}
    for pods, events, words in [
        ([pod(conditions=[unschedulable])], [], "0/3 nodes"),
        ([pod(**container(waiting={"reason": "ImagePullBackOff", "message": "no such tag"}))], [], "no such tag"),
        ([pod(**container(waiting={"reason": "ContainerCreating"}))], [], "fetches its image"),
        ([], [quota], "quota"),
        ([], [account], "account"),
    ]:
        told = cluster_reason(RUN, "waiting", pods, events)
        assert words in str(told)
        assert told.todo
    assert "5132" in str(cluster_reason(RUN, "suspended", [], waits=["5132"]))
    assert "node-1" in str(cluster_reason(RUN, "running", [pod("Running") | {"spec": {"nodeName": "node-1"}}]))


def test_how_far_a_job_has_come():
    job = {"spec": {}, "status": {"completedIndexes": "0-2", "failedIndexes": "4"}}
    assert [job_state(job, [], index) for index in "0123456"[:5]] == [
        "succeeded", "succeeded", "succeeded", "waiting", "failed",
    ]  # fmt: skip
    assert job_state({"spec": {"suspend": True}}, []) == "suspended"
    assert lacks_image([pod(**container(waiting={"reason": "InvalidImageName"}))])
    assert pod_messages(pod()) == []


# The whole way, with the official client and a server on the loopback


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    (tmp_path / "cluster").mkdir()
    emulated = Emulated(tmp_path / "cluster")
    monkeypatch.setenv("KUBECONFIG", str(emulated.kubeconfig()))
    yield emulated
    emulated.close()


@pytest.fixture
def runner(cluster: Emulated, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> KubernetesRunner:
    project = tmp_path / "project"
    project.mkdir()
    (project / "slml.toml").write_text("")
    monkeypatch.chdir(project)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", os.environ["KUBECONFIG"])
    root = f"file://{tmp_path}/root"
    workspace = Workspace(
        root=root, project="test", stack="ml", image="slml:cpu", runner="kubernetes", cores=1, tracking_uri=tracking_uri
    )
    return KubernetesRunner(workspace)


def notebook(name: str, *sources: str) -> str:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), f"{name}.ipynb")
    return f"{name}.ipynb"


def until(condition, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def sleeper(runner: KubernetesRunner) -> Job:
    source = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
    return job(notebook("sleeper", "", source), {})


def test_a_job_runs_and_its_log_outlives_its_pod(runner, cluster):
    Path("helper.py").write_text("half = lambda rows: rows / 2")
    source = "from helper import half; from slml.runs.record import record\nprint('hello', rows)"
    path = notebook("half", "rows: int = 10  # rows", source, "record({'half': half(rows)})")
    id = runner.submit(job(path, {"rows": 30}))
    run = runner.wait(id)
    assert (run.status, run.error, run.metrics) == ("done", None, {"half": 15.0})
    cluster.jobs.clear()
    assert "hello 30" in runner.logs(id)
    assert runner.why(id).state == "done"


def test_an_error_in_the_notebook_is_not_tried_again(runner, cluster):
    run = runner.wait(runner.submit(job(notebook("bad", "", "1 / 0"), {})))
    assert (run.status, run.error.type, run.attempt) == ("failed", "ZeroDivisionError", 1)
    assert len(cluster.pods()) == 1


@pytest.mark.slow
def test_a_run_waits_for_room_and_is_cancelled(runner, cluster, sleeper):
    first, second = runner.submit(sleeper), runner.submit(sleeper)
    until(lambda: "pid" in runner.logs(first))
    assert (runner.status(first), runner.status(second)) == ("running", "waiting")
    assert "No node has room" in runner.why(second).why
    runner.cancel(second)
    runner.cancel(first)
    assert not cluster.jobs
    assert [runner.wait(id).status for id in (first, second)] == ["cancelled", "cancelled"]
    assert "pid" in runner.logs(first)


@pytest.mark.slow
def test_a_run_whose_node_is_taken_back_is_tried_again(runner, cluster, tmp_path):
    source = f"import pathlib, time\nmark = pathlib.Path('{tmp_path}/mark')\nfirst = not mark.exists()\nmark.touch()"
    path = notebook("twice", "", source, "print('begun', flush=True)", "if first: time.sleep(600)")
    id = runner.submit(job(path, {}))
    until(lambda: "begun" in runner.logs(id))
    [pod] = cluster.pods()
    pod.marks["disrupted"] = True
    pod.process.send_signal(signal.SIGTERM)
    run = runner.wait(id)
    assert (run.status, run.attempt) == ("done", 2)
    assert len(cluster.pods()) == 2


def test_a_pod_that_ran_out_of_memory_is_called_that(runner, cluster, sleeper):
    id = runner.submit(sleeper)
    until(lambda: "pid" in runner.logs(id))
    [pod] = cluster.pods()
    pod.marks["reason"] = "OOMKilled"
    os.killpg(pod.process.pid, signal.SIGKILL)
    run = runner.wait(id)
    assert (run.status, run.error.type) == ("failed", "OutOfMemory")
    assert run.tracking, "a run that could not speak for itself is tracked too"
    assert "--memory" in runner.why(id).todo


@pytest.mark.slow
def test_runs_come_after_others_without_an_orchestrator(runner, cluster):
    last = "from slml.runs.record import record\nrecord(outputs={'rows': rows})"
    first = runner.submit(job(notebook("first", "rows: int = 10", "import time; time.sleep(2)", last), {}))
    second = runner.submit(job(notebook("second", "rows: int", last), {"rows": f"${{{first}.rows}}"}), after=[first])
    assert runner.why(second).state == "suspended"
    assert first in runner.why(second).why
    assert runner.wait(second).outputs == {"rows": 10}


@pytest.mark.slow
def test_a_run_after_one_that_failed_is_skipped(runner, cluster):
    first = runner.submit(job(notebook("first", "", "1 / 0"), {}))
    second = runner.submit(job(notebook("second", "", "1"), {}), after=[first])
    third = runner.submit(job(notebook("second", "", "1"), {}), after=[second])
    for id in (second, third):
        run = runner.wait(id)
        assert (run.status, run.error.type) == ("cancelled", "Skipped")
    until(lambda: len(cluster.jobs) == 1)  # what was not to run is gone


@pytest.mark.slow
def test_an_array_is_one_job(runner, cluster):
    cluster.cpus = 3
    source = "from slml.runs.record import record; record({'half': rows / 2}); assert rows != 4"
    path = notebook("half", "rows: int", source)
    ids = runner.submit_array([job(path, {"rows": rows}) for rows in (2, 4, 6)])
    assert [runner.wait(id).status for id in ids] == ["done", "failed", "done"]
    assert len(cluster.jobs) == 1


def test_an_image_that_is_not_there(runner, cluster, monkeypatch):
    missing = KubernetesRunner(runner.workspace.model_copy(update={"image": "missing"}))
    id = missing.submit(job(notebook("one", "", "1"), {}))
    until(lambda: "could not be fetched" in missing.why(id).why)
    monkeypatch.setattr("slml.runners.kubernetes.runner.lacks_image", lambda pods: bool(pods))
    run = missing.wait(id)
    assert (run.status, run.error.type) == ("failed", "ImageNotFound")
    until(lambda: not cluster.jobs)


@pytest.mark.slow
def test_a_quota_that_is_used_up(runner, cluster):
    cluster.quota = "exceeded quota: team, requested: cpu=1, used: cpu=8, limited: cpu=8"
    id = runner.submit(job(notebook("one", "", "1"), {}))
    assert "quota" in runner.why(id).why
    cluster.quota = ""
    assert runner.wait(id).status == "done"


def test_a_job_that_somebody_deleted(runner, cluster, sleeper):
    id = runner.submit(sleeper)
    until(lambda: "pid" in runner.logs(id))
    pod = cluster.pods()[0]
    os.killpg(pod.process.pid, signal.SIGKILL)
    cluster.jobs.clear()
    run = runner.wait(id)
    assert (run.status, run.error.type) == ("failed", "ProcessGone")


def test_what_is_refused_leaves_nothing(runner, cluster, tmp_path):
    one = job(notebook("one", "", "1"), {})
    cluster.forbidden = True
    with pytest.raises(CloudError, match="does not let you create a Job"):
        runner.submit(one)
    assert not list(Path(tmp_path, "root", "runs").glob("*"))
    local = runner.workspace.model_copy(update={"root": str(tmp_path / "root")})
    with pytest.raises(SubmissionError, match="cannot reach the root"):
        KubernetesRunner(local).submit(one)
    with pytest.raises(SubmissionError, match="SLML_IMAGE"):
        KubernetesRunner(runner.workspace.model_copy(update={"image": ""})).submit(one)


def test_a_cluster_that_is_not_there(runner, monkeypatch):
    one = job(notebook("one", "", "1"), {})
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    with pytest.raises(CloudError, match="no Kubernetes cluster"):
        KubernetesRunner(runner.workspace).submit(one)


def test_the_workspace_names_it(runner):
    assert isinstance(open_runner(runner.workspace), KubernetesRunner)


def test_slml_does_not_load_its_client_for_nothing():
    code = "import sys, slml, slml.cli, slml.runners.runner; print('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
