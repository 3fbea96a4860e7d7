"""The project's own image, built by slml on the base image, with packages from where pip takes them on this machine."""

import configparser
import os
from pathlib import Path
from urllib.parse import urlsplit

from engine import BASE, Engine

SETTINGS = ("find-links", "index-url", "extra-index-url", "no-index", "trusted-host")


def pip_settings() -> dict[str, str]:
    "Where pip takes packages from here: the files and the environment that pip itself reads."
    found = {}
    for path in ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", os.environ.get("PIP_CONFIG_FILE", "")):
        config = configparser.RawConfigParser()
        config.read(Path(path).expanduser())
        found |= dict(config["global"]) if config.has_section("global") else {}
    found |= {
        name: os.environ[key] for name in SETTINGS if (key := f"PIP_{name.upper().replace('-', '_')}") in os.environ
    }
    return {name: " ".join(found[name].split()) for name in SETTINGS if name in found}


def folders(settings: dict[str, str]) -> list[Path]:
    "The places on this machine among them: a build needs them as volumes."
    words = [urlsplit(word) for text in settings.values() for word in text.split()]
    return [Path(word.path) for word in words if word.scheme in ("", "file") and Path(word.path).is_dir()]


def build_options(engine: Engine) -> tuple[dict[str, str], list[str]]:
    "Build arguments for the Dockerfile, and options for podman."
    settings = pip_settings()
    arguments = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}
    arguments |= {"BASE": BASE} | ({"TORCH_INDEX_URL": ""} if settings else {})
    tops = {folder.parent if folder.name == "simple" else folder for folder in folders(settings)}
    places = [*sorted(map(str, tops)), "/etc/ssl/certs"]  # certificates of whoever stands between here and the registry
    options = ["--network=host", "--env=PIP_CERT=/etc/ssl/certs/ca-certificates.crt"]
    return arguments, [*options, *(f"--volume={place}:{place}:ro" for place in places)]
