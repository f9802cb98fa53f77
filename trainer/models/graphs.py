"""Compiles forwards for training only: evaluations have other shapes and are few."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def compile_for_training(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `forward` to a graph of fixed shapes; without gradients it runs uncompiled."""
    graph = torch.compile(forward, dynamic=False)

    @wraps(forward)
    def compiled_or_plain(*args: Any, **kwargs: Any) -> Any:
        return (graph if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return compiled_or_plain
