"""Retrieval of the other side of a text pair among all others, in both directions (as in Tatoeba, Artetxe and Schwenk 2019)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.text.clean import digest
from trainer.evaluation import bootstrap
from trainer.evaluation.measured import Measured, by_language

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.evaluation.encoder import Encoder

_BLOCK = 1024
_SAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWay:
    """Metrics of one direction, from 0 to 1."""

    accuracy_at_1: float
    mrr_at_10: float
    accuracy_at_1_interval: list[float]
    """[low, high], a list as in JSON: the 95 % score interval (Wilson 1927), which also holds if all or none are correct."""
    mrr_at_10_interval: list[float]
    """The 95 % interval by bootstrap over the queries (Efron 1979)."""


Ways = dict[str, dict[str, Any]]
"""The metrics of both directions: `forward` finds the positive of each anchor, `backward` the anchor of each positive."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Accuracy at 1 and MRR at 10, in both directions."""

    def __call__(self, embedder: Encoder, pairs: Pairs) -> Measured:
        """The metrics among all text pairs and, if there are several languages, among the pairs of each."""
        anchors = embedder.encode(pairs.queries, prompt_name="query")
        positives = embedder.encode(pairs.positives, prompt_name="document")
        ways, of_each = _ranked(anchors, positives, pairs)
        replicates = {
            way: bootstrap.means({"accuracy_at_1": (rank == 1).astype(np.float64), "mrr_at_10": _reciprocal(rank)})
            for way, rank in ways.items()
        }
        return Measured(scores=_metrics(ways), by_language=of_each, replicates=replicates)


def scores(anchors: NDArray[np.float32], positives: NDArray[np.float32], pairs: Pairs) -> tuple[Ways, dict[str, Ways]]:
    """The metrics from unit vectors [n, d] of the sides of n text pairs: of all, and by language if there are several."""

    ways, of_each = _ranked(anchors, positives, pairs)
    return _metrics(ways), of_each


def _ranked(
    anchors: NDArray[np.float32], positives: NDArray[np.float32], pairs: Pairs
) -> tuple[dict[str, NDArray[np.int64]], dict[str, Ways]]:
    """The ranks of both directions among all pairs, and the metrics by language."""

    def among(places: NDArray[np.int64]) -> Ways:
        left, right = ([texts[place] for place in places] for texts in (pairs.anchors, pairs.positives))
        return _metrics(ranks_both_ways(anchors[places], positives[places], left, right))

    return ranks_both_ways(anchors, positives, pairs.anchors, pairs.positives), by_language(pairs.langs, among)


def _metrics(ways: dict[str, NDArray[np.int64]]) -> Ways:
    return {way: asdict(metrics(rank)) for way, rank in ways.items()}


def ranks_both_ways(
    anchors: NDArray[np.float32], positives: NDArray[np.float32], anchor_texts: list[str], positive_texts: list[str]
) -> dict[str, NDArray[np.int64]]:
    """The ranks of both directions, see `ranks`."""
    return {
        "forward": ranks(anchors, positives, anchor_texts, positive_texts),
        "backward": ranks(positives, anchors, positive_texts, anchor_texts),
    }


def ranks(
    queries: NDArray[np.float32], documents: NDArray[np.float32], query_texts: list[str], texts: list[str]
) -> NDArray[np.int64]:
    """The rank (1 is best) of document i for query i by cosine, int [n].

    A tie counts against the model. Documents with the text of document i are not rivals, nor are documents of an equal query:
    if a sentence has translations in several languages, all of them are correct.

    Args:
        queries, documents: unit rows [n, d].
        query_texts, texts: the texts of queries and documents.
    """
    query_group, text_group = _groups(query_texts), _groups(texts)
    ranks_of_blocks = []
    for start in range(0, len(queries), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(queries)))
        scores = queries[block] @ documents.T
        own_scores = scores[np.arange(len(block)), block]
        rivals = (text_group[None, :] != text_group[block][:, None]) & (query_group[None, :] != query_group[block][:, None])
        ranks_of_blocks.append(1 + ((scores >= own_scores[:, None]) & rivals).sum(axis=1))
    return np.concatenate(ranks_of_blocks)


def _groups(texts: list[str]) -> NDArray[np.int64]:
    """A number for each text, equal for equal texts."""
    names = [digest(text) for text in texts]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def metrics(rank: NDArray[np.int64]) -> OneWay:
    """Accuracy at 1 and the mean reciprocal rank, 0 for ranks beyond 10."""
    from scipy.stats import binomtest

    correct, reciprocal = int((rank == 1).sum()), _reciprocal(rank)
    interval = binomtest(correct, len(rank)).proportion_ci(0.95, method="wilson")
    return OneWay(
        accuracy_at_1=correct / len(rank),
        mrr_at_10=float(reciprocal.mean()),
        accuracy_at_1_interval=[float(interval.low), float(interval.high)],
        mrr_at_10_interval=_bootstrap_interval(reciprocal),
    )


def _reciprocal(rank: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(rank <= 10, 1.0 / rank, 0.0)


def _bootstrap_interval(values: NDArray[np.float64]) -> list[float]:
    """The middle 95 % of the means of bootstrap samples.

    There are only eleven distinct values, so a sample is drawn as the number of times that each occurs.
    """
    distinct, counts = np.unique(values, return_counts=True)
    samples = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=_SAMPLES)
    low, high = np.quantile(samples @ distinct / len(values), (0.025, 0.975))
    return [float(low), float(high)]
