"""The log, the console and `scion status` name a slow worker; garbage is collected only at set steps."""

import gc
import io
import os
import time
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from rich.console import Console

from ray_jobs import status
from tests.integration.test_engine import ordered_rows
from tests.ranks import train_run
from trainer.config.train import TrainConfig
from trainer.engine.launch import fit
from trainer.models.packed_lm import PackedLM
from trainer.monitoring import run_log
from trainer.monitoring.stragglers import WINDOW
from trainer.tasks.language_modeling import LanguageModelTask

pytestmark = pytest.mark.usefixtures("ray_session")
SLOW = 0.1
"""Seconds that the last rank sleeps in each forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowTask(LanguageModelTask):
    """A task that is slow on the last rank; automatic garbage collection must be off on all ranks."""

    def module(self, *arguments: Any, **settings: Any) -> PackedLM:
        module, address = LanguageModelTask.module(self, *arguments, **settings), ray.util.get_node_ip_address()
        if not address.startswith("127."):  # gloo takes the interface that has the node's address
            addresses = psutil.net_if_addrs()[os.environ["GLOO_SOCKET_IFNAME"]]
            assert address in [one.address for one in addresses]
        module.register_forward_pre_hook(sleep)
        return module


def sleep(module: torch.nn.Module, _: Any) -> None:
    if module.training and torch.is_grad_enabled():
        assert not gc.isenabled()
        time.sleep(SLOW if dist.get_rank() == dist.get_world_size() - 1 else 0.0)


@ray.remote(num_cpus=0)
class Board:
    def __init__(self) -> None:
        self._notes: list[str] = []

    def update(self, done: int, total: int, text: str) -> bool:
        return False

    def note(self, text: str) -> None:
        self._notes.append(text)

    def notes(self) -> list[str]:
        return self._notes


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_worker_that_sleeps_is_named(shards, source_folder: str, tmp_path, stage: int) -> None:  # type: ignore[no-untyped-def]
    config = TrainConfig(steps=WINDOW + 3, batch_size=4, zero_stage=stage, checkpoint_steps=None)
    board, folder = Board.remote(), str(tmp_path)
    task = SlowTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    run = train_run(task, config, ordered_rows(shards, 4, None), folder, progress=board)
    fit(run, workers=2, worker_cpus=1, gpu=False)
    attempts = run_log.read(f"{folder}/log")
    (straggler,) = [entry for entry in attempts[-1] if entry["kind"] == "straggler"]
    assert (straggler["rank"], straggler["host"]) == (1, attempts[-1][0]["host"])
    assert straggler["seconds"] > SLOW
    assert straggler["others"] < straggler["seconds"] - 0.5 * SLOW
    assert [note for note in ray.get(board.notes.remote()) if note.startswith("rank 1 on ")]
    output = io.StringIO()
    Console(file=output, width=200).print(status.table(attempts, time.time()))
    assert "slow worker" in output.getvalue()
    assert f"rank 1 on {straggler['host']} needs" in output.getvalue()
