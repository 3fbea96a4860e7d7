"""Containers without anything set up on the machine: podman, its storage and its settings in one folder.

The folder (`SLML_TEST_CLOUD`, ~/.cache/slml-test-cloud by default) may be removed at any time: everything in it is
made anew. Nothing outside of it is changed."""

import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("podman", "runc", "debootstrap")
BASE = "localhost/slml-base:debian12"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"

CONTAINERS = """\
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=8192:8192"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def missing() -> str:
    "What to install before containers can run here; nothing where all is there."
    names = [name for name in NEEDED if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if names:
        return (
            f"the emulated cloud needs {', '.join(names)}: apt-get install --no-install-recommends {' '.join(NEEDED)}"
        )
    return "" if os.geteuid() == 0 else "the emulated cloud makes its base image with debootstrap, as root"


def free_port() -> int:
    "A port of the loopback that nobody listens on."
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for_port(port: int, seconds: float = 60) -> None:
    "Return once something listens on a port of the loopback."
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@dataclass
class Engine:
    "A container engine of its own, and the service that speaks Docker's protocol for it."

    folder: Path = field(
        default_factory=lambda: Path(os.environ.get("SLML_TEST_CLOUD", "~/.cache/slml-test-cloud")).expanduser()
    )
    service: subprocess.Popen | None = None

    @property
    def environment(self) -> dict[str, str]:
        "What a process needs to reach this engine, by podman or by Docker's protocol."
        return {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "DOCKER_HOST": f"unix://{self.folder}/podman.sock",
        }

    def podman(self, *arguments: str, timeout: float = 120) -> str:
        "Call podman; returns what it printed. Raises `RuntimeError` with what it said."
        done = subprocess.run(
            ["podman", *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self) -> "Engine":
        "Write the settings, make the base image where it is not there yet, start the service."
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "containers.conf").write_text(CONTAINERS)
        (self.folder / "storage.conf").write_text(STORAGE.format(folder=self.folder))
        if not self.has(BASE):
            self.make_base()
        address = self.folder / "podman.sock"
        address.unlink(missing_ok=True)
        command = ["podman", "system", "service", "--time=0", f"unix://{address}"]
        with open(self.folder / "podman.log", "ab") as log:
            self.service = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + 30
        while not address.exists():
            if self.service.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"podman's service did not start: see {self.folder}/podman.log")
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        "End the service and what it still runs."
        for name in self.podman("ps", "--all", "--quiet", "--filter", "label=slml-test-cloud").split():
            self.podman("rm", "--force", "--time", "1", name)
        if self.service:
            self.service.terminate()
            self.service.wait(30)

    def has(self, image: str) -> bool:
        "Whether an image is here."
        return bool(json.loads(self.podman("images", "--format", "json", "--filter", f"reference={image}")))

    def make_base(self) -> None:
        "Debian with Python, from packages: what `FROM python:3.11-slim` is where there is a registry."
        root = self.folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), MIRROR]
        path = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        with open(self.folder / "debootstrap.log", "wb") as log:
            subprocess.run(command, check=True, env=path, stdout=log, stderr=log, timeout=600)
        shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
        tar = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        imported = [
            "podman",
            "import",
            "--change",
            'ENV PATH="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"',
            "-",
            BASE,
        ]
        subprocess.run(imported, check=True, env=self.environment, stdin=tar.stdout, capture_output=True, timeout=300)
        tar.wait()
        shutil.rmtree(root)
