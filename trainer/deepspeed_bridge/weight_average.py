"""An exponential moving average of the weights: `TrainConfig.ema`.

After each update, average = decay * average + (1 - decay) * weights, from the weights after the first update on, as
`torch.optim.swa_utils` does. The optimizer's fp32 weights are averaged. The average is a further state of the optimizer beside
Adam's moments: every rank averages what it updates, 4 bytes a parameter over all ranks, and DeepSpeed's checkpoints hold it. A
step that is left out leaves it as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

KEY = "ema"
"""The average in the optimizer's state of a weight, and the decay in its parameter groups."""


def track_average(engine: Any, decay: float) -> None:
    """From now on the engine's optimizer averages what it updates."""

    @torch.no_grad()
    def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # DeepSpeed steps group by group: those of the moment are in `param_groups`.
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            state = optimizer.state[weight]
            if KEY in state:
                torch._foreach_lerp_([state[KEY]], [weight], 1.0 - decay)
            else:
                state[KEY] = weight.detach().clone()

    for group in engine.optimizer.param_groups:
        group[KEY] = decay
    engine.optimizer.optimizer.register_step_post_hook(average)


@contextmanager
def averaged_weights(engine: Any) -> Iterator[None]:
    """While the block runs, the engine's weights are their averages, where there are some already; every rank calls it. Nothing
    is trained in it. They change places with the weights, so that no further copy is held."""
    _exchange(engine.optimizer)
    try:
        yield
    finally:
        _exchange(engine.optimizer)


@torch.no_grad()
def _exchange(optimizer: Any) -> None:
    """Swaps fp32 weights and averages, and gives the model the new weights, as an update does."""
    found = [(weight, state[KEY]) for weight, state in optimizer.optimizer.state.items() if KEY in state]
    for weight, average in found:
        before = weight.detach().clone()
        weight.copy_(average)
        average.copy_(before)
    if not found:
        return
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.update_lp_params()
        return
    # ZeRO-3; read from DeepSpeed 0.19.8, `step` and `_rigid_load_state_dict` in stage3.py.
    for number in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    if persistent := optimizer.persistent_parameters:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
