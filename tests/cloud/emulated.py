"""The emulated cloud, for the tests of this folder only: `make test-cloud`.

Containers that really run (engine.py), moto's server with what it lacks (server.py), MLflow's server. Without
SLML_TEST_CLOUD=FOLDER in the environment nothing here is collected."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine import Engine, free_port, missing, wait_for_port

FOLDER = os.environ.get("SLML_TEST_CLOUD")
collect_ignore_glob = [] if FOLDER else ["test_*.py"]
REGION, ACCOUNT = "eu-central-1", "123456789012"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    if missing():
        pytest.skip(missing())
    engine = Engine(Path(FOLDER).expanduser()).start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def cloud(engine: Engine) -> Iterator[str]:
    "The address of the emulated AWS; its credentials are in the environment from here on."
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("server.py")), str(port), str(engine.folder)]
    with open(engine.folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, env=engine.environment, stdout=log, stderr=log)
    try:
        wait_for_port(port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
                patch.setenv(name, value)
            for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
                patch.setenv(name, REGION)
            patch.delenv("AWS_CA_BUNDLE", raising=False)
            yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
