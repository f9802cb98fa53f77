"""Script moments: a new token is drawn from the moments of the source rows in its script.

Downey, Blevins, Goldfine and Steinert-Threlkeld, MRL 2023 (arXiv:2309.04679), "Embedding Structure Matters", section 3.2
(re-initialisation by script). In the paper it rivals FOCUS without any auxiliary vectors:

    E_new[t] ~ N( mean_{s in script(t)} E_old[s], std_{s in script(t)} E_old[s] )        per dimension

Differences from the paper: a token's script comes from the Unicode names of its letters. Tokens without letters form their
own group. A script with fewer than `min_tokens` source tokens uses the moments of all source rows.
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
    """The size from which a script has its own moments."""

    min_tokens: int = 10
    """Source tokens that a script needs for its own moments; smaller scripts use the moments of all source rows."""

    def __post_init__(self) -> None:
        if self.min_tokens < 2:
            raise ConfigError(f"script_moments.min_tokens must be at least 2, got {self.min_tokens}.")


def place(problem: Problem, config: ScriptMomentsConfig) -> Placement:
    """Places tokens without entries, in the group of their script; tokens of scripts without a group stay unplaced."""
    source_scripts = [script(token) for token in canonical_tokens(problem.source)]
    counts = Counter(name for name in source_scripts if name)
    scripts = sorted(name for name, count in counts.items() if count >= config.min_tokens)
    group_of = {name: number for number, name in enumerate(scripts, 1)}
    groups = np.array([group_of.get(script(problem.tokens[new]), 0) for new in problem.new], np.uint16)
    has_group = groups > 0
    return Placement(
        ids=problem.new[has_group],
        counts=np.zeros(int(has_group.sum()), np.int64),
        indices=np.empty(0, np.int64),
        weights=np.empty(0, np.float32),
        provenance=Provenance.SCRIPT,
        groups=(groups[has_group], np.array([group_of.get(name, 0) for name in source_scripts], np.uint16)),
    )
