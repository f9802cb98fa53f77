"""Fixtures of the unit tests."""

from pathlib import Path

import pytest

from data_pipeline.artifacts import storage


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, on a disk and on an object store."""
    if request.param == "local":
        return str(tmp_path / "folder")
    memory = "memory://test-folder"
    storage.remove(memory)
    return memory
