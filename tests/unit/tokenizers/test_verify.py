"""The checks pass correct tokenizers and find every known defect, planted here."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.shards.framing import frame_of
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.verify import is_extension, verify
from tests.conftest import FAMILIES, wordpiece
from tests.tokenizer_styles import STYLES, llama3
from tests.unit.tokenizers.test_new_vocabularies import HINDI, albert

ALL = FAMILIES | STYLES | {"albert": albert}


def failed_checks(tokenizer: PreTrainedTokenizerFast, old=None, texts=None) -> dict[str, tuple[str, ...]]:  # type: ignore[no-untyped-def]
    return {result.check: result.failures for result in verify(tokenizer, old, texts) if not result.is_ok}


def reload(tokenizer: PreTrainedTokenizerFast, folder, **changes) -> PreTrainedTokenizerFast:  # type: ignore[no-untyped-def]
    """Saves the tokenizer, changes its tokenizer.json and loads it again."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("name", sorted(ALL))
def test_new_and_extended_vocabularies_pass(name, english, greek, tmp_path) -> None:
    source, texts = ALL[name](english), {"el": greek[:50], "en": english}
    replaced = train.train(source, [*greek, *english], train.TokenizerConfig(vocab_size=1500))
    assert not is_extension(source, replaced)
    assert failed_checks(reload(replaced, tmp_path), source, texts) == {}
    extended = train.train(source, greek, train.TokenizerConfig(vocab_size=900, extend=True))
    assert is_extension(source, extended)
    assert failed_checks(extended, source, texts) == {}


@pytest.mark.parametrize("name", sorted(STYLES))
def test_added_tokens_that_moved_after_new_pieces_are_found(name, english, greek, tmp_path) -> None:
    """`tokenizers` moves added tokens that come after the vocabulary when the file gets new pieces."""
    source = STYLES[name](english)
    spec = json.loads(train.train(source, greek, train.TokenizerConfig(vocab_size=900, extend=True)).backend_tokenizer.to_str())
    for token in spec["added_tokens"]:
        spec["model"]["vocab"].pop(token["content"], None)
    failures = failed_checks(reload(source, tmp_path, model=spec["model"], added_tokens=spec["added_tokens"]), source)
    assert "old ids" in failures
    assert "token ids" in failures
    assert len(failures["old ids"]) > 5


def test_a_template_with_old_ids_is_found_and_never_trained_on(english, greek, tmp_path) -> None:
    source = llama3(english)
    tokenizer = train.train(source, greek, train.TokenizerConfig(vocab_size=1200))
    stale = json.loads(source.backend_tokenizer.to_str())["post_processor"]
    broken = reload(tokenizer, tmp_path, post_processor=stale)
    assert "inserts the id 800 for '<|begin_of_text|>', whose id is 0" in failed_checks(broken)["template"][0]
    with pytest.raises(ModelError, match="which is no special token"):
        frame_of(broken)


def test_a_template_with_the_wrong_roles_is_found(english, greek, tmp_path) -> None:
    source = wordpiece(english)
    tokenizer = train.train(source, greek, train.TokenizerConfig(vocab_size=900))
    template = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]
    text = json.dumps(template).replace("[CLS]", "[MASK]").replace('"ids": [2]', f'"ids": [{tokenizer.mask_token_id}]')
    broken = reload(tokenizer, tmp_path, post_processor=json.loads(text))
    assert "its role is mask" in failed_checks(broken)["template"][0]
    assert any("by the old tokenizer" in line for line in failed_checks(broken, source)["template"])


def test_a_normaliser_that_drops_accents_is_found(english, greek, tmp_path) -> None:
    source = albert(english)
    tokenizer = train.train(source, greek, train.TokenizerConfig(vocab_size=900))
    stale = json.loads(source.backend_tokenizer.to_str())["normalizer"]
    failures = failed_checks(reload(tokenizer, tmp_path, normalizer=stale), source, {"el": greek[:20]})
    assert "greek: 'αγγελία' becomes 'αγγελια'" in failures["accents and vowel signs"]
    assert failures["round trip by language"]
    stripped = train.train(source, greek, train.TokenizerConfig(vocab_size=900, strip_accents=True))
    assert failed_checks(stripped, source, {"el": greek[:20]}) == {}


def test_hindi_survives_a_round_trip_in_an_uncased_model(english) -> None:
    tokenizer = train.train(wordpiece(english), HINDI * 60 + english, train.TokenizerConfig(vocab_size=700))
    assert failed_checks(tokenizer, None, {"hi": HINDI}) == {}


def test_two_tokens_of_one_id_are_found(english, tmp_path) -> None:
    tokenizer = FAMILIES["byte_level"](english)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    model["vocab"]["new"] = model["vocab"].pop("et")
    model["vocab"]["et"] = model["vocab"]["new"]
    assert any("'et'" in line for line in failed_checks(reload(tokenizer, tmp_path, model=model))["token ids"])
