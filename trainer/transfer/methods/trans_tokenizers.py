"""Trans-tokenization: a new token starts as a mixture of the old tokens that translate it, by word alignment.

Remy et al., COLM 2024 (arXiv:2408.04303), and the authors' package `trans-tokenizers`. The words of the pairs are aligned.
A new word of n tokens that is aligned c times with an old one of m tokens adds to the counts of each two of them

    C[t_j, s_i] += c/2 (1/m + common(j, i)/m)      common: the places that t_j and s_i share when both words
                                                   are stretched to m n places, m for each t_j, n for each s_i
so half of c is shared evenly and half by position. A token that both vocabularies have adds 1 with itself. Then

    p(s|t) = C[t, s] / sum_s' C[t, s']             E_new[t] = sum_s p(s|t) E_old[s]
    p(s|t) ~ w_s sum_{t' in R(t)} p(s|t')          for t without counts; w_s is 2 where s begins a word, else 1

R(t): tokens with counts that begin with t, and those within t, save what lies within another of these; raw bytes in none.

Ours differs: the aligner is our own (`static/word_alignment.py`), and rarer words are believed; vowel signs stay with their
letters, and text without blanks is aligned by its tokens; words of the source language count with themselves too, since new
tokens may be pieces of them, and numbers are words like any other (there 0 to 9998 count once with their first old token);
a rare pair counts what it counts (there shares below 1 are lifted to 1); R is read from finished mixtures (there they change
on the way, so that order matters); copied tokens stand for their old row; what has neither counts nor R is drawn (there: the
unknown token). All partners are kept, as there. Cost: the alignment, then a look-up for each substring of a token.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.tokenizers.canonical import Token, canonical_tokens, special_roles
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.word_alignment import hmm

if TYPE_CHECKING:
    import scipy.sparse
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]
Pieces = tuple[int, ...]
WordPairs = Counter[tuple[Pieces, Pieces]]
"""How often the old pieces of a word go with the new pieces of one."""

_WITHOUT_BLANKS = r"\p{Han}\p{Hiragana}\p{Katakana}\u3005\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = Regex(rf"[\p{{L}}\p{{M}}\u200c\u200d&&[^{_WITHOUT_BLANKS}]]+|\p{{N}}+")
_WORDS = pre_tokenizers.Split(_WORD, behavior="removed", invert=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransTokenizersConfig:
    """Settings of trans-tokenization."""

    min_count: int = 2
    """Words that are aligned less often are taken for noise; the paper's 10 is for millions of pairs."""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ConfigError(f"trans_tokenizers.min_count must be at least 1, got {self.min_count}.")


def place(problem: Problem, config: TransTokenizersConfig) -> Placement:
    """Mixtures for every new token that words are aligned for, or that has relatives among these.

    Raises:
        DataError: there are no pairs.
    """
    import scipy.sparse

    if not problem.texts.anchors:
        raise DataError("there are no pairs to align.", "method=trans_tokenizers", "Give `pairs`, or take another method.")
    known = mixtures(problem, word_pairs(problem), config.min_count)
    mapped = np.diff(known.indptr) > 0
    aligned, rest = problem.new[mapped[problem.new]], problem.new[~mapped[problem.new]]
    starts = np.array([token is not None and token.is_word_start for token in canonical_tokens(problem.source)])
    composed = _normalised(relatives(problem.tokens, mapped, rest) @ known @ scipy.sparse.diags_array(1.0 + starts))
    placed = np.diff(composed.indptr) > 0
    every = scipy.sparse.vstack([known[aligned], composed[placed]], format="csr")
    codes = np.array([Provenance.ALIGNED, Provenance.COMPOSITION], np.uint8)
    return Placement(
        ids=np.concatenate([aligned, rest[placed]]),
        counts=np.diff(every.indptr).astype(np.int64),
        indices=every.indices.astype(np.int64),
        weights=every.data.astype(np.float32),
        provenance=np.repeat(codes, [len(aligned), placed.sum()]),
    )


def word_pairs(problem: Problem) -> WordPairs:
    """Aligned words of the pairs, and each word of the source language with itself."""
    source, target = (Words(tokenizer) for tokenizer in (problem.source, problem.target))
    found: WordPairs = Counter()
    old, new = [], []
    for anchor, positive in zip(problem.texts.anchors, problem.texts.positives, strict=True):
        left, right, same = source(anchor), target(positive), target(anchor)
        found.update((pieces, same[span]) for span, pieces in left.items() if span in same)
        old.append((_texts(anchor, left), list(left.values())))
        new.append((_texts(positive, right), list(right.values())))
    links = hmm.align([texts for texts, _ in old], [texts for texts, _ in new])
    found.update((old[pair][1][i], new[pair][1][j]) for pair, i, j in links.tolist())
    return found


