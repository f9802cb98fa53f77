"""Matching the tokens of two vocabularies."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_pipeline.tokenizers.canonical import Token, canonical_tokens, vocabulary_hash
from tests.conftest import FAMILIES, byte_fallback, byte_level, wordpiece
from trainer.transfer.overlap import LEVELS, match
from trainer.transfer.plan import Provenance

ALL = tuple(LEVELS)


def sentencepiece(*pieces: str) -> PreTrainedTokenizerFast:
    """A tokenizer with exactly these pieces."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def matches(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, levels: tuple[str, ...] = ALL) -> list:
    ids, how = match(source, target, canonical_tokens(target), levels)
    return [(int(i), Provenance(h).name) if i >= 0 else None for i, h in zip(ids, how, strict=True)]


@pytest.mark.parametrize("source_family", sorted(FAMILIES))
@pytest.mark.parametrize("target_family", sorted(FAMILIES))
def test_exact_matches_equal_those_of_a_naive_search(source_family: str, target_family: str, english) -> None:
    """For every two families: compares bytes and word start of each token with all others; id 0 counts like any other."""
    source, target = FAMILIES[source_family](english, 700), FAMILIES[target_family](english[:250], 600)
    old, new = canonical_tokens(source), canonical_tokens(target)
    ids, how = match(source, target, new, ("exact",))

    def same(a: Token, b: Token) -> bool:
        start = a.is_word_start == b.is_word_start or a.fits_anywhere or b.fits_anywhere
        return a.payload == b.payload and a.is_byte == b.is_byte and start

    assert sum(token is not None and token.role is None and i >= 0 for token, i in zip(new, ids, strict=True)) > 100
    for number, token in enumerate(new):
        if token is None or token.role is not None:
            continue
        candidates = [i for i, other in enumerate(old) if other is not None and other.role is None and same(token, other)]
        assert (ids[number] in candidates) if candidates else ids[number] == -1
        if len(candidates) == 1:
            assert how[number] == Provenance.EXACT_COPY


def test_the_cascade_goes_from_strict_to_loose() -> None:
    source = sentencepiece("▁File", "ing", "▁the", "the", "①", "x", "▁x")
    target = sentencepiece("▁File", "▁file", "▁ing", "▁THE", "▁1", "X", "zzz")
    assert matches(source, target) == [
        (0, "EXACT_COPY"),
        (0, "CASE_COPY"),
        (1, "START_COPY"),
        (2, "CASE_COPY"),
        (4, "NFKC_COPY"),
        (5, "CASE_COPY"),
        None,
    ]
    assert matches(source, target, ("exact",)) == [(0, "EXACT_COPY"), *[None] * 6]
    assert matches(source, target, ("exact", "case"))[2] is None


def test_of_several_matches_the_same_word_start_wins_then_the_lowest_id() -> None:
    source = sentencepiece("ab", "▁AB", "▁Ab", "aB")
    assert matches(source, sentencepiece("zz", "▁aB"))[1] == (1, "CASE_COPY")
    assert matches(source, sentencepiece("zz", "AB"))[1] == (0, "CASE_COPY")
    assert matches(sentencepiece("▁q"), sentencepiece("zz", "Q"))[1] == (0, "START_COPY")


def test_a_raw_byte_is_not_the_letter_that_it_spells() -> None:
    tokens = sentencepiece("<0x41>", "A", "<0xCE>")
    assert matches(tokens, tokens) == [(0, "EXACT_COPY"), (1, "EXACT_COPY"), (2, "EXACT_COPY")]
    assert matches(sentencepiece("<0x41>"), sentencepiece("zz", "A"), ("exact",))[1] is None
    assert matches(sentencepiece("<0x41>"), sentencepiece("zz", "A"))[1] == (0, "BYTE_COPY")


def test_bytes_of_two_families_match(english) -> None:
    source, target = byte_level(english), byte_fallback(english)
    new = canonical_tokens(target)
    ids, how = match(source, target, new)
    old = canonical_tokens(source)
    raw = [number for number, token in enumerate(new) if token is not None and token.is_byte]
    assert len(raw) == 256
    high = [number for number in raw if new[number].payload[0] >= 0x80]
    assert all(old[ids[number]].payload == new[number].payload for number in high)
    assert {int(how[number]) for number in high} == {Provenance.BYTE_COPY}


def test_punctuation_of_wordpiece_matches_within_a_word(english) -> None:
    """WordPiece treats every comma as the start of a word; other families distinguish ` ,` and `,`."""
    source, target = byte_level(english), wordpiece(english)
    ids, how = match(source, target, canonical_tokens(target))
    comma = target.get_vocab()[","]
    assert ids[comma] == source.get_vocab()[","]
    assert how[comma] == Provenance.EXACT_COPY


def test_special_tokens_without_a_role_name_match_by_their_text(english) -> None:
    source, target = byte_level(english), byte_fallback(english)
    for tokenizer in (source, target):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
        tokenizer.add_tokens(["<tool>"])
    ids, how = match(source, target, canonical_tokens(target))
    number = target.convert_tokens_to_ids("<|im_end|>")
    assert ids[number] == source.convert_tokens_to_ids("<|im_end|>")
    assert how[number] == Provenance.SPECIAL_ROLE
    assert ids[target.convert_tokens_to_ids("<tool>")] == source.convert_tokens_to_ids("<tool>")
    assert vocabulary_hash(source) != vocabulary_hash(target)
    assert np.array_equal(match(source, source, canonical_tokens(source))[0], np.arange(len(source)))
