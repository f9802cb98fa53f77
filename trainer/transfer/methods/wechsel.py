"""WECHSEL: a new token starts as a mixture of its nearest old tokens in an aligned space of static word vectors.

Minixhofer, Paischer and Rekabsaz, NAACL 2022 (arXiv:2112.06598), section 3. With static vectors A_s, A_t of old and new
tokens, mapped into one space by orthogonal Procrustes on a dictionary, and the k nearest old tokens J_t:

    w_ts = softmax_{s in J_t}( cos(a_t, a_s) / tau )         E_new[t] = sum_s w_ts E_old[s]

A token's vector is fastText's subword vector of its text (the paper's default), or, with vectors that have no subwords,
the frequency-weighted mean of the words that it occurs in. Ours differs: tokens that both vocabularies have are copied
unless `transfer.copy_shared` is off; a token that is not text is left to the random fallback instead of being given the
vector of a replacement character; a dictionary can be mined from the pairs.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.tokenizers.canonical import canonical_tokens
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.neighbours import top_softmax, unit_rows
from trainer.word_vectors import word_space
from trainer.word_vectors.word_space import SpaceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WechselConfig:
    """Settings of WECHSEL and of the vectors that it needs."""

    neighbours: int = 10
    """k"""
    temperature: float = 0.1
    """tau"""
    space: SpaceConfig = field(default_factory=SpaceConfig)

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0:
            raise ConfigError(
                f"wechsel needs neighbours >= 1 and temperature > 0, got {self.neighbours} and {self.temperature}."
            )


def place(problem: Problem, config: WechselConfig) -> Placement:
    """Neighbour mixtures for every new token that has a vector.

    Raises:
        DataError: no pair of the dictionary has both words in the vectors.
    """
    source, target = word_space.align_vectors(problem.texts, config.space, problem.executor)
    all_old = np.arange(problem.source_rows)
    old_ids, old = word_space.token_vectors(problem.source, canonical_tokens(problem.source), all_old, source)
    new_ids, new = word_space.token_vectors(problem.target, problem.tokens, problem.new, target)
    columns, weights = top_softmax(unit_rows(new), unit_rows(old), config.neighbours, config.temperature, problem.executor)
    return Placement.from_dense(new_ids, old_ids[columns], weights, Provenance.NEIGHBOURS)
