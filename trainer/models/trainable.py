"""The contract of what the engine trains."""

from typing import Any, Protocol

import torch

from trainer.models.flops import Flops
from trainer.models.forward_check import ForwardCheck
from trainer.objectives.objective import Needs, Objective, Reps


class Trainable(Protocol):
    """A module around a transformers model, `model`. Its forward applies the objective to what `represent` gives."""

    @property
    def objective(self) -> Objective: ...

    def __call__(self, batch: Any) -> torch.Tensor:
        """The loss of each of a batch's M targets, fp32 [M]."""
        ...

    def represent(self, batch: Any, needs: Needs) -> Reps:
        """What an objective reads of a batch; every rank calls it."""
        ...

    def flops(self) -> Flops: ...

    def check(self, length: int) -> ForwardCheck:
        """Whether a document has the same result in a batch as alone, on this device, in this precision.

        Takes the leanest forward for which that holds.

        Raises:
            ModelError: there is none.
        """
        ...

    def use_check(self, found: ForwardCheck) -> None:
        """Takes the forward that another rank's check found."""
        ...

    def slow_reasons(self) -> list[str]:
        """Why this model cannot take the fast path, in words."""
        ...

    def compile_graph(self) -> None:
        """Compiles the forward to one graph of fixed shapes, where the module can be one."""
        ...

    def compilable_layers(self) -> list[torch.nn.Module]:
        """Layers of which each can be a graph of fixed shapes."""
        ...
