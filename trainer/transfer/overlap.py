"""Matches the tokens of two vocabularies by a cascade of comparisons, from strict to loose."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenizers.canonical import Token, canonical_tokens, matching_roles
from trainer.transfer.plan import Provenance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Keys = Callable[[Token], Iterator[Hashable]]


def _exact(token: Token) -> Iterator[Hashable]:
    """Both word starts if the tokenizer does not distinguish them, the one that is commoner in running text first."""
    starts = (False, True) if token.fits_anywhere else (token.is_word_start,)
    return ((token.is_byte, start, token.payload) for start in starts)


def _bytes(token: Token) -> Iterator[Hashable]:
    if len(token.payload) == 1 and not token.is_word_start:
        yield token.payload


def _case(token: Token) -> Iterator[Hashable]:
    if text := token.text():
        starts = (False, True) if token.fits_anywhere else (token.is_word_start,)
        yield from ((start, text.casefold()) for start in starts)


def _start(token: Token) -> Iterator[Hashable]:
    if text := token.text():
        yield text.casefold()


def _nfkc(token: Token) -> Iterator[Hashable]:
    if text := token.text():
        yield unicodedata.normalize("NFKC", text).casefold()


LEVELS: dict[str, tuple[Keys, Provenance]] = {
    "exact": (_exact, Provenance.EXACT_COPY),
    "bytes": (_bytes, Provenance.BYTE_COPY),
    "case": (_case, Provenance.CASE_COPY),
    "start": (_start, Provenance.START_COPY),
    "nfkc": (_nfkc, Provenance.NFKC_COPY),
}
"""From strict to loose. Each level also ignores what the levels before it ignore, except `bytes`."""


def match(
    source: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    tokens: list[Token | None],
    levels: tuple[str, ...] = ("exact", "bytes"),
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The id of the same source token for each target token, and how it was matched.

    Special tokens match by role, all others by the first of `levels` that has a match. Of several matches the one with the
    same id wins, then one with the same word start, then the lowest id.

    Args:
        tokens: the canonical form of the target's ids.

    Returns:
        int [V], -1 for no match; and uint8 [V] of `Provenance` (FILLING for gaps in the ids; meaningless where -1).
    """
    source_tokens = canonical_tokens(source)
    matches = np.full(len(tokens), -1, np.int64)
    provenance = np.full(len(tokens), Provenance.EXACT_COPY, np.uint8)
    roles = matching_roles(target, source)
    for number, token in enumerate(tokens):
        if token is None:
            provenance[number] = Provenance.FILLING
        elif token.role is not None:
            matches[number], provenance[number] = roles.get(number, -1), Provenance.SPECIAL_ROLE
        elif number < len(source_tokens) and source_tokens[number] == token and "exact" in levels:
            matches[number] = number
    for level in levels:
        keys, code = LEVELS[level]
        index = _index(source_tokens, keys)
        for number, token in enumerate(tokens):
            if matches[number] < 0 and token is not None and token.role is None:
                source_id = _lookup(index, keys, token)
                if source_id >= 0:
                    matches[number], provenance[number] = source_id, code
    return matches, provenance


def _index(tokens: list[Token | None], keys: Keys) -> dict[Hashable, dict[bool, int]]:
    """The lowest id by key and word start."""
    index: dict[Hashable, dict[bool, int]] = {}
    for number, token in enumerate(tokens):
        if token is not None and token.role is None:
            for key in keys(token):
                index.setdefault(key, {}).setdefault(token.is_word_start, number)
    return index


def _lookup(index: dict[Hashable, dict[bool, int]], keys: Keys, token: Token) -> int:
    for key in keys(token):
        if candidates := index.get(key):
            return candidates.get(token.is_word_start, min(candidates.values()))
    return -1
