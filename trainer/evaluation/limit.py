"""LIMIT: retrieval of every pair of documents.

Weller, Boratko, Naim and Lee, "On the Theoretical Limitations of Embedding-Based Retrieval", 2025 (arXiv:2508.21038).
A document lists what a person likes. A query asks who likes one thing, and exactly two people do. The queries cover almost all
pairs of 46 people; embeddings do not retrieve them, while BM25 finds the word.

Difference from the paper's files: names, things and their order follow from the seed and the words in `limit_words.txt`, so the
same bytes come out anywhere. The authors' code downloads its lists, and its sets iterate in another order in each run.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from pathlib import Path

import numpy as np

from data_pipeline import keyed_random

SMALL, FULL = 46, 50_000
"""The documents of the paper's two sizes."""
QUERIES = 1_000
THINGS = 45
"""What a document lists at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Texts by id, and the grades of `trainer.evaluation.ranking`."""

    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]


def limit(documents: int = SMALL, queries: int = QUERIES, seed: int = 0) -> Limit:
    """Makes the data set; documents beyond those that the queries need are distractors, which no query asks for."""
    people = next(n for n in range(2, documents + 1) if comb(n, 2) >= queries)
    first, last, things = _words()
    names = [f"{one} {other}" for one in first for other in last]
    names = [names[place] for place in _permutation(len(names), "names", seed)[:documents]]
    things = [things[place] for place in _permutation(len(things), "things", seed)]
    asked, fillers = things[:queries], things[queries:]
    pairs = list(islice(combinations(range(people), 2), queries))
    liked: list[list[str]] = [[] for _ in names]
    for thing, pair in zip(asked, pairs, strict=True):
        for person in pair:
            liked[person].append(thing)
    texts = [_text(name, own, fillers, seed) for name, own in zip(names, liked, strict=True)]
    return Limit(
        documents={_document(number): text for number, text in enumerate(texts)},
        queries={f"q{number:04}": f"Who likes {thing}?" for number, thing in enumerate(asked)},
        judgements={f"q{number:04}": dict.fromkeys(map(_document, pair), 1) for number, pair in enumerate(pairs)},
    )


def _words() -> tuple[list[str], ...]:
    """First names, last names and things."""
    text = Path(__file__).with_name("limit_words.txt").read_text(encoding="utf-8")
    return tuple(block.split() for block in text.split("\n\n"))


def _document(number: int) -> str:
    return f"d{number:05}"


def _text(name: str, liked: list[str], fillers: list[str], seed: int) -> str:
    """A document: what queries ask for, and fillers up to `THINGS`, in random order."""
    added = _permutation(len(fillers), f"fillers of {name}", seed)[: max(0, THINGS - len(liked))]
    things = liked + [fillers[place] for place in added]
    order = [things[place] for place in _permutation(len(things), f"order of {name}", seed)]
    return f"{name} likes {', '.join(order[:-1])} and {order[-1]}."


def _permutation(length: int, purpose: str, seed: int) -> list[int]:
    bits = keyed_random.bits(keyed_random.key("limit", purpose, seed), np.arange(length))
    return np.argsort(bits, kind="stable").tolist()
