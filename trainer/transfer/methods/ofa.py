"""OFA: WECHSEL's mixture over the tokens of a multilingual word space; shared tokens are copied.

Liu, Lin, Wang and Schuetze, Findings of NAACL 2024 (arXiv:2311.08849), "OFA: A Framework of Initializing Unseen Subword
Embeddings", section 3. With the words W(t) whose tokens include t, their vectors v in one multilingual space, and the k
nearest source tokens J_t:

    a_t = mean_{w in W(t)} v_w         w_ts = softmax_{s in J_t}( cos(a_t, a_s) / tau )         F_new[t] = sum_s w_ts F_old[s]

The mixture is linear, so the same plan mixes rows of E and of its coordinates F (E = F P); `transfer.factorise` makes the
factors, for any method.

Differences from the paper: any two sets of word vectors, rotated into one space, instead of the ColexNet+ vectors. All
spellings of all words are tokenised in one batch instead of four calls per word.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipeline.errors import ConfigError
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.neighbours import top_softmax, unit_rows
from trainer.word_vectors import word_space
from trainer.word_vectors.vectors import Vectors
from trainer.word_vectors.word_space import SpaceConfig

SPELLINGS = ("{}", " {}", "{^}", " {^}")
"""Each word without and with a blank before it, as it is and in title case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfaConfig:
    """The paper's settings."""

    neighbours: int = 10
    """k"""
    temperature: float = 0.1
    """tau"""
    space: SpaceConfig = field(default_factory=SpaceConfig)

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature <= 0:
            raise ConfigError(f"ofa needs neighbours >= 1 and temperature > 0, got {self.neighbours} and {self.temperature}.")


def place(problem: Problem, config: OfaConfig) -> Placement:
    """Places every new token that occurs in a word, as a mixture of its neighbours.

    Raises:
        DataError: the vectors contain both words of no dictionary entry.
    """
    source, target = word_space.align_vectors(problem.texts, config.space, problem.executor)
    source_ids, source_vectors = word_space.token_vectors_by_words(problem.source, source, _equal_weights(source), SPELLINGS)
    target_ids, target_vectors = word_space.token_vectors_by_words(problem.target, target, _equal_weights(target), SPELLINGS)
    is_new = np.isin(target_ids, problem.new)
    columns, weights = top_softmax(
        unit_rows(target_vectors[is_new]), unit_rows(source_vectors), config.neighbours, config.temperature, problem.executor
    )
    return Placement.from_dense(target_ids[is_new], source_ids[columns], weights, Provenance.NEIGHBOURS)


def _equal_weights(vectors: Vectors) -> np.ndarray:
    return np.ones(len(vectors.words))
