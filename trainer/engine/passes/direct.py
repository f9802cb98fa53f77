"""Forward and backward, micro-batch by micro-batch."""

from typing import Any

import torch

from trainer.engine.step_clock import StepClock
from trainer.tasks.task import Batch


def direct(engine: Any, batches: list[Batch], scale: float, sums: torch.Tensor, clock: StepClock) -> None:
    """See `Passes`."""
    for number, batch in enumerate(batches, 1):
        batch = batch.to(engine.device)
        # Set each time: DeepSpeed counts on from step to step, while a warm-up of the batch size changes the number.
        engine.set_gradient_accumulation_boundary(number == len(batches))
        with clock.device("forward", engine.device):
            losses = engine(batch)
        sums.index_add_(0, batch.streams, losses.detach().double())
        clock.lap("forward")
        engine.backward(losses.sum() * scale)
        clock.lap("backward")
        if number < len(batches):
            engine.step()
