"""The image of jobs: what goes into it, and who builds it; the tools are stand-ins that note what they were asked."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

import slml
from slml.aws.image import (
    build_context,
    build_image,
    build_options,
    build_wheel,
    codebuild_project,
    find_build_tool,
    pinned_versions,
    required_libraries,
)
from slml.errors import CloudError, SubmissionError
from slml.workspace import Workspace

DIGEST = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """A place where pip has installed the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        name, content = build_wheel()
        Path(folder, name).write_bytes(content)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
        subprocess.run([*pip, "--target", f"{folder}/there", f"{folder}/{name}"], check=True, timeout=120)
        yield Path(folder, "there")


def test_the_wheel_is_slml_and_can_be_made_from_what_it_installed(installed: Path) -> None:
    code = "import hashlib, slml; from slml.aws.image import build_wheel; "
    code += "print(slml.__file__, hashlib.sha256(build_wheel()[1]).hexdigest())"
    told = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], env=told, cwd="/", capture_output=True, text=True, check=True)
    place, digest = done.stdout.split()
    assert Path(place).is_relative_to(installed)
    assert digest == hashlib.sha256(build_wheel()[1]).hexdigest()
    assert (installed / "bin" / "slml").exists(), "the command is there"
    assert (installed / "slml" / "aws" / "Dockerfile").exists()


def test_a_context_is_the_same_each_time_and_holds_what_is_copied(tmp_path: Path) -> None:
    files = build_context(tmp_path)
    assert build_context(tmp_path) == files
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) ", files["Dockerfile"].decode(), re.M)
    assert copied
    for name in copied:
        assert any(re.fullmatch(name.replace("*", ".*"), known) for known in files), f"{name} is not in the context"


def test_the_versions_of_the_project_or_of_this_environment(tmp_path: Path) -> None:
    lines = pinned_versions().splitlines()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^+@\s]+", line) for line in lines)
    wanted = {re.split(r"[\[=><]", line)[0] for line in required_libraries().splitlines()}
    pinned = {line.partition("==")[0].replace("_", "-") for line in lines}
    assert {name.replace("_", "-").lower() for name in wanted} <= pinned
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    assert build_context(tmp_path)["constraints.txt"] == b"torch==2.13.0\n"


@pytest.mark.parametrize("line", ["-e .", "-r dev.txt", "./wheels/a.whl", "/opt/a", "--editable .", "file:///a"])
def test_libraries_of_this_machine_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(f"# ours\nlightgbm>=4  # trees\n{line}\n")
    with pytest.raises(SubmissionError, match="Line 3"):
        build_context(tmp_path)


def test_the_dockerfile_keeps_its_promises(tmp_path: Path) -> None:
    text = build_context(tmp_path)["Dockerfile"].decode()
    job = text[text.index(" AS job") :]
    assert re.search(r"^USER [1-9]\d+$", job, re.M), "not root, and Kubernetes can see it"
    assert 'CMD ["python", "-m", "slml.execution.entry"]' in job
    assert "ENTRYPOINT" not in text
    for name in ("OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=0", "PYTHONUNBUFFERED=1"):
        assert name in text
    assert text.index("libraries.txt") < text.index("requirements.txt") < text.index("slml-*.whl"), "slml last"
    options = build_options("gpu", {"PIP_INDEX_URL": "https://pypi.example.org", "VARIANT": "other"})
    for name in {word.partition("=")[0] for word in options if "=" in word}:
        assert re.search(rf"^ARG {name}\b", text, re.M), f"{name} is no argument of the Dockerfile"
    assert "VARIANT=gpu" in options


# Who builds.


class Tools:
    """Stand-ins for docker and podman."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, folder / "calls"

    def put(self, name: str, script: str = "") -> None:
        """A tool that notes its call and what comes to its standard input, then does what a script says."""
        note = f'echo "{name} $*" >> {self.calls}\n'
        (self.folder / name).write_text(f"#!/bin/sh\n{note}{script}\n")
        (self.folder / name).chmod(0o755)

    @property
    def said(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


DOCKER = f"""case $1 in
  build) for last; do :; done; /bin/ls "$last"; echo "Step 1/9" ;;
  login) echo "in: $(/bin/cat)" >> "$0.login" ;;
  push) echo "cpu: digest: {DIGEST} size: 2417" ;;
esac"""
PODMAN = f"""case $1 in
  login) /bin/cat > /dev/null ;;
  push) echo {DIGEST} > "$3" ;;
esac"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Tools(tmp_path / "bin")


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A stack with a bucket and an image repository."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    told = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (told | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}).items():
        monkeypatch.setenv(name, value)
    urlopen(f"http://127.0.0.1:{port}/moto-api/reset", b"")  # what it holds belongs to the process
    boto3.setup_default_session()
    S3FileSystem.clear_instance_cache()
    S3FileSystem().mkdir("bucket")
    boto3.client("ecr").create_repository(repositoryName="slml")
    yield Workspace(root="s3://bucket/fares", project="fares", stack="slml")
    server.stop()


