"""Every set-up of the engine trains like plain ZeRO-1, in fp32 on two worker processes."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SETUPS: list[dict[str, Any]] = [
    {"zero_stage": 1, "compile": True},
    {"zero_stage": 1, "activation_checkpointing": True},
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3},
    {"zero_stage": 3, "hpz": 2},
    {"zero_stage": 3, "offload": "all"},
    {"zero_stage": 3, "activation_checkpointing": True},
    {"zero_stage": 3, "compile": True},
    {"zero_stage": 3, "compile": True, "offload": "all", "activation_checkpointing": True},
]
PLAIN: dict[str, Any] = {"zero_stage": 1}
pytestmark = pytest.mark.slow


def losses(settings: dict[str, Any]) -> list[float]:
    """The losses of six steps on rank 0; the head works in several chunks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    process = subprocess.run([*command, json.dumps(settings)], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-2000:]
    values: list[float] = json.loads(next(line for line in process.stdout.splitlines() if line.startswith("[")))
    return values


@pytest.fixture(scope="module")
def plain() -> list[float]:
    return losses(PLAIN)


@pytest.mark.parametrize("settings", SETUPS, ids=lambda settings: "-".join(f"{name}={settings[name]}" for name in settings))
def test_the_losses_are_those_of_zero_1(plain: list[float], settings: dict[str, Any]) -> None:
    assert losses(settings) == pytest.approx(plain, abs=1e-5)
    assert plain[-1] < plain[0] - 1


def worker(settings: dict[str, Any]) -> list[float]:
    import torch
    import torch._dynamo
    import torch.distributed as dist

    from tests.families.configs import tiny
    from tests.unit.models.test_packed_lm import batch_of
    from trainer.config.train import TrainConfig
    from trainer.engine.setup import make_engine
    from trainer.engine.step import optimizer_step, set_rates
    from trainer.models.packed_lm import PackedLM
    from trainer.objectives import linear_cross_entropy

    linear_cross_entropy.CHUNK_LOGITS["cpu"] = 7 * 300
    dist.init_process_group("gloo")
    config = TrainConfig(steps=6, batch_size=6, warmup_steps=1, learning_rate=1e-2, **settings)
    engine = make_engine(PackedLM(tiny("xlm-roberta"), False, 0.2), config, 3, 2)
    engine.train()
    values, batch = [], batch_of("xlm-roberta", packed=dist.get_rank() == 0)
    for step in range(config.steps):
        set_rates(engine, config, step)
        values.append(optimizer_step(engine, [batch, batch], 1, 0, False).loss)
    assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == bool(config.compile)
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    return values if first else []


if __name__ == "__main__":
    if answer := worker(json.loads(sys.argv[1])):
        print(json.dumps(answer), flush=True)
