"""Floating-point operations of a training step, and the peak of a device.

Counted as in Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, but only for useful work: without padding, without attention
between documents, and with the head only at targets. Forward and backward cost three forwards; two for frozen weights, which
pass gradients on but have none (also counted if nothing below them is trained).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

PEAKS = {
    "B200": 2250e12, "H200": 989.4e12, "H100 PCIe": 756e12, "H100": 989.4e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "MI300X": 1307.4e12,
}  # fmt: skip
"""Dense bf16 operations a second, from the vendors' data sheets, by a substring of the device name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Parameters that are multiplied with each token and with each target."""

    body: int
    head: int
    attention: int
    """Operations of the scores and the weighted sum per attention pair."""
    frozen_body: int = 0
    """The parameters of `body` that are not trained."""
    frozen_head: int = 0

    @classmethod
    def of(cls, model: Any, head: bool) -> "Flops":
        """Counts the parameters of a model.

        Args:
            head: whether the output layer and everything outside the base model runs on targets only.
        """
        embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        embedding_ids = {id(p) for module in embeddings for p in module.parameters()}
        base_ids = {id(p) for p in model.base_model.parameters()}
        outside = [p for p in model.parameters() if id(p) not in base_ids]
        output = model.get_output_embeddings() if head else None
        output_parameters = [] if output is None else list(output.parameters())
        on_targets = {id(p): p for p in [*outside, *output_parameters]} if head else {}
        on_tokens = [p for p in model.parameters() if id(p) not in embedding_ids and id(p) not in on_targets]
        config = model.config
        layers, width = int(getattr(config, "num_hidden_layers", 0)), int(getattr(config, "hidden_size", 0))
        (body, frozen_body), (head_size, frozen_head) = (_sizes(parameters) for parameters in (on_tokens, on_targets.values()))
        return cls(body=body, head=head_size, attention=4 * layers * width, frozen_body=frozen_body, frozen_head=frozen_head)

    def step(self, tokens: float, targets: float, pairs: float) -> float:
        """Operations of a step over all workers; `pairs` is the number of attention pairs."""
        as_trained = 3 * (2 * self.body * tokens + 2 * self.head * targets + self.attention * pairs)
        return as_trained - 2 * self.frozen_body * tokens - 2 * self.frozen_head * targets


def _sizes(parameters: Iterable[torch.nn.Parameter]) -> tuple[int, int]:
    """The number of elements in all parameters, and in the frozen ones; also if ZeRO-3 has partitioned them."""
    sizes = [(int(getattr(parameter, "ds_numel", parameter.numel())), parameter.requires_grad) for parameter in parameters]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if not is_trained)


def device_peak() -> float | None:
    """The peak of this process's device, in operations a second; None if unknown, as on a CPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((value for part, value in PEAKS.items() if part in name), None)
