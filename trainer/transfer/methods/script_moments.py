"""Script moments: a new token is drawn from the moments of the old rows in its own script.

Downey, Blevins, Goldfine and Steinert-Threlkeld, MRL 2023 (arXiv:2309.04679), "Embedding Structure Matters", section 3.2
(re-initialisation by script), which rivals FOCUS there without any auxiliary vectors:

    E_new[t] ~ N( mean_{s in script(t)} E_old[s], std_{s in script(t)} E_old[s] )        per dimension

Ours differs: a token's script is read off the Unicode names of its letters; tokens without letters form a group of their
own; a script with fewer than `min_tokens` old tokens falls back on the moments of all old rows.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.tokenizers.canonical import canonical_tokens, script
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptMomentsConfig:
    """When a script is known well enough."""

    min_tokens: int = 10
    """Old tokens that a script needs for moments of its own; those of all old rows are taken below that."""

    def __post_init__(self) -> None:
        if self.min_tokens < 2:
            raise ConfigError(f"script_moments.min_tokens must be at least 2, got {self.min_tokens}.")


def place(problem: Problem, config: ScriptMomentsConfig) -> Placement:
    """Rows without entries and with the group of their script; scripts that the old vocabulary lacks are left out."""
    old = [script(token) for token in canonical_tokens(problem.source)]
    counts = Counter(name for name in old if name)
    known = sorted(name for name, count in counts.items() if count >= config.min_tokens)
    number = {name: place for place, name in enumerate(known, 1)}
    groups = np.array([number.get(script(problem.tokens[new]), 0) for new in problem.new], np.uint16)
    placed = groups > 0
    return Placement(
        ids=problem.new[placed],
        counts=np.zeros(int(placed.sum()), np.int64),
        indices=np.empty(0, np.int64),
        weights=np.empty(0, np.float32),
        provenance=Provenance.SCRIPT,
        groups=(groups[placed], np.array([number.get(name, 0) for name in old], np.uint16)),
    )
