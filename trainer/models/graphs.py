"""Compiled graphs, for training alone: evaluations have other shapes and are few."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def compile_for_training(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, as a graph of fixed shapes where there will be a backward pass."""
    graph = torch.compile(forward, dynamic=False)

    @wraps(forward)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (graph if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return either
