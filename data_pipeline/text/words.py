"""Splits running text of any script into words, by Unicode's default rules (UAX 29) as the `regex` package has them.

A word reaches from one word boundary to the next and begins with a letter. No word is cut at a vowel sign; digits, joiners,
apostrophes and full stops between letters belong to it. No rule finds the words of scripts written without blanks: there a
word is one letter with its marks (Han, Hiragana, and the scripts of South-East Asia), or a run of Katakana. The alternative,
a run of one script, makes a word of a whole clause. Such words hardly ever repeat, and the vectors and counts learned from
words need many occurrences of each.
"""

import regex

_WORD = regex.compile(r"\b\p{L}.*?\b", regex.WORD | regex.V1 | regex.DOTALL)
_UNIT = regex.compile(r"\b[\p{L}\p{N}].*?\b", regex.WORD | regex.V1 | regex.DOTALL)


def words_and_numbers(text: str) -> list[str]:
    """The words and numbers of a text, as written, in order."""
    return _UNIT.findall(text)


def words(text: str) -> list[str]:
    """The words of a text, as written, in order."""
    return _WORD.findall(text)
