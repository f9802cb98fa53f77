"""Builds pairs from text alone: a line is its own positive, and dropout makes two views of it.

Gao, Yao and Chen, "SimCSE: Simple Contrastive Learning of Sentence Embeddings", EMNLP 2021 (arXiv:2104.08821), section 3.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline import keyed_random
from data_pipeline.errors import DataError
from data_pipeline.text.clean import digest
from data_pipeline.text.words import words

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs

_WORDS = 3
"""Least words of a sentence: a shorter line is a heading or a label."""


@dataclass(frozen=True, slots=True)
class SimCse:
    """Pairs each line with itself."""

    def __call__(self, documents: Iterable[tuple[str, str]], most: int, seed: int) -> Pairs:
        """Pairs of all distinct lines, or of `most` lines chosen by a hash of the seed and the line.

        Args:
            documents: (language, text) of each.

        Raises:
            DataError: the text has no line of three words.
        """
        from data_pipeline.pairs.text_pairs import Pairs  # reads files: not for the configuration

        chosen: list[tuple[int, str, str]] = []
        names: set[str] = set()
        for lang, text in documents:
            for line in filter(None, map(str.strip, text.split("\n"))):
                name = digest(line).hex()
                # A heap of the smallest keys, negated: the first entry is the largest, which a smaller one replaces.
                entry = (-keyed_random.key("simcse", seed, name), name, f"{lang}\n{line}")
                if name in names or len(words(line)) < _WORDS or (len(chosen) == most and entry < chosen[0]):
                    continue
                names.add(name)
                if len(chosen) < most:
                    heapq.heappush(chosen, entry)
                else:
                    names.discard(heapq.heapreplace(chosen, entry)[1])
        if not chosen:
            raise DataError(f"no line of it has {_WORDS} words.", "text", "Give text in sentences, or pairs=.")
        ordered = sorted(chosen, key=lambda entry: entry[1])
        langs, lines = zip(*(content.split("\n") for _, _, content in ordered), strict=True)
        return Pairs(
            ids=[name for _, name, _ in ordered],
            anchors=list(lines),
            positives=list(lines),
            negatives=[[] for _ in lines],
            langs=list(langs),
        )
