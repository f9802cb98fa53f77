"""The pieces that people read: parts of the text, whatever the tokenizer's family."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.pairs.text_form import TextForm
from data_pipeline.tokenizers.pieces import Pieces, pieces_of, speller
from tests.conftest import FAMILIES

PLAIN = TextForm()


def pieces(tokenizer, text: str, form: TextForm = PLAIN, max_length: int = 1000) -> Pieces:
    return pieces_of(form.spans(tokenizer, text, max_length), speller(tokenizer))


def inner(found: Pieces) -> list[str]:
    return [piece for place, piece in enumerate(found.pieces) if place not in found.special]


TEXTS = [" Click  the button ", "Κουμπί", "a日b", "x [MASK]<mask> y", "naïve café", "Iστανbul x", "한국 x", "\ttab\nline  "]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(family, text) -> None:
    """Bytes that are no whole character join to their characters."""
    found = pieces(family, text)
    assert len(found.pieces) == len(PLAIN.tokenize(family, [text], 1000)[0])
    assert found.special == (0, len(found.pieces) - 1)
    joined = b"".join(as_bytes(piece) for piece in inner(found)).decode()
    assert text.startswith(joined)
    assert not text[len(joined) :].strip()


def as_bytes(piece: str) -> bytes:
    raw = b""
    while piece:
        is_byte = piece.startswith("<0x") and piece[5:6] == ">"
        raw += bytes([int(piece[3:5], 16)]) if is_byte else piece[0].encode()
        piece = piece[6:] if is_byte else piece[1:]
    return raw


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("ab Κé日한\U0001f600\u0301"), min_size=1, max_size=12), st.sampled_from(sorted(FAMILIES)))
def test_any_text_has_as_many_pieces_as_tokens(tokenizers, text, name) -> None:
    found = pieces(tokenizers[name], text)
    assert len(found.pieces) == len(PLAIN.tokenize(tokenizers[name], [text], 1000)[0])
    if name in ("byte_level", "byte_fallback"):
        assert b"".join(map(as_bytes, inner(found))).decode().strip() == text.strip()


@pytest.fixture(scope="session")
def tokenizers(english):
    return {name: make(english) for name, make in FAMILIES.items()}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("wordpiece", "Click the button", ["Click", " the", " button"]),
        ("wordpiece", "Κουμπί the", ["Κουμπί", " the"]),
        ("byte_level", " the ά", [" the", " ", "<0xCE>", "<0xAC>"]),
        ("byte_level", " the button", [" the", " button"]),
        ("unigram", "the button", ["the", " button"]),
        ("unigram", "Κ the", ["", "Κ", " the"]),
        ("byte_fallback", "Κ the", ["", "<0xCE>", "<0x9A>", " the"]),
    ],
)
def test_pieces_are_readable(tokenizers, name, text, expected) -> None:
    found = pieces(tokenizers[name], text)
    assert inner(found) == expected
    assert found.pieces[0] in ("[CLS]", "<s>")
    assert found.pieces[-1] in ("[SEP]", "</s>")


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_what_the_vocabulary_cannot_spell_is_unknown(tokenizers, name) -> None:
    found = pieces(tokenizers[name], "click 日本 the")
    assert [found.pieces[place].strip() for place in found.unknown] == ["日", "本"] or (
        [found.pieces[place].strip() for place in found.unknown] == ["日本"]
    )
    assert pieces(tokenizers["byte_level"], "日本").unknown == ()


def test_a_token_of_a_letter_and_half_of_another_shows_both(tokenizers) -> None:
    spell = speller(tokenizers["byte_level"])
    assert [spell("ĠaÎ"), spell("ļ"), spell("Κ")] == [" a<0xCE>", "<0x9A>", "Κ"]


def test_a_character_that_is_two_letters_to_the_tokenizer_is_spelt_as_those(tokenizers) -> None:
    tokenizer = tokenizers["unigram"]
    assert "".join(inner(pieces(tokenizer, "¼ x"))) in ("1⁄4 x", "¼ x")


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_the_pieces_of_a_text_that_is_cut_end_with_its_special_token(tokenizers, name) -> None:
    text = "click the button and then the other one"
    found = pieces(tokenizers[name], text, max_length=5)
    assert len(found.pieces) == 5
    assert found.special == (0, 4)
    assert text.startswith("".join(inner(found)))


@pytest.mark.parametrize("template", ["{text}", "{text} {text}", 'This: "{text}" means'])
@pytest.mark.parametrize("length", [14, 40])
def test_tokens_of_prompts_and_templates_have_pieces_too(tokenizers, template, length) -> None:
    form = TextForm(prompt="search: ", template=template, pools_prompt=False)
    for tokenizer in tokenizers.values():
        [ids] = form.tokenize(tokenizer, ["click the button"], length)
        spans = form.spans(tokenizer, "click the button", length)
        assert tokenizer.convert_tokens_to_ids(list(spans.tokens)) == list(ids)
        assert "".join(inner(pieces_of(spans, speller(tokenizer)))).startswith("sear")
