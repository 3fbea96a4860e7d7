"""What the tests share: the real data where it is at hand, and a workspace that goes away with the test."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

from slml.workspace import Workspace

from support import REPOSITORY

# The same examples in every run, so that a change alone makes a test fail; HYPOTHESIS_PROFILE=explore draws new ones.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.register_profile("explore")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SLML_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data is not here: no folder {folder}; name another one in SLML_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the tests that run jobs: creating its tables takes longer than most of them."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace of this test alone."""
    return Workspace(root=str(tmp_path / "root"), project="test")


@pytest.fixture(autouse=True)
def no_old_endpoints() -> None:
    """s3fs keeps its connections for the process; those to the server of another test are of no use."""
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: "test_real_tables" not in item.nodeid)
