"""Floating-point operations that a training step needs, and what a device can do at most.

Counted as in Chowdhery et al. 2022 (arXiv:2204.02311), appendix B, but for work that is of use only: no padding, no scores
between documents that do not see each other, the head where there is a target. Forward and backward are three forwards.
"""

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

    @classmethod
    def of(cls, model: Any, head: bool) -> "Flops":
        """`head` says whether what lies outside of the base model, and the output layer, work on targets; else all of the
        model works on tokens."""
        rows = {id(p) for part in model.modules() if isinstance(part, torch.nn.Embedding) for p in part.parameters()}
        inner = {id(p) for p in model.base_model.parameters()}
        outer = [p for p in model.parameters() if id(p) not in inner]
        output = model.get_output_embeddings() if head else None
        last = [] if output is None else list(output.parameters())
        on_targets = {id(p): _size(p) for p in [*outer, *last]} if head else {}
        body = sum(_size(p) for p in model.parameters() if id(p) not in rows and id(p) not in on_targets)
        config = model.config
        layers, width = int(getattr(config, "num_hidden_layers", 0)), int(getattr(config, "hidden_size", 0))
        return cls(body=body, head=sum(on_targets.values()), attention=4 * layers * width)

    def step(self, tokens: float, targets: float, pairs: float) -> float:
        """Operations of a step over all workers; `pairs` counts pairs of tokens that see each other."""
        return 3 * (2 * self.body * tokens + 2 * self.head * targets + self.attention * pairs)


def _size(parameter: torch.nn.Parameter) -> int:
    """Numbers in it, also where ZeRO-3 has cut it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def peak() -> float | None:
    """Of this process's device; None where it is not known, as on a CPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((value for part, value in PEAKS.items() if part in name), None)
