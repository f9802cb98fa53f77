"""fastText vectors (Bojanowski et al., TACL 2017), trained on one thread so the same text gives the same vectors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from trainer.executor import Executor


@dataclass(frozen=True, slots=True, kw_only=True)
class FastTextConfig:
    """Settings as in fastText."""

    dim: int = 100
    """Width of the vectors."""
    epochs: int = 5
    """Passes over the text."""
    min_count: int = 5
    """Words that occur less often have no vector of their own."""
    min_ngram: int = 3
    """Characters of the shortest subword; 0 with `max_ngram` 0 switches subwords off."""
    max_ngram: int = 6
    """Characters of the longest subword."""
    negatives: int = 10
    """Negative samples per positive."""
    buckets: int = 200_000
    """Hashed subwords; fastText's two million take 800 MB at width 100."""

    def __post_init__(self) -> None:
        if min(self.dim, self.epochs, self.min_count) < 1:
            raise ConfigError("fasttext.dim, epochs and min_count must be at least 1.")


class FastTextVectors:
    """Trained fastText vectors. The vector of an unseen word is built from its subwords."""

    has_subwords = True

    def __init__(self, model: Any) -> None:
        self.model = model
        """fastText's own model."""
        counted = [(word, count) for word, count in zip(*model.get_words(include_freq=True), strict=True) if word != "</s>"]
        self.words: list[str] = [word for word, _ in counted]
        self.counts = np.array([count for _, count in counted], np.float64)
        self._word_set = set(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._word_set

    def vectors(self, words: Iterable[str]) -> torch.Tensor:
        """Float [n, A]; a zero row for a word without a vector and without known subwords."""
        import torch

        rows = [self.model.get_word_vector(word) for word in words]
        return torch.from_numpy(np.array(rows, np.float32).reshape(-1, self.model.get_dimension()))


def train(lines: Iterable[str], config: FastTextConfig, what: str, executor: Executor | None = None) -> FastTextVectors:
    """Trains CBOW vectors of the words in `lines`, in this process: `executor` is not used.

    Raises:
        DataError: fewer than two words occur `min_count` times; the error names the text as `what`.
    """
    import fasttext  # a compiled extension that only some methods need

    with tempfile.TemporaryDirectory(prefix="scion-fasttext-") as folder:
        path = os.path.join(folder, "text.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(line.replace("\n", " ") + "\n" for line in lines)
        try:
            model = fasttext.train_unsupervised(
                path,
                model="cbow",
                dim=config.dim,
                epoch=config.epochs,
                minCount=config.min_count,
                neg=config.negatives,
                minn=config.min_ngram,
                maxn=config.max_ngram,
                bucket=config.buckets,
                thread=1,
                verbose=0,
            )
        except ValueError as error:  # "Empty vocabulary"
            raise DataError(
                f"no word of the {what} occurs {config.min_count} times.",
                "transfer",
                "Give more text or lower min_count.",
            ) from error
    return FastTextVectors(model)
