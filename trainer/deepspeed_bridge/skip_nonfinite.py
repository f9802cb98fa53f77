"""Skips an update whose loss or gradient is not finite.

Read from DeepSpeed 0.19.8, `step` in runtime/zero/stage_1_and_2.py and stage3.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def skip_nonfinite(optimizer: Any, loss: torch.Tensor) -> Iterator[None]:
    """While the block runs, DeepSpeed skips the update and clears the gradients if `loss` or the norm is not finite.

    ZeRO-3 does so for the norm. ZeRO-1 and 2 do so under bf16 only after a scan of all gradients (`check_grad_overflow`: six
    kernels a parameter), though the norm says as much. Here either stage looks at the norm; the loss is added as 0 or NaN.
    """
    name = "_get_norm_groups" if hasattr(optimizer, "_get_norm_groups") else "scaled_global_norm"
    real = getattr(optimizer, name)

    def guarded(*arguments: Any, **options: Any) -> Any:
        norm = real(*arguments, **options)
        optimizer.check_grad_overflow = True
        zero_or_nan = loss * 0.0
        if isinstance(norm, list):
            return [part + zero_or_nan.to(part.dtype) for part in norm]
        return norm + zero_or_nan.to(norm.dtype)

    scan = optimizer.check_grad_overflow = getattr(optimizer, "check_grad_overflow", False)
    setattr(optimizer, name, guarded)
    try:
        yield
    finally:
        setattr(optimizer, name, real)
        optimizer.check_grad_overflow = scan
