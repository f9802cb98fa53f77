"""Cross-entropy of a linear layer in chunks of targets, with the gradients in the same pass.

The idea of Liger Kernel (Hsu et al. 2024, arXiv:2410.10989, section 3.2) in plain tensor operations, so it runs on any device.
The logits of a chunk become its losses and, in place, the gradient of their sum. No tensor of size targets x vocabulary
outlives its chunk, and nothing is computed twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The label of ignored targets, as in torch."""
CHUNK_LOGITS = {"cuda": 1 << 28, "cpu": 1 << 27}
"""Logits in a chunk, by device: large chunks read the weights less often, small ones fit in memory beside the model."""


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """The negative log-likelihood of each target, fp32 [M]; 0 where the label is negative.

    Only for a loss that is a multiple of their sum: the forward pass computes the gradient of the sum, and the backward pass
    scales it. The backward pass fails if targets have different weights; on a GPU by a device-side assertion, which does not
    synchronise.

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
    """Like `linear_cross_entropy` but through the layer's own forward, for weights that exist only while the layer runs.

    The backward pass recomputes each chunk. Every rank needs the same number of targets.

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
    return max(1, CHUNK_LOGITS.get(hidden.device.type, 1 << 27) // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        """The loss of each target, float32 [M]; where needed also computes and saves the gradients of their sum."""
        needs_gradients = any(ctx.needs_input_grad)
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if needs_gradients else None
        weight_gradient = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs_gradients else None
        bias_gradient = (
            torch.zeros(bias.shape, dtype=torch.float32, device=weight.device) if needs_gradients and bias is not None else None
        )
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            targets, is_target = labels[part].clamp_min(0)[:, None], (labels[part] >= 0)[:, None]
            total = logits.logsumexp(dim=1, keepdim=True)
            losses[part] = ((total - logits.gather(1, targets)) * is_target)[:, 0]
            if hidden_gradient is None or weight_gradient is None:
                continue
            logit_gradient = logits.sub_(total).exp_()
            logit_gradient.scatter_add_(1, targets, torch.full_like(total, -1.0)).mul_(is_target)
            low_precision = logit_gradient.to(weight.dtype)
            hidden_gradient[part] = low_precision @ weight
            if low_precision.dtype == torch.float32:
                torch.addmm(weight_gradient, low_precision.T, hidden[part], out=weight_gradient)
            else:
                weight_gradient += low_precision.T @ hidden[part]
            if bias_gradient is not None:
                bias_gradient += logit_gradient.sum(dim=0)
        if needs_gradients:
            gradients = [
                None if gradient is None else gradient.to(weight.dtype)
                for gradient in (hidden_gradient, weight_gradient, bias_gradient)
            ]
            ctx.save_for_backward(labels, *gradients)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients saved by `forward`, scaled in place by the targets' common weight in the loss."""
        (grad,), (labels, *gradients) = grads, ctx.saved_tensors
        if len(grad):
            is_target = labels >= 0
            factor = grad.gather(0, is_target.int().argmax(dim=0, keepdim=True))
            # The step's guard skips a NaN loss, so its gradient, which equals nothing, must pass this check.
            is_equal = (grad == factor) | (grad.isnan() & factor.isnan())
            torch._assert_async((is_equal | ~is_target).all(), "targets must weigh the same")
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor.to(gradient.dtype))  # in place: it has the size of the weights, and no other owner
        return (*gradients, None, None)
