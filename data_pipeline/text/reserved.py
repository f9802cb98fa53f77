"""Finds sentences of the test set in training text: as a whole line, or as part of one.

Found are a line that equals a test sentence up to case and blanks, of any length, and the consecutive words of a test
sentence of at least five words and twelve letters within a line, up to case and punctuation. A number is a word: sentences
with other numbers differ. Shorter sentences (*Open the file*) are part of others by chance. Not found are sentences across
a line break and paraphrases.
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
    """Test sentences. The time of a look-up does not depend on their number."""

    digests: frozenset[bytes]
    sentences: dict[Window, tuple[str, ...]]
    """The words of each longer sentence, joined by blanks; keyed by the first five."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> "ReservedSentences":
        """The look-up tables of the test sentences: a digest of each, and the words of those that are long enough."""
        digests, sentences = set(), defaultdict(set)
        for text in texts:
            digests.add(digest(text))
            units = words_and_numbers(text.casefold())
            if len(units) >= _WORDS and sum(map(len, units)) >= _LETTERS:
                sentences[tuple(units[:_WORDS])].add(" ".join(units))
        return cls(frozenset(digests), {window: tuple(sorted(joined)) for window, joined in sentences.items()})

    def occurs_in(self, line: str) -> bool:
        """Whether the line is one of the sentences, or contains one of the longer ones."""
        if digest(line) in self.digests:
            return True
        if not self.sentences:
            return False
        units = words_and_numbers(line.casefold())
        windows = zip(*(units[start:] for start in range(_WORDS)), strict=False)
        candidates = [window for window in windows if window in self.sentences]
        if not candidates:
            return False
        joined_line = f" {' '.join(units)} "
        return any(f" {sentence} " in joined_line for window in candidates for sentence in self.sentences[window])
