"""The texts of a mining: distinct queries, distinct candidates, and which candidate is no negative of which query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.pairs.shards import text_key
from data_pipeline.pairs.text_pairs import Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """N pairs, Q distinct queries, T distinct texts, of which the first `count` are candidates."""

    queries: list[str]
    """Anchors with their prompts."""
    query_of: list[int]
    """[N] the query of each pair"""
    texts: list[str]
    """First the candidates, then other texts of the pairs; texts that differ in case or blanks only are one."""
    keys: NDArray[np.int64]
    """[T]"""
    count: int
    positive_of: list[int]
    """[N] the place of each pair's positive among the texts"""
    negatives_of: list[list[int]]
    """[N] the places of each pair's own negatives"""
    excluded: list[frozenset[int]]
    """[Q] the places of all positives of the anchor, of its own text, and of its pairs' own negatives"""
    positives: list[frozenset[int]]
    """[Q] the places of all positives of the anchor"""


def arrange(pairs: Pairs, corpus: Iterable[str] | None, *, forbidden: frozenset[int] = frozenset()) -> Candidates:
    """The texts of a mining.

    Args:
        corpus: the candidates; the positives and negatives of the pairs where not given.
        forbidden: keys of texts that are never candidates.
    """
    own = [*pairs.positives, *(text for texts in pairs.negatives for text in texts)]
    by_key: dict[int, str] = {}
    for text in own if corpus is None else corpus:
        if (key := text_key(text)) not in forbidden:
            by_key.setdefault(key, text)
    count = len(by_key)
    for text in own:
        by_key.setdefault(text_key(text), text)
    place = {key: number for number, key in enumerate(by_key)}
    queries = {query: number for number, query in enumerate(dict.fromkeys(pairs.queries))}
    positive_of = [place[text_key(text)] for text in pairs.positives]
    negatives_of = [[place[text_key(text)] for text in texts] for texts in pairs.negatives]
    anchors = [text_key(anchor) for anchor in pairs.anchors]
    positives: dict[int, set[int]] = {}
    others: dict[int, set[int]] = {}
    for anchor, positive, negatives in zip(anchors, positive_of, negatives_of, strict=True):
        positives.setdefault(anchor, set()).add(positive)
        others.setdefault(anchor, {place[anchor]} if anchor in place else set()).update(negatives)
    anchor_of = {queries[query]: anchor for query, anchor in zip(pairs.queries, anchors, strict=True)}
    named = [anchor_of[number] for number in range(len(queries))]
    return Candidates(
        queries=list(queries),
        query_of=[queries[query] for query in pairs.queries],
        texts=list(by_key.values()),
        keys=np.array(list(by_key), np.int64),
        count=count,
        positive_of=positive_of,
        negatives_of=negatives_of,
        excluded=[frozenset(positives[anchor] | others[anchor]) for anchor in named],
        positives=[frozenset(positives[anchor]) for anchor in named],
    )
