"""Finds near-duplicate texts by their common n-grams."""

import re
from collections import Counter, defaultdict
from itertools import chain

WORD_GRAM, MAX_SHARED_WORD_GRAMS = 3, 0.2
"""Changing one word in a sentence of n leaves at least (n - 5) / (n - 2) of its 3-grams: 0.25 for the shortest test
sentence, n = 6, and more for longer ones. So 0.2 drops each sentence that is one word away from a training text."""
CHAR_GRAM, MAX_SHARED_CHAR_GRAMS = 5, 0.4
"""For scripts without spaces. Changing a word of k characters costs k + 4 of the n - 4 5-grams: with k = 4 more than
0.4 is left from n = 18 on. The English side catches shorter sentences."""

# Punctuation of ASCII, of Europe, arrows, of CJK; not \W, which would cut Indic words at their vowel signs.
_BREAKS = re.compile(r"[\s!-/:-@\[-`{-~\u00ab\u00b7\u00bb\u2010-\u203e\u2190-\u21ff\u3001-\u301f\u30fb\uff01-\uff20]+")


def normalised_words(text: str) -> list[str]:
    """Words without case and punctuation, with each number replaced by 0."""
    return [word for word in _BREAKS.split(re.sub(r"\d+", "0", text.casefold())) if word]


class NearRepeats:
    """An inverted index of the n-grams of the texts seen so far."""

    def __init__(self, *, spaced: bool) -> None:
        self.spaced = spaced
        self.limit = MAX_SHARED_WORD_GRAMS if spaced else MAX_SHARED_CHAR_GRAMS
        self._texts_with: defaultdict[str, list[int]] = defaultdict(list)
        self._count = 0

    def grams(self, text: str) -> set[str]:
        words = normalised_words(text)
        units, size = (words, WORD_GRAM) if self.spaced else (list("".join(words)), CHAR_GRAM)
        return {" ".join(units[i : i + size]) for i in range(max(1, len(units) - size + 1))}

    def add(self, text: str) -> None:
        for gram in self.grams(text):
            self._texts_with[gram].append(self._count)
        self._count += 1

    def largest_overlap(self, text: str) -> float:
        """The largest share of the text's n-grams that one text seen before contains."""
        grams = self.grams(text)
        counts = Counter(chain.from_iterable(self._texts_with.get(gram, ()) for gram in grams))
        return max(counts.values(), default=0) / len(grams)

    def has_near(self, text: str) -> bool:
        return self.largest_overlap(text) > self.limit
