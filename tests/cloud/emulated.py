"""The emulated cloud as pytest fixtures: `make test-cloud` loads this file as a plugin.

Containers that really run (engine.py), moto's server with what it lacks (server.py), MLflow's server; then slml's own
stack and image, and two projects whose users have no other rights than those of their project's role."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import boto3
import image as images
import pytest
from engine import Engine, free_port, missing, wait_for_port

FOLDER = Path(os.environ.get("SLML_TEST_CLOUD", "~/.cache/slml-test-cloud")).expanduser()
REPOSITORY = Path(__file__).resolve().parents[2]
REGION, ACCOUNT, STACK = "eu-central-1", "123456789012", "slml"
BUCKET = f"{STACK}-{ACCOUNT}-{REGION}"
MANIFEST = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "layers": []}


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Containers; a message what to install where they cannot be had."""
    if missing():
        pytest.skip(missing())
    engine = Engine(FOLDER).start()
    yield engine
    engine.stop()


def serve(command: list[str], log: Path, environment: Mapping[str, str], port: int) -> Iterator[str]:
    """A server on the loopback, until the tests end."""
    with open(log, "wb") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for_port(port, 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="session")
def cloud(engine: Engine) -> Iterator[str]:
    """The address of the emulated AWS; this process is its owner from here on."""
    port = free_port()
    server = Path(__file__).with_name("server.py")
    command = [sys.executable, str(server), str(port), str(engine.folder)]
    for address in serve(command, engine.folder / "server.log", engine.environment, port):
        with pytest.MonkeyPatch.context() as patch:
            owner = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
            for name, value in {**owner, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}.items():
                patch.setenv(name, value)
            yield address


@pytest.fixture(scope="session")
def tracking(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server, in the place of the MLflow App of the stack, which nobody emulates."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    mlflow = Path(sys.executable).with_name("mlflow")
    command = [str(mlflow), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", f"{folder}/artifacts"]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    yield from serve(command, engine.folder / "mlflow.log", quiet, port)


@dataclass
class Project:
    """Somebody's project: a folder, and the rights of its role."""

    folder: Path
    environment: Mapping[str, str]

    def slml(self, *words: str, code: int = 0, timeout: float = 600) -> str:
        """What a command of slml prints, its messages included; it is to end with `code`."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("slml")), *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == code, f"slml {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.said = done.stderr
        return done.stdout

    def json(self, *words: str, code: int = 0) -> dict:
        """The same as one JSON object."""
        return json.loads(self.slml(*words, "--json", code=code))

    def client(self, service: str) -> object:
        """A client of AWS with the rights of this project."""
        named = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        named |= {"aws_session_token": "AWS_SESSION_TOKEN"}
        return boto3.client(service, **{key: self.environment.get(name) for key, name in named.items()})


@pytest.fixture(scope="session")
def owner(cloud: str, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Who deploys: an empty project folder and all rights."""
    folder, tools = tmp_path_factory.mktemp("owner"), tmp_path_factory.mktemp("tools")
    (tools / "docker").write_text("#!/bin/sh\nexit 1\n")  # a docker of this machine has other images than podman
    (tools / "docker").chmod(0o755)
    names = ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF")
    environment = {**os.environ, **{name: engine.environment[name] for name in names}}
    return Project(folder, {**environment, "PATH": f"{tools}:{os.environ['PATH']}", "SLML_PROJECT": "taxi"})


@pytest.fixture(scope="session")
def stack(owner: Project) -> str:
    """The stack, deployed; returns what the command said."""
    said = owner.slml("aws", "deploy", "--project", "taxi", "--project", "other", "--yes")
    return said + owner.said


@pytest.fixture(scope="session")
def image(stack: str, owner: Project, engine: Engine) -> str:
    """The image of jobs, built on the base image and put where Batch looks for it.

    A push to the registry is what cannot be had here: the containers' storage has the image under its name there."""
    arguments, options = images.build_options(engine)
    words = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    words += [f"--option={option}" for option in options]
    reference = owner.slml("aws", "image", "--no-push", *words, timeout=900).split()[-1]
    place = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{STACK}"
    for tag in ("cpu", "gpu"):
        engine.podman("tag", f"localhost/{reference}", f"{place}:{tag}")
        manifest = json.dumps({**MANIFEST, "config": {"digest": f"sha256:{tag}"}})
        boto3.client("ecr").put_image(repositoryName=STACK, imageTag=tag, imageManifest=manifest)
    return reference


@pytest.fixture(scope="session")
def project(
    image: str, cloud: str, tracking: str, owner: Project, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Project]:
    """Makes the folder of a project, with slml's job notebooks, and the credentials of one of its users."""

    def make(name: str, user: str = "ada") -> Project:
        folder = tmp_path_factory.mktemp(name)
        (folder / "nbs/jobs").mkdir(parents=True)
        (folder / "pipelines").mkdir()
        for kind, pattern in (("nbs/jobs", "*.ipynb"), ("pipelines", "*")):
            for path in (REPOSITORY / kind).glob(pattern):
                (folder / kind / path.name).write_bytes(path.read_bytes())
        settings = {"root": f"s3://{BUCKET}/{name}", "project": name, "runner": "batch", "stack": STACK}
        settings |= {"catalog_uri": "glue", "tracking_uri": tracking, "user": user}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        (folder / "slml.toml").write_text(f"[batch]\n{text}")
        role = f"arn:aws:iam::{ACCOUNT}:role/{STACK}-{name}"
        key = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName=user)["Credentials"]
        rights = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        rights |= {"AWS_SESSION_TOKEN": key["SessionToken"], "SLML_PROFILE": "batch"}
        return Project(folder, {**os.environ, **rights})

    return make


@pytest.fixture(scope="session")
def taxi(project: Callable[[str], Project]) -> Project:
    """The worked example, with a small month of trips."""
    made = project("taxi")
    make = [sys.executable, "-m", "slml.taxi", "--rows", "5000", "--out", "data"]
    subprocess.run(make, cwd=made.folder, env=made.environment, check=True, capture_output=True, timeout=120)
    return made


@pytest.fixture(scope="session")
def other(project: Callable[[str], Project]) -> Project:
    """A project beside it on the same stack."""
    return project("other", "eve")
