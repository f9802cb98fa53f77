"""The contract of objectives: representations in, losses out. No model, no engine, no Ray, no collective.

Letters: M = targets, H = hidden width, V = vocabulary, B = pairs of this rank, D = its documents, d = width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Which representations an objective reads."""

    token_states: bool = False
    """Hidden states at the targets: `TokenStates`."""
    vectors: bool = False
    """Vectors of this rank's pairs, and the documents of all ranks: `PairVectors`."""
    all_anchors: bool = False
    """The anchors of all ranks as well."""
    scores: bool = False
    """A teacher's scores of a pair's documents: `PairBatch.scores`."""
    teacher: bool = False
    """A teacher's vectors of all texts: `PairBatch.teacher`."""
    exits: tuple[int, ...] = ()
    """Numbers of layers behind which vectors are taken as well: then they are [n, exits + 1, d], the last layer's last."""


class TokenStates(NamedTuple):
    """Hidden states at the targets, and the output layer that turns them into logits."""

    states: torch.Tensor
    """[M, H]; logits [M, V] where the model's head has no plain linear layer at its end, and `weight` is None."""
    weight: torch.Tensor | None
    """[V, H]"""
    bias: torch.Tensor | None
    """[V]"""
    project: Callable[[torch.Tensor], torch.Tensor] | None = None
    """The output layer itself, where its weights exist only while it runs (ZeRO-3)."""
    vocabulary: int = 0
    """V, where `project` is given."""


class Gathered(NamedTuple):
    """Unit vectors of this rank, and those of all ranks in rank order, with what is known of their texts."""

    own: torch.Tensor
    """fp32 [n, d], or [n, exits + 1, d]"""
    all: torch.Tensor
    """fp32 [N, d]; gradients flow back to the rank that a vector came from."""
    keys: torch.Tensor
    """int [N], equal for equal texts."""
    partners: torch.Tensor
    """int [N], the key of the text with which it forms a pair; `NO_PARTNER` for hard negatives."""
    owners: torch.Tensor
    """int [N], the pair that it belongs to, counted over all ranks."""
    weights: torch.Tensor
    """fp32 [N], 0 for padding."""
    first: int
    """Where this rank's vectors begin in `all`."""
    in_batch: torch.Tensor | None = None
    """bool [N], whether the text's pair shares candidates with other pairs; None if all do."""


class PairVectors(NamedTuple):
    """The two sides of text pairs: B anchors; their B positives, then the hard negatives, as documents."""

    anchors: Gathered
    """Only this rank's anchors unless the objective needs `all_anchors`."""
    documents: Gathered


NO_PARTNER = -(1 << 63)
"""The key of no text."""
Reps = TokenStates | PairVectors
"""What a `Trainable` gives an objective."""


class Objective(Protocol):
    """A loss. A frozen dataclass whose fields are its settings."""

    @property
    def needs(self) -> Needs: ...

    def __call__(self, reps: Any, batch: Any) -> torch.Tensor:
        """The loss of each target, fp32 [M].

        Args:
            reps: the `Reps` that `needs` names.
            batch: the rows that they represent.
        """
        ...
