"""Bilingual dictionaries: a TSV that the user gives, or mined from aligned pairs."""

from collections import Counter

import numpy as np

from data_pipeline.artifacts import storage
from data_pipeline.errors import DataError
from data_pipeline.text import words as running
from trainer.word_alignment.dice import dice, occurrences

_MIN_COUNT = 3
_MIN_DICE = 0.3


def words(text: str) -> list[str]:
    """The words of a text in lower case, see `data_pipeline.text.words`."""
    return running.words(text.lower())


def read(uri: str) -> list[tuple[str, str]]:
    """Pairs of a TSV of source word and new-language word; lines that begin with # are passed over.

    Raises:
        DataError: no such file, or a line without a tab.
    """
    if not storage.exists(uri):
        raise DataError("no such file.", f"dictionary={uri}", "Give a TSV of source word and target word.")
    pairs = []
    for number, line in enumerate(storage.read_bytes(uri).decode().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        left, tab, right = line.partition("\t")
        if not tab or not left.strip() or not right.strip():
            raise DataError(f"line {number} is not two words with a tab between.", f"dictionary={uri}", "Correct the line.")
        pairs.append((left.strip(), right.split("\t")[0].strip()))
    return pairs


def mine(anchors: list[str], positives: list[str]) -> list[tuple[str, str]]:
    """Words that are each other's best partner by Dice over aligned texts."""
    left, left_ids = _numbered(anchors)
    right, right_ids = _numbered(positives)
    source, target = occurrences(left_ids, len(left)), occurrences(right_ids, len(right))
    forward = _best(source, target, len(right))
    backward = _best(target, source, len(left))
    return [
        (left[s], right[t])
        for t, (s, score) in sorted(forward.items())
        if score >= _MIN_DICE and backward.get(s, (-1, 0.0))[0] == t
    ]


def _numbered(texts: list[str]) -> tuple[list[str], list[list[int]]]:
    split = [words(text) for text in texts]
    counts = Counter(word for line in split for word in set(line))
    known = sorted(word for word, count in counts.items() if count >= _MIN_COUNT)
    number = {word: place for place, word in enumerate(known)}
    return known, [[number[word] for word in line if word in number] for line in split]


def _best(source: object, target: object, items: int) -> dict[int, tuple[int, float]]:
    best = {}
    for item, partners, score in dice(source, target, np.arange(items), _MIN_COUNT):  # type: ignore[arg-type]
        if len(partners):
            best[item] = int(partners[0]), float(score[0])
    return best
