"""Isotropy: how evenly the vectors of an embedder use its dimensions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.encoder import unit_rows
from trainer.evaluation.measured import Measured, by_language

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.evaluation.encoder import Encoder

Sides = dict[str, dict[str, Any]]
"""Of the anchors and of the positives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of the vectors of distinct texts; none of fewer than two."""

    isoscore: float | None
    mean_cosine: float | None
    """Of all pairs of texts (Ethayarajh, EMNLP 2019): 0 without a common direction, 1 if all vectors are equal."""


@dataclass(frozen=True, slots=True)
class Isotropy:
    """IsoScore and the mean cosine of the anchors and of the positives.

    Fewer texts than dimensions cannot fill them: the IsoScore of n texts is at most (n - 2) / (d - 1). Compare models on the
    same texts.
    """

    def __call__(self, embedder: Encoder, pairs: Pairs) -> Measured:
        """Of all text pairs and, if there are several languages, of the pairs of each."""
        sides = {"anchors": pairs.queries, "positives": pairs.positives}
        prompts = {"anchors": "query", "positives": "document"}
        vectors = {side: _unit(embedder.encode(texts, prompt_name=prompts[side])) for side, texts in sides.items()}

        def among(places: NDArray[np.int64]) -> Sides:
            first = {side: list({texts[place]: place for place in places}.values()) for side, texts in sides.items()}
            return {side: asdict(spread(vectors[side][first[side]])) for side in sides}

        return Measured(scores=among(np.arange(len(pairs))), by_language=by_language(pairs.langs, among))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return unit_rows(wide)


def spread(vectors: NDArray[np.float64]) -> Spread:
    """Both measures of unit vectors [n, d]."""
    n = len(vectors)
    if n < 2:
        return Spread(isoscore=None, mean_cosine=None)
    total = vectors.sum(axis=0)
    squares = float((vectors**2).sum())
    return Spread(isoscore=isoscore(vectors), mean_cosine=(float(total @ total) - squares) / (n * (n - 1)))


def isoscore(vectors: NDArray[np.float64]) -> float:
    """IsoScore (Rudman, Gillman, Rayne and Eickhoff, Findings of ACL 2022, arXiv:2108.07344): 1 if all directions vary
    equally, 0 if one does, or none.

    The paper takes the distance of the normalised variances of the principal components from (1, ..., 1), and rescales it
    twice. With the covariance C this is (tr(C)^2 / |C|^2 - 1) / (d - 1), |C| the Frobenius norm: no decomposition is needed.
    """
    covariance = np.cov(vectors, rowvar=False)
    norm = float((covariance**2).sum())
    return (float(np.trace(covariance)) ** 2 / norm - 1) / (len(covariance) - 1) if norm > 0 else 0.0
