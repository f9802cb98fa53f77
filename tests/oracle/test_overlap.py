"""Shared tokens against `deepfocus`'s own matching, over every pair of families. Every difference has a reason."""

import pytest
from deepfocus.focus import get_overlapping_tokens

from data_pipeline.tokenizers.canonical import Token, canonical_tokens
from tests.conftest import FAMILIES
from tests.oracle.conftest import Pair
from trainer.transfer.overlap import match

REASONS = {
    "role": "a special token is matched by what it does; the peer compares the strings, <mask> and [MASK]",
    "mark": "WordPiece writes punctuation without ## wherever it stands; the peer takes that for the start of a word",
    "byte": "<0x41> is the byte that the other vocabulary has as text; the peer compares the strings",
    "half": "part of a character is its bytes; to the peer all such tokens are the same U+FFFD, and it takes one of them",
    "blank": "blanks differ in kind and number; the peer strips them, so that a tab, a newline and nothing are the same",
}


def reason(token: Token, source: Token | None, candidates: list[Token]) -> str:
    """Why the two answers for a target token may differ; empty when they may not.

    Args:
        source: the source token that we found.
        candidates: the source tokens that the peer found.
    """
    ours = [one for one in (token, source) if one is not None]
    both = [*ours, *candidates]
    if token.role is not None:
        return "role"
    if any(one.is_byte for one in both) and any(not one.is_byte for one in both):
        return "byte"
    if any("\ufffd" in one.payload.decode(errors="replace") for one in both):
        return "half"
    if any(one.text() != (one.text() or "").strip() for one in both):
        return "blank"
    return "mark" if any(one.fits_anywhere for one in both) else ""


def differences(source, target) -> dict[str, str]:  # type: ignore[no-untyped-def]
    """The reason for each target token for which we and the peer name different source tokens."""
    old, tokens = canonical_tokens(source), canonical_tokens(target)
    ours, _ = match(source, target, tokens)
    theirs, _ = get_overlapping_tokens(target, source, match_symbols=False, exact_match_all=True, fuzzy_match_all=False)
    reasons = {}
    for number, token in enumerate(tokens):
        text = target.convert_ids_to_tokens(number)
        candidates = [one.id for one in theirs[text].source] if text in theirs else [-1]
        if ours[number] != candidates[0]:
            peer_tokens = [old[candidate] for candidate in candidates if candidate >= 0]
            reasons[text] = reason(token, old[ours[number]] if ours[number] >= 0 else None, peer_tokens)
    return reasons


def structural(old: str, new: str) -> set[str]:
    """The reasons that must occur for two families; `blank` also depends on the text."""
    reasons = set()
    if (old == "wordpiece") != (new == "wordpiece"):
        reasons |= {"role", "mark"}
    if "byte_fallback" in (old, new):
        reasons |= {"byte"}
    return reasons | {"half", "blank"} if old == new == "byte_level" else reasons


@pytest.mark.parametrize("new", sorted(FAMILIES))
@pytest.mark.parametrize("old", sorted(FAMILIES))
def test_every_difference_from_deepfocus_has_a_reason(old: str, new: str, vocabularies: dict[str, Pair]) -> None:
    reasons = differences(vocabularies[old][0], vocabularies[new][1])
    assert [text for text, why in reasons.items() if not why] == []
    assert structural(old, new) <= set(reasons.values()) <= structural(old, new) | {"blank"}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_most_shared_tokens_are_found_by_both(family: str, vocabularies: dict[str, Pair]) -> None:
    """A canary: the test above does not compare two empty results."""
    source, target = vocabularies[family]
    ours, _ = match(source, target, canonical_tokens(target))
    assert (ours >= 0).sum() - len(differences(source, target)) > 250


@pytest.mark.parametrize("new", sorted(FAMILIES))
@pytest.mark.parametrize("old", sorted(FAMILIES))
def test_shared_tokens_have_the_same_bytes(old: str, new: str, vocabularies: dict[str, Pair]) -> None:
    """The differences from the peer do not come from wrong tokens of ours."""
    source, target = vocabularies[old][0], vocabularies[new][1]
    source_tokens, tokens = canonical_tokens(source), canonical_tokens(target)
    ours, _ = match(source, target, tokens)
    payloads = {token.payload for token in source_tokens if token.role is None}
    for token, number in zip(tokens, ours, strict=True):
        if token.role is None:
            assert number < 0 or source_tokens[number].payload == token.payload
            starts = [one.is_word_start for one in source_tokens if one.payload == token.payload and one.role is None]
            assert number >= 0 or token.payload not in payloads or token.is_word_start not in starts or token.is_byte
