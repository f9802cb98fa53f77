"""OFA: wechsel's mixture over the tokens of a multilingual word space, with the shared tokens copied.

Liu, Lin, Wang and Schuetze, Findings of NAACL 2024 (arXiv:2311.08849), "OFA: A Framework of Initializing Unseen Subword
Embeddings", section 3. With W(t) the words whose spelling contains token t, v their vectors in one multilingual space,
and the k nearest old tokens J_t:

    a_t = mean_{w in W(t)} v_w         w_ts = softmax_{s in J_t}( cos(a_t, a_s) / tau )         F_new[t] = sum_s w_ts F_old[s]

The mixture is linear, so mixing rows of E or of its coordinates F (E = F P) is the same plan; the factors themselves are
`transfer.factorise`, for any method. Ours differs: any two sets of word vectors turned into one space, not the ColexNet+
vectors alone; all spellings of all words are split in one batch instead of four calls a word.
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
"""Each word plain and behind a blank, as it is and in title case."""


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
    """Neighbour mixtures for every new token that occurs in a word.

    Raises:
        DataError: no pair of the dictionary has both words in the vectors.
    """
    source, target = word_space.align_vectors(problem.texts, config.space, problem.executor)
    old_ids, old = word_space.token_vectors_by_words(problem.source, source, _alike(source), SPELLINGS)
    known, vectors = word_space.token_vectors_by_words(problem.target, target, _alike(target), SPELLINGS)
    new = np.isin(known, problem.new)
    columns, weights = top_softmax(
        unit_rows(vectors[new]), unit_rows(old), config.neighbours, config.temperature, problem.executor
    )  # fmt: skip
    return Placement.from_dense(known[new], old_ids[columns], weights, Provenance.NEIGHBOURS)


def _alike(vectors: Vectors) -> np.ndarray:
    return np.ones(len(vectors.words))
