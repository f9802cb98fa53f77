"""Mean: every new token starts as the mean of all source rows, the default of `resize_token_embeddings`."""

from dataclasses import dataclass

import numpy as np

from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanConfig:
    """No settings."""


def place(problem: Problem, config: MeanConfig) -> Placement:
    """Places every new token, without entries and with provenance MEAN; `apply` computes the mean."""
    new = problem.new
    return Placement(
        ids=new,
        counts=np.zeros(len(new), np.int64),
        indices=np.empty(0, np.int64),
        weights=np.empty(0, np.float32),
        provenance=Provenance.MEAN,
    )
