"""Retrieval of a pair's other side among all others, in both directions (as in Tatoeba, Artetxe and Schwenk 2019)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.text.clean import digest

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.embedder import Embedder

_BLOCK = 1024
_SAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWay:
    """Metrics of one direction, in 0..1."""

    accuracy_at_1: float
    mrr_at_10: float
    accuracy_at_1_interval: list[float]
    """[low, high], a list as in JSON: 95 % score interval (Wilson 1927), which holds where all or none are right, too."""
    mrr_at_10_interval: list[float]
    """95 % interval by bootstrap over the queries (Efron 1979)."""


Ways = dict[str, dict[str, Any]]
"""The metrics of both directions: `forward` finds the positive of each anchor, `backward` the anchor of each positive."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The metric: accuracy at 1 and MRR at 10, both ways."""

    def __call__(self, embedder: Embedder, pairs: Pairs) -> tuple[Ways, dict[str, Ways]]:
        """Among all pairs, and among the pairs of each language, where they are of several."""
        return scores(embedder.encode(pairs.anchors), embedder.encode(pairs.positives), pairs)


def scores(anchors: NDArray[np.float32], positives: NDArray[np.float32], pairs: Pairs) -> tuple[Ways, dict[str, Ways]]:
    """The same from unit vectors [n, d] of the n pairs' sides."""

    def among(chosen: NDArray[np.int64]) -> Ways:
        left, right = ([texts[place] for place in chosen] for texts in (pairs.anchors, pairs.positives))
        return {
            "forward": asdict(metrics(ranks(anchors[chosen], positives[chosen], left, right))),
            "backward": asdict(metrics(ranks(positives[chosen], anchors[chosen], right, left))),
        }

    langs = sorted(set(pairs.langs))
    by_language = {lang: among(np.flatnonzero(np.array(pairs.langs) == lang)) for lang in langs} if len(langs) > 1 else {}
    return among(np.arange(len(pairs))), by_language


def ranks(
    queries: NDArray[np.float32], documents: NDArray[np.float32], asked: list[str], texts: list[str]
) -> NDArray[np.int64]:
    """The rank (1 is best) of document i for query i by cosine, int [n].

    A tie counts against us. Documents of the same text as document i are not rivals to it, nor are those of the same query:
    where a sentence has a translation in each of several languages, all of them are right.

    Args:
        queries, documents: unit rows [n, d].
        asked, texts: the texts of queries and documents.
    """
    queried, same = _groups(asked), _groups(texts)
    found = []
    for start in range(0, len(queries), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(queries)))
        scores = queries[block] @ documents.T
        own = scores[np.arange(len(block)), block]
        rivals = (same[None, :] != same[block][:, None]) & (queried[None, :] != queried[block][:, None])
        found.append(1 + ((scores >= own[:, None]) & rivals).sum(axis=1))
    return np.concatenate(found)


def _groups(texts: list[str]) -> NDArray[np.int64]:
    """A number for each text, the same for equal texts."""
    names = [digest(text) for text in texts]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def metrics(rank: NDArray[np.int64]) -> OneWay:
    """Accuracy at 1 and mean reciprocal rank, ranks beyond 10 counting nothing."""
    from scipy.stats import binomtest

    right, reciprocal = int((rank == 1).sum()), np.where(rank <= 10, 1.0 / rank, 0.0)
    score = binomtest(right, len(rank)).proportion_ci(0.95, method="wilson")
    return OneWay(
        accuracy_at_1=right / len(rank),
        mrr_at_10=float(reciprocal.mean()),
        accuracy_at_1_interval=[float(score.low), float(score.high)],
        mrr_at_10_interval=_bootstrapped(reciprocal),
    )


def _bootstrapped(values: NDArray[np.float64]) -> list[float]:
    """The middle 95 % of the means of samples with replacement. There are eleven values only, so that a sample is drawn as how
    often each of them stands in it."""
    found, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=_SAMPLES)
    low, high = np.quantile(drawn @ found / len(values), (0.025, 0.975))
    return [float(low), float(high)]
