"""Random: new tokens get random rows with the moments of the source rows (see `apply`). The control of every comparison."""

from dataclasses import dataclass

import numpy as np

from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomConfig:
    """No settings."""


def place(problem: Problem, config: RandomConfig) -> Placement:
    """Places no token, so all of them get random rows."""
    none = np.empty(0, np.int64)
    return Placement(ids=none, counts=none, indices=none, weights=np.empty(0, np.float32), provenance=Provenance.RANDOM)
