"""Kernels on Ray give the same bits for any number of workers and any memory limit, and stay below the limit."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.ray_executor import RayExecutor
from data_pipeline.errors import ConfigError
from trainer.transfer.search import neighbours

ROOT = Path(__file__).parent.parent.parent
MANY = """
import hashlib, json, sys, ray, torch
from cluster.ray_executor import RayExecutor
from trainer.transfer.search import neighbours
from tests.integration.test_spread import arrays
queries, keys = arrays()
digests = []
for workers, memory in (map(int, one.split("x")) for one in sys.argv[1:]):
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    spread = RayExecutor(memory << 30)
    for answer in (neighbours.top_softmax(queries, keys, 10, 0.1, spread), neighbours.top_sparsemax(queries, keys, spread)):
        digests.append(hashlib.sha256(answer[0].tobytes() + answer[1].tobytes()).hexdigest())
    ray.shutdown()
print(json.dumps(digests))
"""


def arrays() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys with ties: every tenth key occurs twice."""
    generator = torch.Generator().manual_seed(0)
    keys = neighbours.unit_rows(torch.randn(3000, 48, generator=generator))
    return neighbours.unit_rows(torch.randn(1700, 48, generator=generator)), torch.cat([keys, keys[::10]])


@pytest.mark.slow
def test_any_number_of_cpus_gives_the_same_bits_within_any_memory() -> None:
    """Nine CPUs or more were once refused with the default of 4 GiB, of which each took 450 MiB."""
    queries, keys = arrays()
    answers = neighbours.top_softmax(queries, keys, 10, 0.1), neighbours.top_sparsemax(queries, keys)
    here = [hashlib.sha256(index.tobytes() + weights.tobytes()).hexdigest() for index, weights in answers]
    command = [sys.executable, "-c", MANY, "1x40", "2x1", "16x4"]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    env["RAY_prestart_worker_first_driver"] = "0"  # else Ray starts a process for each of the 16 CPUs
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == here * 3


@pytest.mark.parametrize(("cpus", "nodes", "expected"), [(2, 1, 2), (16, 1, 5), (64, 1, 6), (256, 1, 6), (16, 4, 20)])
def test_tasks_follow_from_the_memory_of_each_machine(monkeypatch, cpus: int, nodes: int, expected: int) -> None:
    alive_nodes = [{"Alive": True, "Resources": {"CPU": float(cpus)}}] * nodes
    monkeypatch.setattr("ray.nodes", lambda: [*alive_nodes, {"Alive": False, "Resources": {"CPU": 99.0}}])
    spread = RayExecutor(4 << 30)
    assert spread.tasks == expected
    each = spread.cpus_per_task(0)
    assert spread.tasks == nodes * (cpus // each) >= nodes
    assert (1 + cpus // each) * (450 << 20) + cpus // each * spread.block_bytes <= 4 << 30


@pytest.mark.usefixtures("ray_session")
def test_a_search_that_would_not_fit_is_refused_before_it_starts() -> None:
    keys = neighbours.unit_rows(torch.randn(200_000, 300))
    notes: list[str] = []
    with pytest.raises(ConfigError, match=r"transfer.max_memory: .* GiB are needed, 1.0 are allowed"):
        neighbours.top_softmax(keys[:10], keys, 10, 0.1, RayExecutor(1 << 30, notes.append))
    assert not notes


@pytest.mark.usefixtures("ray_session")
def test_memory_and_time_are_estimated_before_a_search_starts() -> None:
    notes: list[str] = []
    steps: list[tuple[int, int]] = []
    queries, keys = arrays()
    neighbours.top_softmax(queries, keys, 10, 0.1, RayExecutor(8 << 30, notes.append, lambda *a: steps.append(a)))
    assert len(notes) == 1
    assert "GiB" in notes[0]
    assert steps[-1][0] == steps[-1][1] > 0
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


@pytest.mark.usefixtures("ray_session")
def test_answers_come_in_the_order_of_the_parts() -> None:
    parts = [np.full(3, number) for number in range(40)]
    answers = list(RayExecutor(8 << 30)(_slow_first, parts, torch.ones(3)))
    assert [int(answer[0]) for answer in answers] == list(range(40))


def _slow_first(part: np.ndarray, shared: torch.Tensor) -> np.ndarray:
    assert float(shared.sum()) == 3.0
    return part
