"""Trans-tokenization: a new token starts as a mixture of the source tokens that translate it, by word alignment.

Remy et al., COLM 2024 (arXiv:2408.04303), and the authors' package `trans-tokenizers`. The words of the text pairs are
aligned. A new word of n tokens that is aligned c times with a source word of m tokens adds to the count of each token pair

    C[t_j, s_i] += c/2 (1/m + common(j, i)/m)      common: the places that t_j and s_i share when both words
                                                   are stretched to m n places, m for each t_j, n for each s_i
so half of c is spread evenly and half by position. A shared token adds 1 with itself. Then

    p(s|t) = C[t, s] / sum_s' C[t, s']             E_new[t] = sum_s p(s|t) E_old[s]
    p(s|t) ~ w_s sum_{t' in R(t)} p(s|t')          for t without counts; w_s is 2 if s begins a word, else 1

R(t), the relatives of t: tokens with counts that begin with t, and the maximal ones within t; never raw bytes.

Differences from the paper's code:

- The aligner is our own (`trainer/word_alignment/hmm.py`), and accepts rarer words.
- Vowel signs stay with their letters. Text without blanks is aligned by its tokens.
- Words of the source language also count with themselves, since new tokens may be pieces of them. Numbers are words like any
  other (theirs: 0 to 9998 count once with their first source token).
- A rare word pair keeps its count (theirs: shares below 1 are raised to 1).
- R is read from finished mixtures (theirs: from mixtures that change meanwhile, so the order matters).
- Copied tokens stand for their source row. A token with neither counts nor R gets a random row (theirs: the unknown token).

All partners are kept, as in the paper. Cost: the alignment, then a lookup for each substring of a token.
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
"""The number of alignments by (source pieces of a word, new pieces of a word)."""

_WITHOUT_BLANKS = r"\p{Han}\p{Hiragana}\p{Katakana}\u3005\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = Regex(rf"[\p{{L}}\p{{M}}\u200c\u200d&&[^{_WITHOUT_BLANKS}]]+|\p{{N}}+")
_WORDS = pre_tokenizers.Split(_WORD, behavior="removed", invert=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransTokenizersConfig:
    """Settings of trans-tokenization."""

    min_count: int = 2
    """Words that are aligned less often are treated as noise; the paper's 10 is for millions of text pairs."""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ConfigError(f"trans_tokenizers.min_count must be at least 1, got {self.min_count}.")


def place(problem: Problem, config: TransTokenizersConfig) -> Placement:
    """Places every new token that occurs in an aligned word, or that has relatives among these.

    Raises:
        DataError: there are no text pairs.
    """
    import scipy.sparse

    if not problem.texts.anchors:
        raise DataError("there are no pairs to align.", "method=trans_tokenizers", "Give `pairs`, or take another method.")
    mixed = mixtures(problem, word_pairs(problem), config.min_count)
    is_mapped = np.diff(mixed.indptr) > 0
    aligned, unaligned = problem.new[is_mapped[problem.new]], problem.new[~is_mapped[problem.new]]
    begins_word = np.array([token is not None and token.is_word_start for token in canonical_tokens(problem.source)])
    composed = _normalise_rows(
        relatives(problem.tokens, is_mapped, unaligned) @ mixed @ scipy.sparse.diags_array(1.0 + begins_word)
    )
    has_relatives = np.diff(composed.indptr) > 0
    all_mixtures = scipy.sparse.vstack([mixed[aligned], composed[has_relatives]], format="csr")
    codes = np.array([Provenance.ALIGNED, Provenance.COMPOSITION], np.uint8)
    return Placement(
        ids=np.concatenate([aligned, unaligned[has_relatives]]),
        counts=np.diff(all_mixtures.indptr).astype(np.int64),
        indices=all_mixtures.indices.astype(np.int64),
        weights=all_mixtures.data.astype(np.float32),
        provenance=np.repeat(codes, [len(aligned), has_relatives.sum()]),
    )


def word_pairs(problem: Problem) -> WordPairs:
    """Counts aligned words of the text pairs, and each word of the source language with itself."""
    source, target = (Words(tokenizer) for tokenizer in (problem.source, problem.target))
    counts: WordPairs = Counter()
    old, new = [], []
    for anchor, positive in zip(problem.texts.anchors, problem.texts.positives, strict=True):
        left, right, anchor_in_target = source(anchor), target(positive), target(anchor)
        counts.update((pieces, anchor_in_target[span]) for span, pieces in left.items() if span in anchor_in_target)
        old.append((_texts(anchor, left), list(left.values())))
        new.append((_texts(positive, right), list(right.values())))
    links = hmm.align([texts for texts, _ in old], [texts for texts, _ in new])
    counts.update((old[pair][1][i], new[pair][1][j]) for pair, i, j in links.tolist())
    return counts


