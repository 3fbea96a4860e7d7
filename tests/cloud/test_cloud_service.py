"""The image of services, built by slml, and a container of it as a Lambda function and as a plain server."""

import http.client
import json
import subprocess
import time

import image as images
import pytest
from engine import free_port, wait_for_port
from runtime import Runtime, event

from slml.aws.service_template import COMMAND

from support.bundles import by_hand


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A model that can be checked by hand."""
    return by_hand(str(tmp_path_factory.mktemp("bundle") / "fare"))


@pytest.fixture(scope="module")
def service(engine, owner):
    """The name of the image."""
    arguments, options = images.build_options(engine)
    words = [f"--build-arg={name}={value}" for name, value in arguments.items() if name != "TORCH_INDEX_URL"]
    words += [f"--option={option}" for option in options]
    said = owner.slml("aws", "image", "--variant", "service", "--no-push", "--on", "", *words, timeout=900)
    return said.split()[-1]


@pytest.fixture
def variables(bundle):
    told = {"SLML_BUNDLE": "/bundle", "SLML_BUNDLE_HASH": bundle.hash, "SLML_VERSION": "fare@3"}
    return {**told, "SLML_SERVED": "/tmp/served"}


def podman(service, variables, bundle, *command, name):
    """The command line that runs a container."""
    told = [f"--env={key}={value}" for key, value in variables.items()]
    place = f"--volume={bundle.uri}:/bundle:ro"
    words = ["run", "--rm", f"--name={name}", "--network=host", "--read-only", "--tmpfs=/tmp", place, *told]
    return ["podman", *words, f"localhost/{service}", *command]


def test_it_holds_little_and_nothing_of_the_jobs(engine, service):
    code = """
import importlib.util, pathlib, sys, sysconfig
places = pathlib.Path(sysconfig.get_path("purelib"))
print(sum(p.stat().st_size for p in places.rglob("*") if p.is_file() and "slml" not in p.relative_to(places).parts[0]))
print(*[n for n in ("torch", "mlflow", "pandas", "boto3", "pip", "duckdb") if importlib.util.find_spec(n)])
"""
    size, *there = engine.podman("run", "--rm", f"localhost/{service}", "python", "-c", code).split()
    assert int(size) < 250 * 2**20
    assert not there


def test_as_a_lambda_function(engine, service, variables, bundle):
    """With the entry that the template gives it, and a file system that can be written in /tmp only."""

    def start(api):
        told = {**variables, "AWS_LAMBDA_RUNTIME_API": api}
        return podman(service, told, bundle, *COMMAND, name="slml-test-function")

    copy = Runtime(start, engine.environment, freezes=False)
    try:
        kind, answer = copy.invoke(event("POST", "/predict", '{"miles": 3}'))
        assert (kind, answer["statusCode"]) == ("response", 200)
        assert json.loads(answer["body"])["predictions"] == [pytest.approx(3.25 + 3 * 2.16)]
    finally:
        engine.podman("rm", "--force", "--time=1", "slml-test-function")
        copy.end()


def test_as_a_plain_server(engine, service, bundle):
    """As Fargate, Cloud Run and Kubernetes run it: PORT says where, SIGTERM ends it."""
    port = free_port()
    command = podman(service, {"PORT": port, "SLML_SOURCE": "/bundle"}, bundle, name="slml-test-server")
    server = subprocess.Popen(command, env=engine.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for_port(port, 60)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/predict", b'{"miles": 3}', {"content-type": "application/json"})
        assert json.loads(connection.getresponse().read())["predictions"] == [pytest.approx(3.25 + 3 * 2.16)]
        begun = time.monotonic()
        engine.podman("stop", "--time=10", "slml-test-server")
        assert server.wait(10) == 0
        assert time.monotonic() - begun < 8
    finally:
        server.kill()
