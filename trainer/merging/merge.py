"""The contract of merges: what each model counts is decided first, then one tensor after the other is merged. No files, no Ray.

K = models that are merged. The base, where a method needs it, is the model from which they were trained; it is not one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch

Probe = Literal["loss", "accuracy", "search"]
"""What is done with the probe pairs: the InfoNCE loss is measured, where less is better, or the accuracy of retrieval; or the
weights are searched on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method needs beside its models."""

    base: bool = False
    """The model from which the others were trained."""
    probe: Probe | None = None
    """A score or a search on some of the training pairs. The settings of the method then have `probe_pairs`, their number."""
    least: int = 2
    """The fewest models, without the base."""
    most: int | None = None
    """The most models, without the base."""


class Column(NamedTuple):
    """One tensor of every model, in the dtype of its file."""

    models: Sequence[torch.Tensor]
    base: torch.Tensor | None
    """None for methods that need no base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What a method may ask about the models before the first tensor is merged."""

    count: int
    columns: Callable[[], Iterator[Column]]
    """Reads the tensors of all models, one column after the other; each call is a pass over all files."""
    score: Callable[[Sequence[float]], float]
    """The score that `Needs.probe` names, of sum_k weights_k theta_k."""
    search: Callable[[], Sequence[float]] = lambda: ()
    """The weights of the differences that a search finds on the cluster, by the method's settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the tensors of these models are merged."""

    merge: Callable[[Column], torch.Tensor]
    """The merged tensor, fp64 or fp32, of floating-point tensors."""
    weights: tuple[float, ...] | None = None
    """What each model counts; None where that depends on the tensor."""


class Merge(Protocol):
    """A merge method: a frozen dataclass whose fields are its settings."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, models: Models) -> Recipe:
        """Decides how these models are merged."""
        ...


def mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their mean, summed in fp64."""
    import torch

    total = tensors[0].to(torch.float64, copy=True)
    for tensor in tensors[1:]:
        total += tensor
    return total.div_(len(tensors))


def weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """sum_k weights_k tensors_k in fp64. Tensors of weight 0 are not read."""
    import torch

    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight:
            total.add_(tensor, alpha=weight)
    return total


def add_differences(column: Column, weights: Sequence[float]) -> torch.Tensor:
    """theta_0 + sum_k weights_k (theta_k - theta_0) in fp64."""
    import torch

    assert column.base is not None, "the method needs a base"
    merged = column.base.to(torch.float64, copy=True)
    for weight, difference in zip(weights, differences(column), strict=True):
        merged.add_(difference, alpha=weight)
    return merged


def differences(column: Column) -> Iterator[torch.Tensor]:
    """theta_k - theta_0 of each model (its task vector), fp64, one at a time."""
    assert column.base is not None, "the method needs a base"
    base = column.base.double()
    for tensor in column.models:
        yield tensor - base
