"""From a task and its settings to a DeepSpeed engine inside a Ray Train worker. The only place that imports DeepSpeed."""

import os
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.errors import TrainingError
from trainer.engine.config import TrainConfig

_ALIGNMENT = 16


def engine_for(module: torch.nn.Module, config: TrainConfig, accumulation: int) -> Any:
    """The engine around `module`, on this worker's device, with its process group already there (Ray Train's)."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # reads DS_ACCELERATOR at import

    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=torch.cuda.is_available(),
    )
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config.deepspeed(dist.get_world_size(), accumulation)
    )
    return engine


def check_alignment(module: torch.nn.Module) -> None:
    """Refuses parameters that a flattened buffer has left at odd addresses: GPU kernels get slow, by half.

    Raises:
        TrainingError: names the first such parameter.
    """
    for name, parameter in module.named_parameters():
        if parameter.numel() and parameter.data_ptr() % _ALIGNMENT:
            raise TrainingError(
                f"parameter {name} begins at an address that is not a multiple of {_ALIGNMENT} bytes.",
                "engine",
                "Pad the vocabulary to a multiple of 128 (`scion transfer` does) before training.",
            )


def weights_of(engine: Any, zero_stage: int) -> dict[str, torch.Tensor]:
    """The module's whole state dict on rank 0; every rank calls it."""
    if zero_stage == 3:
        return engine._zero3_consolidated_16bit_state_dict() or {}
    return dict(engine.module.state_dict())
