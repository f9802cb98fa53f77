"""An extended tokenizer: every old token keeps its id, and new tokens come after the old ones."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipeline.tokenizers import train
from tests.conftest import FAMILIES
from tests.tokenizer_styles import STYLES

ALL = FAMILIES | STYLES
CONFIG = train.TokenizerConfig(vocab_size=900, extend=True)


@pytest.fixture(scope="module", params=sorted(ALL))
def old(request, english) -> PreTrainedTokenizerFast:
    return ALL[request.param](english)


@pytest.fixture(scope="module")
def extension(old, greek) -> PreTrainedTokenizerFast:
    return train.train(old, greek, CONFIG)


def ids_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Every token and its id, added tokens as the backend finds them in text."""
    added = {token.content: number for number, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()}
    return tokenizer.get_vocab() | added


def test_every_old_token_keeps_its_id_and_no_id_is_shared(old, extension) -> None:
    before, after = ids_of(old), ids_of(extension)
    assert {text: after.get(text) for text in before} == before
    assert sorted(after.values()) == list(range(len(after)))
    assert len(after) > len(before) + 300
    for text, number in after.items():
        assert extension.convert_ids_to_tokens(number) == text
        assert extension.convert_tokens_to_ids(text) == number


def test_it_loads_unchanged(extension, tmp_path, greek, english) -> None:
    extension.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(extension)
    assert ids_of(again) == ids_of(extension)
    assert again(greek[:20] + english[:20]).input_ids == extension(greek[:20] + english[:20]).input_ids


def test_special_tokens_are_found_in_text_and_roles_stay(old, extension) -> None:
    assert extension.special_tokens_map == old.special_tokens_map
    for token in old.backend_tokenizer.get_added_tokens_decoder().values():
        text = f"a{token.content}b"
        if not token.content.isspace():
            assert set(old(text).input_ids) & set(ids_of(old).values()) <= set(extension(text).input_ids) | set(range(len(old)))
            assert extension.convert_tokens_to_ids(token.content) in extension(text, add_special_tokens=False).input_ids
    assert extension("a").input_ids[0] == old("a").input_ids[0]
    assert extension("a").input_ids[-1] == old("a").input_ids[-1]


def test_both_languages_survive_a_round_trip(old, extension, greek, english) -> None:
    for text in [*greek[:30], *english[:30], "και χρώμα στο αρχείο", "Click <OK> {now}: 12,345"]:
        for part in text.split("\n"):
            ids = extension(part, add_special_tokens=False).input_ids
            back = extension.decode(ids, clean_up_tokenization_spaces=False)
            normal = extension.backend_tokenizer.normalizer
            wanted = normal.normalize_str(part) if normal else part
            if extension.unk_token_id in ids:
                continue
            assert "".join(back.split()) == "".join(wanted.replace("\u2581", " ").split())
