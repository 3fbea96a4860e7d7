"""The tracking database is there whole or not at all."""

import mlflow
import pytest

from slml.errors import RegistryError
from slml.registry.tracking import open_tracking
from slml.workspace import Workspace


def test_a_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """A disk that was full while MLflow made its tables leaves nothing that the next call fails on."""
    workspace = Workspace(root=str(tmp_path / "root"), project="dc")

    class FullDisk(mlflow.MlflowClient):
        def search_experiments(self, *args, **options):
            raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", FullDisk)
        with pytest.raises(RegistryError, match="cannot be opened"):
            open_tracking(workspace)
    assert [path.name for path in (tmp_path / "root").glob("mlflow.db*")] in ([], ["mlflow.db.lock"])
    (tmp_path / "root" / "mlflow.db.1.new").write_text("left by a process that was killed")
    assert open_tracking(workspace).search_experiments(max_results=1) is not None
    assert not list((tmp_path / "root").glob("*.new*"))
