"""Sentences of the test set, found again in training text: alone, or as part of a line.

What is found: a text that equals a test sentence but for case and blanks, whatever its length; and a test sentence of at least
five words and twelve letters whose words stand in a row within a line, whatever the case and punctuation between them. A
number is a word: sentences with other numbers are other sentences. Shorter ones (*Open the file*) stand within other sentences
by chance. A sentence that runs over a line break is not found, nor one that is worded otherwise.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.text.clean import digest
from data_pipeline.text.words import words_and_numbers

_WORDS, _LETTERS = 5, 12
Window = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReservedSentences:
    """Test sentences, to be looked up in time that does not depend on their number."""

    digests: frozenset[bytes]
    sentences: dict[Window, tuple[str, ...]]
    """The words of each longer sentence, joined by blanks, by the first of them."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "ReservedSentences":
        digests, sentences = set(), defaultdict(set)
        for text in texts:
            digests.add(digest(text))
            units = words_and_numbers(text.casefold())
            if len(units) >= _WORDS and sum(map(len, units)) >= _LETTERS:
                sentences[tuple(units[:_WORDS])].add(" ".join(units))
        return cls(frozenset(digests), {first: tuple(sorted(found)) for first, found in sentences.items()})

    def occurs_in(self, line: str) -> bool:
        """Whether the line is one of the sentences, or holds one of the longer ones."""
        if digest(line) in self.digests:
            return True
        if not self.sentences:
            return False
        units = words_and_numbers(line.casefold())
        windows = zip(*(units[start:] for start in range(_WORDS)), strict=False)
        near = [window for window in windows if window in self.sentences]
        if not near:
            return False
        whole = f" {' '.join(units)} "
        return any(f" {sentence} " in whole for window in near for sentence in self.sentences[window])
