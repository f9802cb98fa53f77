"""Rankings of the other side of text pairs, with the hard negatives as further documents."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.text.clean import digest
from trainer.evaluation import bootstrap, ranking
from trainer.evaluation.measured import Measured, by_language

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.evaluation.encoder import Encoder

MEASURES = ("ndcg_at_10", "mrr_at_10", "map_at_100", "accuracy_at_1", "recall_at_10", "recall_at_100")
_DEPTH = 100
_BLOCK = 1024

Ways = dict[str, dict[str, Any]]
"""The measures of both directions: `forward` finds the positives of each anchor, `backward` the anchors of each positive."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts and their vectors [n, d]."""

    names: list[str]
    """A digest of each text: equal texts are one document."""
    vectors: NDArray[np.float32]

    def take(self, places: NDArray[np.int64]) -> Texts:
        return Texts([self.names[place] for place in places], self.vectors[places])

    def __add__(self, other: Texts) -> Texts:
        return Texts(self.names + other.names, np.concatenate([self.vectors, other.vectors]))

    def distinct(self, descending: bool = False) -> Texts:
        """The first text of each name, in order or in descending order of the names."""
        first = {name: place for place, name in reversed(list(enumerate(self.names)))}
        names = sorted(first, reverse=True) if descending else list(dict.fromkeys(self.names))
        return self.take(np.array([first[name] for name in names], np.int64))


@dataclass(frozen=True, slots=True)
class RankedPairs:
    """nDCG, MRR, MAP, accuracy and recall at a cutoff, each with its bootstrap interval, in both directions.

    Queries and documents are distinct texts. A query has as many relevant documents as pairs name for it. Hard negatives are
    documents where anchors search; where positives search, only the anchors are.
    Difference from `retrieval`: ties stand in the order of a hash of the texts, which knows nothing of relevance.
    """

    def __call__(self, embedder: Encoder, pairs: Pairs) -> Measured:
        """The measures among all text pairs and, if there are several languages, among the pairs of each."""
        anchors = Texts(_names(pairs.anchors), embedder.encode(pairs.queries, prompt_name="query"))
        positives, negatives = (
            Texts(_names(texts), embedder.encode(texts, prompt_name="document"))
            for texts in (pairs.positives, list(chain.from_iterable(pairs.negatives)))
        )
        owners = np.repeat(np.arange(len(pairs)), list(map(len, pairs.negatives)))

        def among(places: NDArray[np.int64]) -> tuple[Ways, Ways]:
            left, right = anchors.take(places), positives.take(places)
            others = negatives.take(np.flatnonzero(np.isin(owners, places)))
            ways = {"forward": _scores(left, right, right + others), "backward": _scores(right, left, left)}
            return {way: both[0] for way, both in ways.items()}, {way: both[1] for way, both in ways.items()}

        of_each = by_language(pairs.langs, lambda places: among(places)[0])
        scores, replicates = among(np.arange(len(pairs)))
        return Measured(scores=scores, by_language=of_each, replicates=replicates)


def _names(texts: list[str]) -> list[str]:
    return [digest(text).hex() for text in texts]


def _scores(queries: Texts, answers: Texts, documents: Texts) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """The measures of one direction and their replicates; `answers` names a relevant document of each query."""
    ranked = rank(queries, answers, documents)
    values = ranking.measure(ranked, MEASURES)
    replicates = bootstrap.means(values)
    scores = {name: float(value.mean()) for name, value in values.items()}
    counts = {"queries": len(ranked.found), "documents": len(set(documents.names))}
    return scores | bootstrap.intervals(replicates) | counts, replicates


def rank(queries: Texts, answers: Texts, documents: Texts) -> ranking.Ranked:
    """The distinct documents ranked by cosine for each distinct query."""
    judged: dict[str, dict[str, int]] = {name: {} for name in queries.names}
    for query, answer in zip(queries.names, answers.names, strict=True):
        judged[query][answer] = 1
    queries, documents = queries.distinct(), documents.distinct(descending=True)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(queries.names), _BLOCK)]
    grades = list(judged.values())
    return ranking.concatenate(
        [
            ranking.rank_scores(queries.vectors[block] @ documents.vectors.T, documents.names, grades[block], _DEPTH)
            for block in blocks
        ]
    )