class Words:
    """Splits texts into words with their tokens. A token outside of any word is a word by itself.

    A token that spans several words belongs to the first. Special tokens and blanks are ignored.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self._special = special_roles(tokenizer)

    def __call__(self, text: str) -> dict[Span, Pieces]:
        """The tokens of each word by its span, in order."""
        spans = [span for _, span in _WORDS.pre_tokenize_str(text)]
        ends = [stop for _, stop in spans]
        pieces_of: dict[Span, list[int]] = {}
        encoding = self._encode(text, add_special_tokens=False)
        for (start, stop), piece in zip(encoding.offsets, encoding.ids, strict=True):
            index = bisect_right(ends, start)
            is_inside = index < len(spans) and spans[index][0] < stop
            if piece not in self._special and (is_inside or text[start:stop].strip()):
                pieces_of.setdefault(spans[index] if is_inside else (start, stop), []).append(piece)
        return {span: tuple(pieces) for span, pieces in sorted(pieces_of.items())}


def _texts(text: str, words: Iterable[Span]) -> list[str]:
    """The words in lower case, interned."""
    return [sys.intern(text[start:stop].strip().casefold()) for start, stop in words]


def mixtures(problem: Problem, pairs: WordPairs, min_count: int) -> scipy.sparse.csr_array:
    """p(s|t) [V, S], rows that sum to 1: from counts for new tokens, the source token itself for copied ones, else empty."""
    import scipy.sparse

    is_ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    shared = np.flatnonzero(is_ordinary & (problem.shared >= 0))
    new, old, values = [shared], [problem.shared[shared]], [np.ones(len(shared))]
    for (left, right), count in pairs.items():
        if count >= min_count:
            new.append(np.repeat(right, len(left)))
            old.append(np.tile(left, len(right)))
            values.append(count * shares(len(left), len(right)).ravel())
    rows, columns, flat_values = np.concatenate(new), np.concatenate(old), np.concatenate(values)
    is_used = np.isin(rows, problem.new) | (np.arange(len(rows)) < len(shared))
    entries = flat_values[is_used], (rows[is_used], columns[is_used])
    return _normalise_rows(scipy.sparse.coo_array(entries, shape=(len(problem.tokens), problem.source_rows)))


@cache
def shares(old: int, new: int) -> NDArray[np.float64]:
    """The shares of the `old` tokens of a word in each of the `new` tokens of its translation, [new, old]; rows sum to 1."""
    left, right = np.arange(old) * new, np.arange(new)[:, None] * old
    common = np.minimum(left + new, right + old) - np.maximum(left, right)
    return (1 + np.maximum(common, 0)) / (2 * old)


def relatives(tokens: Sequence[Token | None], is_mapped: NDArray[np.bool_], ids: NDArray[np.int64]) -> scipy.sparse.csr_array:
    """R of the tokens `ids`: 1 for each relative among the mapped tokens, [ids, V]. Of equal tokens the lowest id counts."""
    import scipy.sparse

    spellings = [_spelling(token) for token in tokens]
    id_of = {spellings[place]: place for place in np.flatnonzero(is_mapped)[::-1].tolist() if spellings[place]}
    sorted_spellings, longest = sorted(id_of), max(map(len, id_of), default=0)
    relatives_of: list[list[int]] = []
    for text in (spellings[place] for place in ids):
        near = {*_starting_with(text, sorted_spellings), *_maximal_substrings(text, id_of, longest)} if text else set()
        relatives_of.append([id_of[other] for other in sorted(near)])
    bounds = np.cumsum([0, *map(len, relatives_of)])
    flat = np.array([place for line in relatives_of for place in line], np.int64)
    return scipy.sparse.csr_array((np.ones(len(flat)), flat, bounds), shape=(len(ids), len(tokens)))


def _starting_with(text: bytes, sorted_spellings: list[bytes]) -> Iterator[bytes]:
    """The known texts that begin with `text`."""
    following = (sorted_spellings[index] for index in range(bisect_left(sorted_spellings, text), len(sorted_spellings)))
    return takewhile(lambda other: other.startswith(text), following)


def _maximal_substrings(text: bytes, spellings: Container[bytes], longest: int) -> set[bytes]:
    """The maximal known substrings of `text`: those within no other known substring of it."""
    parts = set()
    for start in range(len(text)):
        stops = range(min(len(text), start + longest), start, -1)
        parts.add(next((text[start:stop] for stop in stops if text[start:stop] in spellings), b""))
    return {part for part in parts if part and not any(part in other for other in parts - {part})}


def _spelling(token: Token | None) -> bytes:
    """The token's bytes, with a blank before them if it begins a word; empty if the token is not text."""
    if token is None or token.role is not None or token.is_byte:
        return b""
    return b" " * token.is_word_start + token.payload


def _normalise_rows(matrix: scipy.sparse.sparray) -> scipy.sparse.csr_array:
    """Each row divided by its sum; empty rows stay empty."""
    import scipy.sparse

    matrix = matrix.tocsr()
    sums = matrix.sum(axis=1)
    return scipy.sparse.diags_array(np.divide(1.0, sums, out=np.zeros(len(sums)), where=sums > 0)) @ matrix
