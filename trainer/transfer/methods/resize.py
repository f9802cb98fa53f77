"""Resize: every new token gets the old row of the same id, whatever token that was; rows that are too few get the mean.

What `model.resize_token_embeddings(len(tokenizer))` leaves when the vocabulary was replaced, not extended: the honest
opponent of every method, because it is what many do. Tokens that both vocabularies have are not copied either.
"""

from dataclasses import dataclass

import numpy as np

from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeConfig:
    """No settings."""


def place(problem: Problem, config: ResizeConfig) -> Placement:
    """A row for every id that has a token, special ones included."""
    ids = np.flatnonzero([token is not None for token in problem.tokens])
    old = ids < problem.source_rows
    return Placement(
        ids=ids,
        counts=old.astype(np.int64),
        indices=ids[old],
        weights=np.ones(int(old.sum()), np.float32),
        provenance=np.where(old, Provenance.SAME_ID, Provenance.MEAN).astype(np.uint8),
    )
