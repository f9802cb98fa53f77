"""`tokenizer=FOLDER`: the user supplies the target tokenizer."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import RobertaConfig

from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards.corpus import Corpus
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.adopt import adopt
from data_pipeline.tokenizers.verify import verify
from ray_jobs import shard
from ray_jobs.config.load import load
from tests.conftest import FAMILIES, byte_level, unigram, wordpiece
from tests.integration.conftest import CONFIG, write_rows
from tests.tokenizer_styles import STYLES, llama3, qwen3


@pytest.mark.parametrize("name", sorted(FAMILIES | STYLES))
def test_any_tokenizer_can_be_given_for_any_decoder(name, english, greek, tmp_path) -> None:
    given = (FAMILIES | STYLES)[name](greek[:100])
    given.save_pretrained(tmp_path)
    adopted = adopt(train.load(str(tmp_path)), llama3(english), greek[:20])
    assert adopted.get_vocab() == given.get_vocab()
    assert adopted(greek[0]).input_ids == given(greek[0]).input_ids
    assert [result for result in verify(adopted, llama3(english), {"el": greek[:20]}, given=True) if not result.is_ok] == []


def test_a_tokenizer_that_transformers_would_rebuild_differently_is_refused(english, greek, tmp_path) -> None:
    """In the folder of a Qwen 2 model AutoTokenizer always builds a Qwen2Tokenizer."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    qwen3(english).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="by rules of its own"):
        adopt(unigram(greek[:100]), train.load(str(tmp_path)), greek[:20])


def test_a_broken_tokenizer_and_one_without_a_mask_are_refused(english, greek, tmp_path) -> None:
    with pytest.raises(ModelError, match="no mask token"):
        adopt(qwen3(greek[:50]), wordpiece(english), greek[:20])
    byte_level(greek[:50]).save_pretrained(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["post_processor"]["special_tokens"]["<s>"]["ids"] = [77]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ModelError, match=r"the check of its template fails.*inserts the id 77 for '<s>', whose id is 0"):
        adopt(train.load(str(tmp_path)), llama3(english), greek[:20])


def test_the_given_tokenizer_is_part_of_the_shards_identity(english, greek, tmp_path: Path) -> None:
    for name in ("text", "pairs", "test_pairs"):
        write_rows(tmp_path / f"{name}.parquet", [{"text": "a"}])
    for name, texts in (("source", english), ("one", greek[:40]), ("two", greek[:60])):
        byte_level(texts).save_pretrained(tmp_path / name)
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path, source=tmp_path / "source"))
    config = load(str(tmp_path / "c.yaml"), [])
    ids = [shard.spec(replace(config, tokenizer=name and str(tmp_path / name))).id for name in (None, "one", "two")]
    assert len(set(ids)) == 3


def test_a_given_tokenizer_is_not_extended(tmp_path) -> None:
    path = tmp_path / "conf.yaml"
    path.write_text("{text: a, pairs: b, test_pairs: c, source_model: d, output: e, tokenizer: f}")
    with pytest.raises(ConfigError, match="nothing to extend"):
        load(str(path), ["shard.tokenizer.extend=true"])


def test_another_padding_id_is_refused_if_it_would_move_positions(english, greek, tmp_path: Path) -> None:
    """By `scion shard`, before it packs."""
    for name in ("text", "pairs", "test_pairs"):
        write_rows(tmp_path / f"{name}.parquet", [{"text": "a"}])
    byte_level(english).save_pretrained(tmp_path / "source")
    RobertaConfig(pad_token_id=1).save_pretrained(tmp_path / "source")
    wordpiece(greek[:40]).save_pretrained(tmp_path / "given")
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path, source=tmp_path / "source"))
    config, source = load(str(tmp_path / "c.yaml"), [f"tokenizer={tmp_path}/given"]), train.load(str(tmp_path / "source"))
    pairs = Pairs(ids=["1"], anchors=english[:1], positives=greek[:1], negatives=[[]])
    with pytest.raises(ModelError, match="roberta counts positions from its padding id 1, the new tokenizer pads with 0"):
        shard.adopt_given_tokenizer(config, source, Corpus(train=(), heldout=(), fates={}), pairs, SimpleNamespace(note=print))


def test_rules_that_damage_words_are_warned_about(english, greek) -> None:
    warnings: list[str] = []
    adopt(wordpiece(greek[:100]), wordpiece(english), greek[:40], warnings.append)
    assert len(warnings) == 1
    assert re.match(
        r"the tokenizer drops accents or vowel signs of [\d.]+% of the words \(.+ becomes .+\); without tokeni", warnings[0]
    )
    warnings.clear()
    adopt(llama3(english), llama3(english), ["\u0939\u093f\u0928\u094d\u0926\u0940"] * 3, warnings.append)
    assert len(warnings) == 1
    assert "cuts 100.0% of the words at vowel signs" in warnings[0]
    adopt(unigram(greek[:100]), llama3(english), greek[:40], warnings.append)
    assert len(warnings) == 1
