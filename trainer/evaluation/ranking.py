"""Measures of ranked documents: nDCG, MRR, MAP, recall, precision and accuracy at a cutoff, as trec_eval computes them.

pytrec-eval is the oracle of the tests and no dependency. It compiles C where there is no wheel, and it takes dictionaries of
scores, which for 1,000 queries and 50,000 documents are 50 million entries; these measures take the best documents only.

Differences from trec_eval (https://github.com/usnistgov/trec_eval): a judged query without a run scores 0, as with its option
`-c`. MRR has a cutoff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Judgements = Mapping[str, Mapping[str, int]]
"""Grades by query and document; above 0 is relevant."""
Run = Mapping[str, Mapping[str, float]]
"""Scores by query and document."""
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The grades of the best documents of q queries."""

    found: Scores
    """[q, depth]: the grade of the document at each rank, 0 if it is not judged or there is none."""
    ideal: Scores
    """[q, most]: the positive grades of each query in descending order, filled up with 0."""

    @property
    def relevant(self) -> Scores:
        """The number of relevant documents of each query, [q]; 1 where there is none, whose scores are 0 anyway."""
        return np.maximum(1.0, (self.ideal > 0).sum(axis=1))


def ndcg(ranked: Ranked, cutoff: int) -> Scores:
    """Discounted cumulative gain with linear gains over that of the ideal order (Järvelin and Kekäläinen, TOIS 2002)."""
    ideal = _discounted(ranked.ideal[:, :cutoff])
    return _discounted(ranked.found[:, :cutoff]) / np.where(ideal > 0, ideal, 1.0)


def _discounted(grades: Scores) -> Scores:
    return grades @ (1.0 / np.log2(np.arange(2, grades.shape[1] + 2)))


def _hits(ranked: Ranked, cutoff: int) -> NDArray[np.bool_]:
    """Which of the best documents are relevant, [q, cutoff]."""
    return ranked.found[:, :cutoff] > 0


def mrr(ranked: Ranked, cutoff: int) -> Scores:
    """One over the rank of the first relevant document; 0 beyond the cutoff."""
    hits = _hits(ranked, cutoff)
    return np.where(hits.any(axis=1), 1.0 / (1 + hits.argmax(axis=1)), 0.0)


def average_precision(ranked: Ranked, cutoff: int) -> Scores:
    """The precision at the rank of each relevant document within the cutoff, over the number of all relevant documents."""
    hits = _hits(ranked, cutoff)
    precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return (precisions * hits).sum(axis=1) / ranked.relevant


def recall(ranked: Ranked, cutoff: int) -> Scores:
    """The share of the relevant documents within the cutoff."""
    return _hits(ranked, cutoff).sum(axis=1) / ranked.relevant


def precision(ranked: Ranked, cutoff: int) -> Scores:
    """Relevant documents within the cutoff over the cutoff, also where fewer documents are ranked."""
    return _hits(ranked, cutoff).sum(axis=1) / cutoff


def accuracy(ranked: Ranked, cutoff: int) -> Scores:
    """1 if a relevant document is within the cutoff, else 0; trec_eval's `success`."""
    return np.where(_hits(ranked, cutoff).any(axis=1), 1.0, 0.0)


MEASURES: dict[str, Callable[[Ranked, int], Scores]] = {
    "ndcg": ndcg,
    "mrr": mrr,
    "map": average_precision,
    "recall": recall,
    "precision": precision,
    "accuracy": accuracy,
}


def measure(ranked: Ranked, names: Iterable[str]) -> dict[str, Scores]:
    """The score of each query [q] by measure; a name is that of a measure and its cutoff, such as `ndcg_at_10`."""
    parts = {name: name.rpartition("_at_") for name in names}
    return {name: MEASURES[kind](ranked, int(cutoff)) for name, (kind, _, cutoff) in parts.items()}


def rank_run(run: Run, judgements: Judgements, depth: int) -> Ranked:
    """The grades of the best `depth` documents of each judged query, in the order of `judgements`.

    Documents of equal scores stand in descending order of their ids. Scores count in fp32, as trec_eval stores them.
    """
    found = []
    for query, grades in judgements.items():
        ids = sorted(run.get(query, {}), reverse=True)
        scores = np.array([run[query][name] for name in ids], np.float32)
        best = np.argsort(-scores, kind="stable")[:depth]
        found.append([grades.get(ids[place], 0) for place in best])
    return _ranked(found, [list(grades.values()) for grades in judgements.values()], depth)


def rank_scores(scores: NDArray[np.floating], ids: Sequence[str], judged: Sequence[Mapping[str, int]], depth: int) -> Ranked:
    """As `rank_run`, from a matrix of scores.

    Args:
        scores: [q, n] for n documents.
        ids: the ids of the documents, in descending order.
        judged: the grades of each query by document.
    """
    found = [
        [grades.get(ids[place], 0) for place in best]
        for grades, best in zip(judged, map(_best, scores.astype(np.float32), [depth] * len(judged)), strict=True)
    ]
    return _ranked(found, [list(grades.values()) for grades in judged], depth)


def _best(scores: NDArray[np.float32], depth: int) -> NDArray[np.int64]:
    """The places of the highest scores in descending order; equal scores keep their order."""
    if depth >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:depth]]


def _ranked(found: list[list[int]], judged: list[list[int]], depth: int) -> Ranked:
    """Fills the rows up with 0; a negative grade counts as 0."""
    ideal = [sorted((grade for grade in grades if grade > 0), reverse=True) for grades in judged]
    return Ranked(found=_fill(found, depth), ideal=_fill(ideal, max(1, *map(len, ideal), 1)))


def _fill(rows: list[list[int]], width: int) -> Scores:
    filled = np.zeros((len(rows), width))
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = np.maximum(0, values)
    return filled


def concatenate(parts: Sequence[Ranked]) -> Ranked:
    """The queries of all parts, in order."""
    most = max(part.ideal.shape[1] for part in parts)
    ideals = [np.pad(part.ideal, ((0, 0), (0, most - part.ideal.shape[1]))) for part in parts]
    return Ranked(found=np.concatenate([part.found for part in parts]), ideal=np.concatenate(ideals))
