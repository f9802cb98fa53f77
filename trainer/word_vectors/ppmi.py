"""Word vectors from counts: PPMI and a truncated SVD (Levy, Goldberg and Dagan, TACL 2015, sections 2 and 3).

    ppmi(w, c) = max(0, log p(w, c) / (p(w) p(c)^0.75) - log k)        vectors = U_d S_d^(1/2)

The deterministic alternative to fastText: counts of parts of the text add up to the counts of the whole, so they can be
computed anywhere and in any order. The price: no subwords, hence no vectors of unseen words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError, DataError
from trainer.executor import Executor, LocalExecutor
from trainer.word_vectors.vectors import TableVectors

if TYPE_CHECKING:
    import scipy.sparse

PART_LINES = 20_000
"""Lines in a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PpmiConfig:
    """Settings as in the paper."""

    dim: int = 100
    """Width of the vectors."""
    window: int = 5
    """Largest distance, in words, of two words that co-occur."""
    min_count: int = 5
    """Words that occur less often have no vector."""
    smoothing: float = 0.75
    """Exponent of the context's frequency: rare contexts count for less."""
    negatives: int = 1
    """k; the PMI is shifted down by log k."""

    def __post_init__(self) -> None:
        if min(self.dim, self.window, self.min_count, self.negatives) < 1 or not 0 < self.smoothing <= 1:
            raise ConfigError("ppmi.dim, window, min_count and negatives must be at least 1, smoothing in (0, 1].")


def train(lines: Iterable[str], config: PpmiConfig, what: str, executor: Executor | None = None) -> TableVectors:
    """Trains vectors of the words in `lines`, which blanks separate.

    Raises:
        DataError: too few words occur `min_count` times; the error names the text as `what`.
    """
    import scipy.sparse

    executor = executor or LocalExecutor()
    tokenised = [line.split() for line in lines]
    parts = [tokenised[start : start + PART_LINES] for start in range(0, len(tokenised), PART_LINES)]
    counts: Counter[str] = Counter()
    for part in executor(_count_words, parts):
        counts.update(part)
    words = sorted((word for word, n in counts.items() if n >= config.min_count), key=lambda word: (-counts[word], word))
    if len(words) <= config.dim:
        raise DataError(
            f"only {len(words):,} words of the {what} occur {config.min_count} times; vectors of width {config.dim} need more.",
            "transfer",
            "Give more text, or lower ppmi.min_count or ppmi.dim.",
        )
    number_of = {word: number for number, word in enumerate(words)}
    shape = (len(words), len(words))
    cooccurrences = sum(
        executor(_count_cooccurrences, parts, number_of, config.window), scipy.sparse.csr_matrix(shape, dtype=np.int64)
    )
    rows = _factor(_ppmi(scipy.sparse.csr_matrix(cooccurrences), config), config.dim)
    return TableVectors(words, rows, np.array([counts[word] for word in words], np.float64))


def _count_words(part: Sequence[Sequence[str]]) -> Counter[str]:
    return Counter(word for line in part for word in line)


def _count_cooccurrences(part: Sequence[Sequence[str]], number_of: dict[str, int], window: int) -> scipy.sparse.csr_matrix:
    """How often two words are at most `window` known words apart in a line, int64 [W, W], symmetric."""
    import scipy.sparse

    ids = [np.array([number_of[word] for word in line if word in number_of], np.int64) for line in part]
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in range(1, window + 1):
        left += [line[:-distance] for line in ids]
        right += [line[distance:] for line in ids]
    rows, columns = np.concatenate(left), np.concatenate(right)
    shape = (len(number_of), len(number_of))
    one_sided = scipy.sparse.coo_matrix((np.ones(len(rows), np.int64), (rows, columns)), shape=shape).tocsr()
    return (one_sided + one_sided.T).tocsr()


def _ppmi(cooccurrences: scipy.sparse.csr_matrix, config: PpmiConfig) -> scipy.sparse.csr_matrix:
    """The positive pointwise mutual information of each pair of words, sparse [W, W], with smoothing and a shift."""
    import scipy.sparse

    coo = cooccurrences.tocoo()
    word = np.asarray(cooccurrences.sum(axis=1), np.float64).ravel()
    context = np.asarray(cooccurrences.sum(axis=0), np.float64).ravel() ** config.smoothing
    pmi = np.log(coo.data * context.sum() / (word[coo.row] * context[coo.col])) - np.log(config.negatives)
    is_positive = pmi > 0
    return scipy.sparse.csr_matrix((pmi[is_positive], (coo.row[is_positive], coo.col[is_positive])), shape=cooccurrences.shape)


def _factor(matrix: scipy.sparse.csr_matrix, dim: int) -> NDArray[np.float32]:
    """U_d S_d^(1/2). The largest entry of each column is made positive, since an SVD does not determine the signs."""
    import scipy.sparse.linalg

    start = np.ones(matrix.shape[0]) / np.sqrt(matrix.shape[0])
    u, s, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
    order = np.argsort(-s, kind="stable")
    rows = u[:, order] * np.sqrt(s[order])
    signs = np.sign(rows[np.abs(rows).argmax(axis=0), np.arange(dim)])
    return (rows * signs).astype(np.float32)