class Words:
    """Splits texts into words with their tokens. A token in no word is one by itself.

    A token that reaches into several words belongs to the first. Special tokens and blanks are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self._special = special_roles(tokenizer)

    def __call__(self, text: str) -> dict[Span, Pieces]:
        """Where the words are, in order, and the tokens of each."""
        spans = [span for _, span in _WORDS.pre_tokenize_str(text)]
        ends = [stop for _, stop in spans]
        found: dict[Span, list[int]] = {}
        encoding = self._encode(text, add_special_tokens=False)
        for (start, stop), piece in zip(encoding.offsets, encoding.ids, strict=True):
            place = bisect_right(ends, start)
            inside = place < len(spans) and spans[place][0] < stop
            if piece not in self._special and (inside or text[start:stop].strip()):
                found.setdefault(spans[place] if inside else (start, stop), []).append(piece)
        return {span: tuple(pieces) for span, pieces in sorted(found.items())}


def _texts(text: str, words: Iterable[Span]) -> list[str]:
    """The words themselves in lower case, equal ones as one object."""
    return [sys.intern(text[start:stop].strip().casefold()) for start, stop in words]


def mixtures(problem: Problem, pairs: WordPairs, min_count: int) -> scipy.sparse.csr_array:
    """p(s|t) [V, S], rows that sum to 1: from counts for new tokens, the old token itself for copied ones, else empty."""
    import scipy.sparse

    ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    shared = np.flatnonzero(ordinary & (problem.shared >= 0))
    new, old, weight = [shared], [problem.shared[shared]], [np.ones(len(shared))]
    for (left, right), count in pairs.items():
        if count >= min_count:
            new.append(np.repeat(right, len(left)))
            old.append(np.tile(left, len(right)))
            weight.append(count * shares(len(left), len(right)).ravel())
    row, column, value = np.concatenate(new), np.concatenate(old), np.concatenate(weight)
    used = np.isin(row, problem.new) | (np.arange(len(row)) < len(shared))
    entries = value[used], (row[used], column[used])
    return _normalised(scipy.sparse.coo_array(entries, shape=(len(problem.tokens), problem.source_rows)))


@cache
def shares(old: int, new: int) -> NDArray[np.float64]:
    """How a word of `new` tokens spreads each of them over the `old` tokens of another, [new, old]; rows sum to 1."""
    left, right = np.arange(old) * new, np.arange(new)[:, None] * old
    common = np.minimum(left + new, right + old) - np.maximum(left, right)
    return (1 + np.maximum(common, 0)) / (2 * old)


def relatives(tokens: Sequence[Token | None], mapped: NDArray[np.bool_], wanted: NDArray[np.int64]) -> scipy.sparse.csr_array:
    """R of each wanted token: 1 where a mapped token is in it, [wanted, V]. Of equal tokens the lowest id is taken."""
    import scipy.sparse

    spelled = [_spelled(token) for token in tokens]
    number = {spelled[place]: place for place in np.flatnonzero(mapped)[::-1].tolist() if spelled[place]}
    ordered, longest = sorted(number), max(map(len, number), default=0)
    found: list[list[int]] = []
    for text in (spelled[place] for place in wanted):
        near = {*_beginning(text, ordered), *_within(text, number, longest)} if text else set()
        found.append([number[other] for other in sorted(near)])
    bounds = np.cumsum([0, *map(len, found)])
    flat = np.array([place for line in found for place in line], np.int64)
    return scipy.sparse.csr_array((np.ones(len(flat)), flat, bounds), shape=(len(wanted), len(tokens)))


def _beginning(text: bytes, ordered: list[bytes]) -> Iterator[bytes]:
    """Those that begin with `text`."""
    behind = (ordered[place] for place in range(bisect_left(ordered, text), len(ordered)))
    return takewhile(lambda other: other.startswith(text), behind)


def _within(text: bytes, known: Container[bytes], longest: int) -> set[bytes]:
    """The known parts of `text` that lie within no other known part of it."""
    found = set()
    for start in range(len(text)):
        stops = range(min(len(text), start + longest), start, -1)
        found.add(next((text[start:stop] for stop in stops if text[start:stop] in known), b""))
    return {part for part in found if part and not any(part in other for other in found - {part})}


def _spelled(token: Token | None) -> bytes:
    """The token's bytes behind a blank if it begins a word; nothing where it is not text."""
    if token is None or token.role is not None or token.is_byte:
        return b""
    return b" " * token.is_word_start + token.payload


def _normalised(matrix: scipy.sparse.sparray) -> scipy.sparse.csr_array:
    """Each row divided by its sum; empty rows stay empty."""
    import scipy.sparse

    matrix = matrix.tocsr()
    sums = matrix.sum(axis=1)
    return scipy.sparse.diags_array(np.divide(1.0, sums, out=np.zeros(len(sums)), where=sums > 0)) @ matrix
