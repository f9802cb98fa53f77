"""Bilingual dictionaries: read from a TSV, or mined from text pairs."""

from collections import Counter

import numpy as np

from data_pipeline.artifacts import storage
from data_pipeline.errors import DataError
from data_pipeline.text import words as running
from trainer.word_alignment.dice import dice, occurrences

_MIN_COUNT = 3
_MIN_DICE = 0.3


def words(text: str) -> list[str]:
    """The words of a text in lower case (see `data_pipeline.text.words`)."""
    return running.words(text.lower())


def read(uri: str) -> list[tuple[str, str]]:
    """Reads a TSV of source word and new-language word; skips lines that begin with #.

    Raises:
        DataError: the file does not exist, or a line has no tab.
    """
    if not storage.exists(uri):
        raise DataError("no such file.", f"dictionary={uri}", "Give a TSV of source word and target word.")
    entries = []
    for number, line in enumerate(storage.read_bytes(uri).decode().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        left, tab, right = line.partition("\t")
        if not tab or not left.strip() or not right.strip():
            raise DataError(f"line {number} is not two words separated by a tab.", f"dictionary={uri}", "Fix the line.")
        entries.append((left.strip(), right.split("\t")[0].strip()))
    return entries


def mine(anchors: list[str], positives: list[str]) -> list[tuple[str, str]]:
    """Pairs of words that are each other's best partner by Dice over the text pairs."""
    left, left_ids = _number_words(anchors)
    right, right_ids = _number_words(positives)
    source, target = occurrences(left_ids, len(left)), occurrences(right_ids, len(right))
    forward = _best_partners(source, target, len(right))
    backward = _best_partners(target, source, len(left))
    return [
        (left[s], right[t])
        for t, (s, score) in sorted(forward.items())
        if score >= _MIN_DICE and backward.get(s, (-1, 0.0))[0] == t
    ]


def _number_words(texts: list[str]) -> tuple[list[str], list[list[int]]]:
    tokenised = [words(text) for text in texts]
    counts = Counter(word for line in tokenised for word in set(line))
    frequent = sorted(word for word, count in counts.items() if count >= _MIN_COUNT)
    number_of = {word: number for number, word in enumerate(frequent)}
    return frequent, [[number_of[word] for word in line if word in number_of] for line in tokenised]


def _best_partners(source: object, target: object, items: int) -> dict[int, tuple[int, float]]:
    best = {}
    for item, partners, scores in dice(source, target, np.arange(items), _MIN_COUNT):  # type: ignore[arg-type]
        if len(partners):
            best[item] = int(partners[0]), float(scores[0])
    return best
