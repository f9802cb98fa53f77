"""WECHSEL: a new token starts as a mixture of its nearest source tokens in an aligned space of static word vectors.

Minixhofer, Paischer and Rekabsaz, NAACL 2022 (arXiv:2112.06598), section 3. With static vectors a_s, a_t of source and new
tokens, mapped into one space by orthogonal Procrustes on a dictionary, and the k nearest source tokens J_t:

    w_ts = softmax_{s in J_t}( cos(a_t, a_s) / tau )         E_new[t] = sum_s w_ts E_old[s]

A token's vector is fastText's subword vector of its text (the paper's default). With vectors that have no subwords it is the
frequency-weighted mean of the words that the token occurs in.

Differences from the paper: shared tokens are copied unless `transfer.copy_shared` is off. A token that is not text gets a
random row instead of the vector of a replacement character. The dictionary can be mined from the text pairs.
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
    """Settings of WECHSEL and of its word vectors."""

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
    """Places every new token that has a vector, as a mixture of its neighbours.

    Raises:
        DataError: the vectors contain both words of no dictionary entry.
    """
    source, target = word_space.align_vectors(problem.texts, config.space, problem.executor)
    all_source_ids = np.arange(problem.source_rows)
    source_ids, source_vectors = word_space.token_vectors(
        problem.source, canonical_tokens(problem.source), all_source_ids, source
    )
    new_ids, new_vectors = word_space.token_vectors(problem.target, problem.tokens, problem.new, target)
    columns, weights = top_softmax(
        unit_rows(new_vectors), unit_rows(source_vectors), config.neighbours, config.temperature, problem.executor
    )
    return Placement.from_dense(new_ids, source_ids[columns], weights, Provenance.NEIGHBOURS)
