"""Kernels on Ray: the same bits for any number of workers and any memory, within the memory that was allowed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.ray_spread import RaySpread
from data_pipeline.errors import ConfigError
from trainer.transfer import kernels

ROOT = Path(__file__).parent.parent.parent
MANY = """
import hashlib, json, sys, ray, torch
from cluster.ray_spread import RaySpread
from trainer.transfer import kernels
from tests.integration.test_spread import arrays
queries, keys = arrays()
found = []
for workers in map(int, sys.argv[1:]):
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    for memory in (8 << 30, 40 << 30):
        spread = RaySpread(memory)
        for answer in (kernels.top_softmax(queries, keys, 10, 0.1, spread), kernels.top_sparsemax(queries, keys, spread)):
            found.append(hashlib.sha256(answer[0].tobytes() + answer[1].tobytes()).hexdigest())
    ray.shutdown()
print(json.dumps(found))
"""


def arrays() -> tuple[torch.Tensor, torch.Tensor]:
    """With ties: every tenth key occurs twice."""
    generator = torch.Generator().manual_seed(0)
    keys = kernels.unit(torch.randn(3000, 48, generator=generator))
    return kernels.unit(torch.randn(1700, 48, generator=generator)), torch.cat([keys, keys[::10]])


def test_one_two_and_eight_workers_give_the_same_bits() -> None:
    queries, keys = arrays()
    answers = kernels.top_softmax(queries, keys, 10, 0.1), kernels.top_sparsemax(queries, keys)
    here = [hashlib.sha256(index.tobytes() + weights.tobytes()).hexdigest() for index, weights in answers]
    command = [sys.executable, "-c", MANY, "1", "2", "8"]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == here * 2 * 3


@pytest.mark.usefixtures("ray_session")
def test_what_would_not_fit_is_refused_before_it_starts() -> None:
    keys = kernels.unit(torch.randn(200_000, 300))
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"transfer.max_memory: .* GiB are needed, 1.0 are allowed"):
        kernels.top_softmax(keys[:10], keys, 10, 0.1, RaySpread(1 << 30, said.append))
    assert not said


@pytest.mark.usefixtures("ray_session")
def test_size_and_time_are_said_before_it_starts() -> None:
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    queries, keys = arrays()
    kernels.top_softmax(queries, keys, 10, 0.1, RaySpread(8 << 30, said.append, lambda *a: steps.append(a)))
    assert len(said) == 1
    assert "GiB" in said[0]
    assert steps[-1][0] == steps[-1][1] > 0
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


@pytest.mark.usefixtures("ray_session")
def test_answers_come_in_the_order_of_the_parts() -> None:
    parts = [np.full(3, number) for number in range(40)]
    answers = list(RaySpread(8 << 30)(_slow_first, parts, torch.ones(3)))
    assert [int(answer[0]) for answer in answers] == list(range(40))


def _slow_first(part: np.ndarray, shared: torch.Tensor) -> np.ndarray:
    assert float(shared.sum()) == 3.0
    return part
