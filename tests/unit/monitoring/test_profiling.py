"""A chosen step leaves a trace that others can read, and no other step does."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import ConfigError
from trainer.config.train import TrainConfig
from trainer.monitoring.profiling import profiled


def test_only_chosen_steps_leave_a_trace(tmp_path: Path) -> None:
    for step in range(4):
        with profiled(str(tmp_path), step, (1, 3), rank=2):
            torch.ones(8, 8) @ torch.ones(8, 8)
    files = {path.name: path for path in (tmp_path / "profile").iterdir()}
    assert set(files) == {"step-000000001-rank-00002.json.gz", "step-000000003-rank-00002.json.gz"}
    for path in files.values():
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert sum(event.get("name") == "aten::mm" for event in events) == 1


def test_an_error_in_the_step_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), profiled(str(tmp_path), 1, (1,), rank=0):
        raise ValueError("mine")


def test_storage_that_fails_costs_the_trace_only(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    with profiled(str(tmp_path), 1, (1,), rank=0):
        done = True
    assert done


def test_steps_count_from_0() -> None:
    assert TrainConfig(profile_steps=(0, 7)).profile_steps == (0, 7)
    with pytest.raises(ConfigError, match="profile_steps"):
        TrainConfig(profile_steps=(-1,))
