"""How the gradient of a step is made: one way a file; the table is here."""

from functools import partial
from typing import Any, Protocol

import torch

from trainer.engine.passes.cached import cached
from trainer.engine.passes.direct import direct
from trainer.engine.step_clock import StepClock
from trainer.tasks.task import Batch


class Passes(Protocol):
    """Adds the gradient of a step's micro-batches to the engine; the update is left to the caller."""

    def __call__(self, engine: Any, batches: list[Batch], scale: float, sums: torch.Tensor, clock: StepClock) -> None:
        """Every rank calls it, with as many micro-batches.

        Args:
            engine: DeepSpeed's, around a `Trainable`.
            scale: factor of each loss in the gradient.
            sums: float64 [streams]; the loss of each target is added to its stream's.
        """
        ...


PASSES: dict[str, Passes] = {
    "direct": direct,
    "cached": cached,
    "cached_per_chunk": partial(cached, reduce="per_chunk"),
}
