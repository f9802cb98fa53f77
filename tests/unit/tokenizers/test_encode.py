"""Ids of the encoding by distinct words, compared with the library's, text by text."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from data_pipeline.tokenizers.encode import LOCAL_PATTERNS, cut_rule, encode
from data_pipeline.tokenizers.ragged import Ragged
from tests.conftest import FAMILIES

AWKWARD = [
    "a", "β", "Σ", "İ", "é", "\u0301", "¨", "ﷺ", "漢", "か", "ൎ", "😀", "'s", "1", "234", ".", "...", "(", ",", "_", "+", "½",
    "℡", "€", "«", "。", "ⁿ", "ﱞ", "  ", " ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u200d", "\ufeff",
    "\ufffd", "\u2581", "\x00", "\x7f", "<s>", "<mask>", "[MASK]", "[UNK]", "<unk>", "<w>", "हि", "न्दी", "क्", "ि",
]  # fmt: skip
TEXTS = st.lists(st.lists(st.sampled_from(AWKWARD), max_size=10).map("".join), max_size=12)


def theirs(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]


def ours(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    encoded = encode(tokenizer, pa.array(texts, pa.string()))
    return [part.tolist() for part in np.split(encoded.flat, np.cumsum(encoded.sizes)[:-1])] if texts else []


def variants(backend: Tokenizer) -> list[Tokenizer]:
    """The tokenizer and variants of its family: prefixes, normalisers, patterns, added tokens that strip blanks."""
    spec = json.loads(backend.to_str())
    tokenizers = [Tokenizer.from_str(backend.to_str())]
    for token in spec["added_tokens"]:
        if token["content"] in ("<mask>", "[MASK]"):
            token["lstrip"] = token["rstrip"] = True
    tokenizers.append(Tokenizer.from_str(json.dumps(spec)))
    other = Tokenizer.from_str(backend.to_str())
    other.add_tokens(["<w>"])
    if type(other.pre_tokenizer).__name__ == "ByteLevel":
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        other.normalizer = normalizers.NFC()
        for pattern in sorted(LOCAL_PATTERNS):
            gpt4 = Tokenizer.from_str(backend.to_str())
            gpt4.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
            )
            tokenizers.append(gpt4)
    if type(other.pre_tokenizer).__name__ == "Metaspace":
        other.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
    return [*tokenizers, other]


@pytest.fixture(
    scope="module",
    params=[(name, at) for name in sorted(FAMILIES) for at in range(3)] + [("byte_level", at) for at in range(3, 9)],
)
def tokenizer(request, english, greek) -> Tokenizer:
    name, at = request.param
    return variants(FAMILIES[name](english + greek[:50]).backend_tokenizer)[at]


@settings(max_examples=300)
@given(TEXTS)
def test_ids_equal_the_library_s_on_awkward_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert ours(tokenizer, texts) == theirs(tokenizer, texts)


def test_ids_equal_the_library_s_on_real_text(tokenizer: Tokenizer, greek, english) -> None:
    assert ours(tokenizer, greek + english) == theirs(tokenizer, greek + english)


def test_a_slice_of_an_array_encodes_as_its_texts(tokenizer: Tokenizer, english) -> None:
    part = encode(tokenizer, pa.array(english)[3:9])
    assert part.flat.tolist() == [token for ids in theirs(tokenizer, english[3:9]) for token in ids]


def test_each_family_has_its_finest_cut_rule(english) -> None:
    rules = {name: [cut_rule(one) for one in variants(FAMILIES[name](english).backend_tokenizer)] for name in FAMILIES}
    assert rules == {
        "wordpiece": ["after words"] * 2 + ["before blanks"],
        "byte_level": ["after words"] * 8 + ["before blanks"],
        "unigram": ["before blanks"] * 3,
        "byte_fallback": ["nowhere"] * 3,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Replace", "pattern": {"String": "  "}, "content": " "}},
        {"normalizer": {"type": "Prepend", "prepend": "a"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\w+ \\w+"}, "behavior": "Isolated", "invert": False}},
    ],
)
def test_texts_whose_words_may_join_are_encoded_whole(change: dict, english) -> None:
    spec = json.loads(FAMILIES["byte_level"](english).backend_tokenizer.to_str()) | change
    changed = Tokenizer.from_str(json.dumps(spec))
    assert cut_rule(changed) == "nowhere"
    assert ours(changed, english) == theirs(changed, english)


def test_an_added_token_with_a_blank_in_it_is_found(english) -> None:
    backend = FAMILIES["byte_level"](english).backend_tokenizer
    backend.add_tokens(["open file"])
    assert cut_rule(backend) == "nowhere"
    assert ours(backend, ["to open file x"]) == theirs(backend, ["to open file x"])


LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8)


@given(LISTS, st.data())
def test_ragged_is_lists_of_lists(lists: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(lists)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9)) if lists else []
    taken = ragged.take(np.array(rows, np.int64))
    assert taken.flat.tolist() == [token for row in rows for token in lists[row]]
    assert taken.sizes.tolist() == [len(lists[row]) for row in rows]
    framed = ragged.wrap((7, 8), (9,))
    assert framed.flat.tolist() == [token for one in lists for token in (7, 8, *one, 9)]
    first = data.draw(st.integers(0, len(lists)))
    joined = ragged.merge_runs(np.array([first, 0, len(lists) - first]))
    assert joined.sizes.tolist() == [sum(map(len, lists[:first])), 0, sum(map(len, lists[first:]))]
