"""A small engine whose whole gradient can be read. Read from DeepSpeed 0.19.8: `safe_get_full_grad`."""

from typing import Any

import torch

from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.settings import deepspeed_settings


def probe_engine(module: torch.nn.Module, config: TrainConfig, pairs: int) -> Any:
    """The engine of a run around another module, with a batch of `pairs` on each rank; every rank calls it."""
    prepare_environment()
    import deepspeed

    optimizer = torch.optim.AdamW(module.parameters())
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=deepspeed_settings(config, pairs, 1))
    return engine


def full_gradients(engine: Any) -> list[torch.Tensor]:
    """The gradient of each weight after the last backward pass of a step, fp32 on the CPU; every rank calls it."""
    from deepspeed.utils import safe_get_full_grad

    return [safe_get_full_grad(weight).float().cpu() for weight in engine.module.parameters()]
