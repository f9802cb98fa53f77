"""An exponential moving average of the weights: `TrainConfig.ema`.

After each update, average = decay * average + (1 - decay) * weights, starting from the weights after the first update, as
`torch.optim.swa_utils` does. It averages the optimizer's fp32 weights. The average is one more state of the optimizer, beside
Adam's moments: every rank averages what it updates, 4 bytes a parameter over all ranks, and DeepSpeed's checkpoints hold it. A
skipped update leaves it unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

KEY = "ema"
"""The average in the optimizer's state of a weight, and the decay in its parameter groups."""


def track_average(engine: Any, decay: float) -> None:
    """Makes the engine's optimizer keep an exponential moving average of each weight it updates, in its state."""

    @torch.no_grad()
    def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Moves the average of each weight that was just updated towards the weight; starts it at the first update."""
        # DeepSpeed steps group by group: `param_groups` holds the current ones only.
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
    """Within the block the engine's weights are their averages, where these exist; every rank calls it. Do not train in it.

    Weights and averages change places, so that no further copy is held.
    """
    _exchange(engine.optimizer)
    try:
        yield
    finally:
        _exchange(engine.optimizer)


@torch.no_grad()
def _exchange(optimizer: Any) -> None:
    """Swaps fp32 weights and averages, and updates the model's weights."""
    averages = [(weight, state[KEY]) for weight, state in optimizer.optimizer.state.items() if KEY in state]
    for weight, average in averages:
        before = weight.detach().clone()
        weight.copy_(average)
        average.copy_(before)
    if averages:
        update_model(optimizer)


def update_model(optimizer: Any) -> None:
    """Copies the optimizer's fp32 weights to the model, as a step does; every rank calls it."""
    if not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer.update_lp_params()
        return
    # ZeRO-3; read from DeepSpeed 0.19.8, `step` and `_rigid_load_state_dict` in stage3.py.
    for number in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    if persistent := optimizer.persistent_parameters:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