@pytest.mark.parametrize(("name", "script"), [("docker", DOCKER), ("podman", PODMAN)])
def test_built_pushed_and_named_by_its_digest(
    name: str, script: str, tools: Tools, cloud: Workspace, tmp_path: Path
) -> None:
    tools.put(name, script)
    seen = []
    made = build_image(
        cloud, tmp_path, "gpu", arguments={"BASE": "example.org/python"}, options=["--quiet"], echo=seen.append
    )
    assert made == f"123456789012.dkr.ecr.us-east-1.amazonaws.com/slml:gpu@{DIGEST}"
    verbs = [line.split()[1] for line in tools.said]
    assert verbs == ["version", "build", "login", "push"]
    built = tools.said[1]
    assert "--target job" in built
    assert "--build-arg BASE=example.org/python" in built
    assert "--build-arg VARIANT=gpu --quiet --tag 123456789012.dkr.ecr.us-east-1.amazonaws.com/slml:gpu" in built
    assert "--password-stdin" in tools.said[2]
    assert "auth" not in tools.said[2], "no password where other users of the machine see it"
    if name == "docker":
        assert (tools.folder / "docker.login").read_text().strip() == "in: 123456789012-auth-token"
        assert {"Dockerfile", "Step 1/9", f"slml-{slml.__version__}-py3-none-any.whl"} <= set(seen)


def test_a_docker_without_a_server_is_passed_over(tools: Tools) -> None:
    assert find_build_tool() == ""
    tools.put("docker", "echo 'Cannot connect to the Docker daemon'; exit 1")
    assert find_build_tool() == ""
    tools.put("podman")
    assert find_build_tool() == "podman"


def test_a_failing_build_shows_why_and_pushes_nothing(tools: Tools, cloud: Workspace, tmp_path: Path) -> None:
    tools.put("podman", "[ $1 = version ] || { echo 'No matching distribution found for lightgbm'; exit 4; }")
    with pytest.raises(CloudError, match="podman build failed with code 4") as caught:
        build_image(cloud, tmp_path, echo=lambda line: None)
    assert "lightgbm" in caught.value.came
    assert [line.split()[1] for line in tools.said] == ["version", "build"]


def test_an_image_of_another_registry_needs_no_aws(tools: Tools, tmp_path: Path) -> None:
    tools.put("podman", PODMAN)
    workspace = Workspace(root=str(tmp_path / "root"), project="fares", image="europe-docker.pkg.dev/p/slml/jobs:1")
    assert build_image(workspace, tmp_path) == f"europe-docker.pkg.dev/p/slml/jobs:1@{DIGEST}"
    assert [line.split()[1] for line in tools.said] == ["version", "build", "push"]


def test_an_image_for_this_machine_alone(tools: Tools, workspace: Workspace, tmp_path: Path) -> None:
    tools.put("podman", PODMAN)
    assert build_image(workspace, tmp_path, push=False) == "slml:cpu"
    assert [line.split()[1] for line in tools.said] == ["version", "build"]


def test_where_nothing_can_build(tools: Tools, workspace: Workspace, cloud: Workspace, tmp_path: Path) -> None:
    for where, push in ((workspace, True), (cloud, False)):
        with pytest.raises(CloudError, match="Nothing here can build"):
            build_image(where, tmp_path, push=push)
    with pytest.raises(CloudError, match="the builder slml-image"):
        build_image(cloud, tmp_path)
    with pytest.raises(CloudError, match="repository of the stack other"):
        build_image(cloud.model_copy(update={"stack": "other"}), tmp_path)


def test_the_stack_builds_where_no_tool_is_at_hand(tools: Tools, cloud: Workspace, tmp_path: Path) -> None:
    client, ecr = boto3.client("codebuild"), boto3.client("ecr")
    client.create_project(
        name=codebuild_project("slml"),
        source={"type": "S3", "location": "bucket/image/"},
        artifacts={"type": "NO_ARTIFACTS"},
        environment={
            "type": "LINUX_CONTAINER",
            "image": "aws/codebuild/standard:7.0",
            "computeType": "BUILD_GENERAL1_SMALL",
        },
        serviceRole="arn:aws:iam::123456789012:role/slml-image",
    )
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": {"digest": DIGEST}, "layers": []}
    put = ecr.put_image(repositoryName="slml", imageManifest=json.dumps(manifest), imageTag="cpu")
    made = build_image(cloud, tmp_path, arguments={"PIP_INDEX_URL": "https://pypi.example.org"})
    assert made.endswith(f"/slml:cpu@{put['image']['imageId']['imageDigest']}")
    [uri] = S3FileSystem().ls("bucket/fares/image")
    assert uri.endswith(".zip")
