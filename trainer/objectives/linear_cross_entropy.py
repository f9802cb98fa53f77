"""Cross-entropy of a linear layer without all of its logits: some targets at a time, gradients in the same pass.

The idea of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989, section 3.2) in plain tensor operations, so that it runs on any
device: logits of a chunk become its losses and, in place, the gradient of their sum; nothing of the size targets x vocabulary
outlives the chunk, and nothing is computed twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""A label that counts for nothing, as in torch."""
_ELEMENTS = {"cuda": 1 << 28, "cpu": 1 << 27}
"""Logits of a chunk, by device: enough to read the weights seldom, few enough to find room beside the model."""


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """The negative log-likelihood of each target, fp32 [M]; 0 where the label is below 0.

    Only for a loss that is their sum times a factor: the gradient of the weights is that of the sum, scaled in the backward
    pass, which fails where targets weigh differently; on a GPU with a device-side assertion, so that nothing waits for it.

    Args:
        hidden: [M, H]
        weight: [V, H]
        bias: [V]
        labels: int [M]
        chunk: targets at a time.
    """
    chunk = _chunk(hidden, len(weight)) if chunk is None else chunk
    losses: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, chunk)  # type: ignore[no-untyped-call]
    return losses


def chunked_cross_entropy(
    project: Callable[[torch.Tensor], torch.Tensor],
    vocabulary: int,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    chunk: int | None = None,
) -> torch.Tensor:
    """The same through the layer's own forward, for weights that exist only while the layer runs.

    The backward pass computes each chunk again. Every rank needs as many targets.

    Args:
        project: hidden states [m, H] to logits [m, V].
        vocabulary: V.
    """
    chunk = _chunk(hidden, vocabulary) if chunk is None else chunk

    def losses(part: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(project(part).float(), targets, reduction="none", ignore_index=IGNORED)

    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])


def _chunk(hidden: torch.Tensor, vocabulary: int) -> int:
    return max(1, _ELEMENTS.get(hidden.device.type, 1 << 27) // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        wanted = any(ctx.needs_input_grad)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        by_hidden = torch.empty_like(hidden) if wanted else None
        by_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted else None
        by_bias = torch.zeros(bias.shape, dtype=torch.float32, device=weight.device) if wanted and bias is not None else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            asked, real = labels[part].clamp_min(0)[:, None], (labels[part] >= 0)[:, None]
            total = logits.logsumexp(dim=1, keepdim=True)
            losses[part] = ((total - logits.gather(1, asked)) * real)[:, 0]
            if by_hidden is None or by_weight is None:
                continue
            by_logits = logits.sub_(total).exp_()
            by_logits.scatter_add_(1, asked, torch.full_like(total, -1.0)).mul_(real)
            narrow = by_logits.to(weight.dtype)
            by_hidden[part] = narrow @ weight
            if narrow.dtype == torch.float32:
                torch.addmm(by_weight, narrow.T, hidden[part], out=by_weight)
            else:
                by_weight += narrow.T @ hidden[part]
            if by_bias is not None:
                by_bias += by_logits.sum(dim=0)
        if wanted:
            kept = [None if one is None else one.to(weight.dtype) for one in (by_hidden, by_weight, by_bias)]
            ctx.save_for_backward(labels, *kept)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (labels, *kept) = grads, ctx.saved_tensors
        if len(grad):
            real = labels >= 0
            factor = grad.gather(0, real.int().argmax(dim=0, keepdim=True))
            # A loss that is no number is the step's guard's to leave out: its gradient must get there, and equals nothing.
            same = (grad == factor) | (grad.isnan() & factor.isnan())
            torch._assert_async((same | ~real).all(), "targets must weigh the same")
            for one in kept:
                if one is not None:
                    one.mul_(factor.to(one.dtype))  # in place: of the weights' size, and nobody else's
        return (*kept, None, None)
