"""Semantic textual similarity: how well the cosine of two sentences follows a gold score (Cer et al., SemEval 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation import bootstrap
from trainer.evaluation.encoder import unit_rows
from trainer.evaluation.measured import Measured, by_language

if TYPE_CHECKING:
    from data_pipeline.pairs.graded_pairs import GradedPairs
    from trainer.evaluation.encoder import Encoder

Numbers = NDArray[np.float64]


def similarity(embedder: Encoder, pairs: GradedPairs) -> Measured:
    """Spearman's and Pearson's correlation of all pairs and, if there are several languages, of the pairs of each."""
    cosines = _cosines(embedder.encode(pairs.lefts), embedder.encode(pairs.rights))
    gold = np.array(pairs.scores)
    of_each = by_language(pairs.langs, lambda places: scores(cosines[places], gold[places])[0])
    of_all, replicates = scores(cosines, gold)
    return Measured(scores=of_all, by_language=of_each, replicates=replicates)


def _cosines(lefts: NDArray[np.float32], rights: NDArray[np.float32]) -> Numbers:
    wide = [vectors.astype(np.float64) for vectors in (lefts, rights)]
    units = [unit_rows(vectors) for vectors in wide]
    return np.einsum("nd,nd->n", *units)


def scores(cosines: Numbers, gold: Numbers) -> tuple[dict[str, Any], dict[str, Numbers]]:
    """Both correlations, their bootstrap intervals and the number of pairs; and the replicates of the correlations."""
    found = {name: float(value[0]) for name, value in correlations(cosines[None], gold[None]).items()}
    replicates = bootstrap.replicates(len(gold), lambda places: correlations(cosines[places], gold[places]))
    return found | bootstrap.intervals(replicates) | {"pairs": len(gold)}, replicates


def correlations(cosines: Numbers, gold: Numbers) -> dict[str, Numbers]:
    """Of b samples [b, n], [b] each; 0 where one side does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (cosines, gold)]
    return {"spearman": _pearson(*ranks), "pearson": _pearson(cosines, gold)}


def _pearson(left: Numbers, right: Numbers) -> Numbers:
    left, right = (values - values.mean(axis=1, keepdims=True) for values in (left, right))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.clip(np.einsum("bn,bn->b", left, right) / np.where(norms > 1e-12, norms, np.inf), -1.0, 1.0)
