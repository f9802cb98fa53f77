"""Words of running text in any script, by Unicode's default rules (UAX 29) as the `regex` package has them.

A word reaches from one word boundary to the next and begins with a letter. No word is cut at a vowel sign; digits, joiners,
apostrophes and full stops between letters belong to it. Scripts that are written without blanks have no words that a rule
could find: there a word is one letter with its marks (Han, Hiragana, and the scripts of South-East Asia), and a run of
Katakana. The alternative, a run of one script, makes a word of a whole clause, and such words hardly ever come back, while
the vectors and counts that are learned from words need each of them many times.
"""

import regex

_WORD = regex.compile(r"\b\p{L}.*?\b", regex.WORD | regex.V1 | regex.DOTALL)


_UNIT = regex.compile(r"\b[\p{L}\p{N}].*?\b", regex.WORD | regex.V1 | regex.DOTALL)


def words_and_numbers(text: str) -> list[str]:
    """The words and the numbers of a text as they are written, in order."""
    return _UNIT.findall(text)


def words(text: str) -> list[str]:
    """The words of a text as they are written, in order."""
    return _WORD.findall(text)
