"""Where `scion export` writes, and the drafts of a killed export."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.artifacts import artifact
from trainer.checkpoints import export
from trainer.checkpoints.store import Store
from trainer.checkpoints.task_file import TrainedTask

NAME = "step_000000100-w1-abc"
KILLED = """
import os, sys
from data_pipeline.artifacts import lease

with lease.hold(sys.argv[1]):
    os.kill(os.getpid(), 9)
"""


class Written:
    """In place of a task: its model is a byte."""

    def export(self, weights: Mapping[str, torch.Tensor], uri: str, *more: Any) -> None:
        os.makedirs(uri, exist_ok=True)
        Path(uri, "model.safetensors").write_bytes(b"x")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Of a run with a checkpoint whose weights are nothing."""
    monkeypatch.setattr(export, "read_task", lambda store: TrainedTask(kind="model", task=Written(), frozen=(), lora=None))
    monkeypatch.setattr(export, "checkpoint_weights", lambda store, name: {})
    state = {"settings": {}, "next_step": 100, "identity": "i", "changes": [], "skips": []}
    monkeypatch.setattr(Store, "state", lambda store, name: state)
    (tmp_path / "run" / "checkpoints" / NAME).mkdir(parents=True)
    return Store(f"{tmp_path}/run/checkpoints", 3)


def test_the_next_export_removes_the_drafts_of_a_killed_one(store: Store, tmp_path: Path) -> None:
    """A model of 28 GB lay there for each kill."""
    for name in ("out.0123456789ab.draft", "out.ba9876543210.draft", "output.0123456789ab.draft", "out.v2.draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    export.export(store, NAME, f"{tmp_path}/out")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out", "output.0123456789ab.draft", "out.v2.draft"}


def test_drafts_of_a_process_that_was_killed_are_removed_at_once(tmp_path: Path) -> None:
    (tmp_path / "out.0123456789ab.draft").mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, f"{tmp_path}/out.lease.json"], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "out.lease.json").exists()
    export.remove_drafts(f"{tmp_path}/out")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_another_disk_stays(store: Store, tmp_path: Path) -> None:
    """A folder on the small disk took its place, and the draft lay there, too."""
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    export.export(store, NAME, f"{tmp_path}/out")
    assert (tmp_path / "out").is_symlink()
    assert artifact.read(f"{tmp_path}/out", "model", "export").config["checkpoint"] == NAME
    assert {path.name for path in (tmp_path / "large").iterdir()} == {"artifact.json", "model.safetensors"}


def test_a_mount_point_is_not_replaced(tmp_path: Path) -> None:
    assert not export.can_be_renamed_to("/proc")
    assert export.can_be_renamed_to(f"{tmp_path}/out")
