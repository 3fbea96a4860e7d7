"""The emulated cloud: moto's server on the loopback, with what it lacks. `python server.py PORT FOLDER`."""

import os
import sys
from pathlib import Path

import batch
import cloudformation
import docker
import glue
from iam import Guard
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

if __name__ == "__main__":
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ["MOTO_URL"] = f"http://127.0.0.1:{port}"
    docker.from_env().ping()
    for part in (batch, cloudformation, glue):
        part.install()
    refused = folder / "refused.txt"  # who was refused what: role, action, resource
    refused.write_text("")
    guard = Guard(DomainDispatcherApplication(create_backend_app), str(refused))
    run_simple("127.0.0.1", port, guard, threaded=True, request_handler=MotoRequestHandler)
