"""A merged model inside a ZeRO engine, which moves on the plane through its base and the models (Self Positioning).

Each rank holds its part of the base and of each difference, and of the gradient: a step costs K dot products of such parts, and
one all-reduce of K numbers. Read from DeepSpeed 0.19.8: an optimizer with one group of parameters steps once a step, on the
flat part of this rank.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import partitioned
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.settings import deepspeed_settings
from trainer.deepspeed_bridge.weight_average import update_model
from trainer.merging.self_positioning import Position

_ONE_GROUP = 1 << 60
"""Parameters that ZeRO-3 updates at once."""


class PositionOptimizer(torch.optim.Optimizer):
    """In place of an update by the gradient, moves all weights to the next position."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], position: Position) -> None:
        super().__init__([{"params": list(weights)}], {"lr": 0.0})
        self._position = position
        self._base: torch.Tensor | None = None
        self._differences: Sequence[torch.Tensor] = ()

    def place(self, weight: torch.Tensor, base: torch.Tensor, differences: Sequence[torch.Tensor]) -> None:
        """Gives it this rank's parts, and sets the rank's weights to the present position."""
        self._base, self._differences = base, differences
        self._set(weight)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the search, from the gradient of the weights. Before `place` it does nothing: DeepSpeed tries a step."""
        if self._base is None:
            return
        (weight,) = (weight for group in self.param_groups for weight in group["params"])
        slopes = torch.stack([(weight.grad * difference).sum(dtype=torch.float64) for difference in self._differences])
        dist.all_reduce(slopes)
        with torch.enable_grad():
            self._position.move(slopes.tolist())
        self._set(weight)

    def _set(self, weight: torch.Tensor) -> None:
        assert self._base is not None
        weight.data.copy_(self._base)
        for share, difference in zip(self._position.weights, self._differences, strict=True):
            weight.data.add_(difference, alpha=share)


def position_engine(
    module: torch.nn.Module,
    config: TrainConfig,
    micro_batch: int,
    position: Position,
    states: Iterable[Mapping[str, torch.Tensor]],
) -> Any:
    """The engine at the first position; every rank calls it.

    Args:
        module: of the base.
        states: the state dicts of the models, with the names of the module's parameters.
    """
    prepare_environment()
    import deepspeed

    optimizer = PositionOptimizer(module.parameters(), position)
    settings = deepspeed_settings(config, micro_batch, 1)
    settings["zero_optimization"]["sub_group_size"] = _ONE_GROUP
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    partitioned.restore_fp32(engine)
    flat = _flat(engine.optimizer)
    base = flat.detach().clone()
    differences = []
    for state in states:
        _load(engine, state)
        differences.append(flat.detach() - base)
    optimizer.place(flat, base, differences)
    update_model(engine.optimizer)
    return engine


def _flat(optimizer: Any) -> torch.Tensor:
    """This rank's fp32 part of all weights."""
    partitions = getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups
    (flat,) = partitions
    return flat


def _load(engine: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Replaces the optimizer's weights."""
    from deepspeed.utils import safe_set_full_fp32_param

    for name, weight in engine.module.named_parameters():
        safe_set_full_fp32_param(weight, state[name].to(engine.device, torch.float32))
