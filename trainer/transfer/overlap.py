"""Which tokens of two vocabularies are the same, by a cascade of ever looser comparisons."""

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
    """Both word starts where the tokenizer does not tell them apart, the one that is commoner in running text first."""
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
"""From the strictest to the loosest. Each also forgives what the ones before it forgive, `bytes` apart."""


def match(
    source: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    tokens: list[Token | None],
    levels: tuple[str, ...] = ("exact", "bytes"),
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """For each target token the id of the same source token and how it was found.

    Special tokens match by role, all others by the first of `levels` at which they have an equal. Of several equal
    source tokens the one with the same id is taken, else one with the same word start, else the lowest id.

    Args:
        tokens: the canonical form of the target's ids.

    Returns:
        int [V] with -1 where there is none, and uint8 [V] of `Provenance` (FILLING for gaps; no meaning where -1).
    """
    old = canonical_tokens(source)
    found = np.full(len(tokens), -1, np.int64)
    how = np.full(len(tokens), Provenance.EXACT_COPY, np.uint8)
    roles = matching_roles(target, source)
    for number, token in enumerate(tokens):
        if token is None:
            how[number] = Provenance.FILLING
        elif token.role is not None:
            found[number], how[number] = roles.get(number, -1), Provenance.SPECIAL_ROLE
        elif number < len(old) and old[number] == token and "exact" in levels:
            found[number] = number
    for level in levels:
        keys, code = LEVELS[level]
        index = _index(old, keys)
        for number, token in enumerate(tokens):
            if found[number] < 0 and token is not None and token.role is None:
                same = _lookup(index, keys, token)
                if same >= 0:
                    found[number], how[number] = same, code
    return found, how


def _index(tokens: list[Token | None], keys: Keys) -> dict[Hashable, dict[bool, int]]:
    """The lowest id of each key, for either word start."""
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
