"""Floating-point operations that a training step needs, and what a device can do at most.

Counted as in Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, but for work that is of use only: no padding, no scores
between documents that do not see each other, the head where there is a target. Forward and backward are three forwards; two for
weights that do not learn, which pass gradients on and have none, also where nothing below them learns.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

PEAKS = {
    "B200": 2250e12, "H200": 989.4e12, "H100 PCIe": 756e12, "H100": 989.4e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "MI300X": 1307.4e12,
}  # fmt: skip
"""Dense bf16 operations a second, from the vendors' data sheets, by a part of the device's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Parameters that a token, and that a target, is multiplied with."""

    body: int
    head: int
    attention: int
    """Operations of the scores, and of the mixture, per pair of tokens that see each other."""
    frozen_body: int = 0
    """Of the parameters, those that do not learn."""
    frozen_head: int = 0

    @classmethod
    def of(cls, model: Any, head: bool) -> "Flops":
        """`head` says whether what lies outside of the base model, and the output layer, work on targets; else all of the
        model works on tokens."""
        rows = {id(p) for part in model.modules() if isinstance(part, torch.nn.Embedding) for p in part.parameters()}
        inner = {id(p) for p in model.base_model.parameters()}
        outer = [p for p in model.parameters() if id(p) not in inner]
        output = model.get_output_embeddings() if head else None
        last = [] if output is None else list(output.parameters())
        on_targets = {id(p): p for p in [*outer, *last]} if head else {}
        on_tokens = [p for p in model.parameters() if id(p) not in rows and id(p) not in on_targets]
        config = model.config
        layers, width = int(getattr(config, "num_hidden_layers", 0)), int(getattr(config, "hidden_size", 0))
        (body, frozen_body), (heads, frozen_head) = (_sizes(part) for part in (on_tokens, on_targets.values()))
        return cls(body=body, head=heads, attention=4 * layers * width, frozen_body=frozen_body, frozen_head=frozen_head)

    def step(self, tokens: float, targets: float, pairs: float) -> float:
        """Operations of a step over all workers; `pairs` counts pairs of tokens that see each other."""
        learned = 3 * (2 * self.body * tokens + 2 * self.head * targets + self.attention * pairs)
        return learned - 2 * self.frozen_body * tokens - 2 * self.frozen_head * targets


def _sizes(parameters: Iterable[torch.nn.Parameter]) -> tuple[int, int]:
    """Numbers in all of them, and in those that do not learn; also where ZeRO-3 has cut them."""
    sizes = [(int(getattr(one, "ds_numel", one.numel())), one.requires_grad) for one in parameters]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if not learns)


def device_peak() -> float | None:
    """Of this process's device; None where it is not known, as on a CPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((value for part, value in PEAKS.items() if part in name), None)
