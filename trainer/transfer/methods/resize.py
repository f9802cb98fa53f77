"""Resize: every new token gets the source row with the same id, whatever token that was; ids beyond the source get the mean.

This is what `model.resize_token_embeddings(len(tokenizer))` leaves when the vocabulary was replaced, not extended. It is an
honest baseline, because many people do it. Shared tokens are not copied either.
"""

from dataclasses import dataclass

import numpy as np

from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeConfig:
    """No settings."""


def place(problem: Problem, config: ResizeConfig) -> Placement:
    """Places every id that has a token, including special tokens."""
    ids = np.flatnonzero([token is not None for token in problem.tokens])
    in_source = ids < problem.source_rows
    return Placement(
        ids=ids,
        counts=in_source.astype(np.int64),
        indices=ids[in_source],
        weights=np.ones(int(in_source.sum()), np.float32),
        provenance=np.where(in_source, Provenance.SAME_ID, Provenance.MEAN).astype(np.uint8),
    )
