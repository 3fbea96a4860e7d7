"""Packages of others, as pip leaves them on a machine."""

from collections.abc import Sequence
from pathlib import Path


def install_package(
    site: Path,  # a folder on the path
    package: str,  # "fast-engines"
    group: str,  # "slml.engines"
    entries: Sequence[str],  # "fast = fast_engines:FastEngine"
    module: str,  # the source of its one module
) -> None:
    """Write a package's module and its metadata, whose entry points are found by their group."""
    name = package.replace("-", "_")
    (site / f"{name}.py").write_text(module)
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *entries, ""]))
