"""New tokenizers, and the canonical form of tokens."""

from dataclasses import replace

import pytest

from data_pipeline.errors import DataError, ModelError
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.canonical import Token, canonical_tokens, family_of, matching_roles, role_ids
from tests.conftest import byte_level, unigram, wordpiece

CONFIG = train.TokenizerConfig(vocab_size=1200)


def test_training_keeps_family_and_roles_and_gives_the_same_file(family, greek) -> None:
    first, second = (train.train(family, greek, CONFIG) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert family_of(first) == family_of(family)
    assert role_ids(first) == {role: first.get_vocab()[family.special_tokens_map[f"{role}_token"]] for role in role_ids(family)}
    assert len(first) == CONFIG.vocab_size
    text = greek[0][:200]
    assert len(first(text).input_ids) < len(family(text).input_ids) or family_of(family) != "byte_level"


def test_a_trained_tokenizer_loads_unchanged(family, greek, tmp_path) -> None:
    tokenizer = train.train(family, greek, CONFIG)
    tokenizer.save_pretrained(tmp_path)
    again = train.load(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again(greek[0]).input_ids == tokenizer(greek[0]).input_ids


def test_accents_are_kept_unless_strip_accents_is_set(english) -> None:
    text = ["ガラス が ある ぱ か", "résumé naïve", *english]
    config = train.TokenizerConfig(vocab_size=900, character_coverage=1.0)
    stripped = train.train(wordpiece(english), text, config)
    dropped = train.train(wordpiece(english), text, replace(config, strip_accents=True))
    assert stripped.tokenize("が") == ["が"]
    assert dropped.tokenize("が") == ["か"]


def test_too_little_text_is_an_error(family) -> None:
    with pytest.raises(DataError, match="fewer than half"):
        train.train(family, ["one two three"], train.TokenizerConfig(vocab_size=5000))


def test_the_error_for_a_folder_without_a_tokenizer_names_it(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no tokenizer"):
        train.load(str(tmp_path))


def test_canonical_tokens_compare_across_families(english) -> None:
    """The same words are the same tokens in every family, though they are written `the`, `Ġthe` and `▁the`."""
    keys = []
    for make in (wordpiece, byte_level, unigram):
        tokens = canonical_tokens(make([text.lower() for text in english]))
        keys.append({token.key() for token in tokens if token is not None and token.role is None})
    shared = set.intersection(*keys)
    assert Token(None, True, b"the").key() in shared
    assert len(shared) > 50


def test_canonical_tokens_rebuild_the_text(family, english) -> None:
    tokens = canonical_tokens(family)
    for text in english[:20]:
        ids = family(text, add_special_tokens=False).input_ids
        parts = [tokens[number] for number in ids]
        rebuilt = b"".join((b" " if token.is_word_start else b"") + token.payload for token in parts).decode()
        wanted = text.lower() if family_of(family) == "wordpiece" else text
        assert rebuilt.replace(" ", "") == wanted.replace(" ", "")


def test_bytes_of_half_a_character_are_kept() -> None:
    tokenizer = byte_level(["hello"], size=262)
    tokens = canonical_tokens(tokenizer)
    payloads = {token.payload for token in tokens if token is not None and token.role is None}
    assert {bytes([value]) for value in range(256) if value != 0x20} <= payloads


def test_roles_match_between_families(english) -> None:
    bert, roberta = wordpiece(english), byte_level(english)
    assert matching_roles(bert, roberta)[bert.mask_token_id] == roberta.mask_token_id
    assert matching_roles(bert, roberta)[bert.cls_token_id] == roberta.bos_token_id
    assert matching_roles(roberta, bert)[roberta.eos_token_id] == bert.sep_token_id


def test_a_tokenizer_with_gaps_in_its_ids(english) -> None:
    tokenizer = byte_level(english)
    tokenizer.add_tokens(["<extra>"])
    assert canonical_tokens(tokenizer)[-1] == Token(None, False, b"<extra>")


def test_an_extended_tokenizer_keeps_every_old_id_and_splits_the_new_language_better(family, greek, english) -> None:
    tokenizer = train.train(family, greek, train.TokenizerConfig(vocab_size=900, extend=True))
    old, new = family.get_vocab(), tokenizer.get_vocab()
    assert {text: new[text] for text in old} == old
    assert sorted(new.values()) == list(range(len(new)))
    assert len(new) > len(old) + 300
    assert role_ids(tokenizer) == role_ids(family)
    replaced = train.train(family, greek, train.TokenizerConfig(vocab_size=900))
    ids = {t: [number for text in greek[:40] for number in t(text).input_ids] for t in (family, tokenizer, replaced)}
    assert ids[tokenizer].count(tokenizer.unk_token_id) <= ids[replaced].count(replaced.unk_token_id)
    # The old unigram and WordPiece tokenizers make one unknown piece of many characters: their counts say nothing.
    if ids[family].count(family.unk_token_id) < 100:
        assert len(ids[tokenizer]) < 0.7 * len(ids[family])
    assert len(ids[tokenizer]) < 1.1 * len(ids[replaced])
    same = [family(text).input_ids == tokenizer(text).input_ids for text in english]
    assert sum(same) / len(same) > (0.2 if family_of(family) == "sentencepiece" else 0.6)


def test_extension_is_the_same_on_every_run(family, greek) -> None:
    config = train.TokenizerConfig(vocab_size=900, extend=True)
    first, second = (train.train(family, greek, config) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
