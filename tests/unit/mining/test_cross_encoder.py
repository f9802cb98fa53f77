"""A teacher's scores are those of sentence-transformers, for any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from data_pipeline.errors import ModelError
from tests.conftest import FAMILIES
from trainer.mining.cross_encoder import CrossEncoder


def teacher(folder: Path, english: list[str], labels: int = 1) -> str:
    tokenizer = FAMILIES["wordpiece"](english)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=labels, initializer_range=0.5, **sizes
    )  # type: ignore[arg-type]
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_scores_are_the_logits_of_sentence_transformers(tmp_path: Path, english: list[str]) -> None:
    from sentence_transformers import CrossEncoder as Theirs

    folder = teacher(tmp_path / "teacher", english)
    lefts, rights = english[:60], [f"{text} {text} {text}" for text in english[60:120]]
    ours = CrossEncoder.load(folder, 48).score(lefts, rights)
    theirs = Theirs(folder, max_length=48).predict(list(zip(lefts, rights, strict=True)), activation_fn=torch.nn.Identity())
    assert np.std(ours) > 0.1
    assert np.abs(ours - theirs).max() < 1e-5


def test_a_score_is_the_same_in_any_batch(tmp_path: Path, english: list[str]) -> None:
    made = CrossEncoder.load(teacher(tmp_path / "teacher", english), 48)
    whole = made.score(english[:40], english[40:80])
    alone = [made.score([left], [right])[0] for left, right in zip(english[:40], english[40:80], strict=True)]
    assert np.abs(whole - alone).max() < 1e-5
    assert made.score([], []).shape == (0,)


def test_a_model_that_gives_no_score_is_refused(tmp_path: Path, english: list[str]) -> None:
    with pytest.raises(ModelError, match="it has 3 outputs"):
        CrossEncoder.load(teacher(tmp_path / "three", english, labels=3), 48)
    one = teacher(tmp_path / "one", english)
    with pytest.raises(ModelError, match=r"positions reach 64, not 65. Set mine.teacher_length=64"):
        CrossEncoder.load(one, 65)


def test_a_head_without_trained_weights_is_refused(tmp_path: Path, english: list[str]) -> None:
    folder = teacher(tmp_path / "teacher", english)
    BertForSequenceClassification.from_pretrained(folder).bert.save_pretrained(folder)
    config = BertConfig.from_pretrained(folder)
    config.num_labels, config.architectures = 1, None
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"classifier.* is not in its weights"):
        CrossEncoder.load(folder, 48)
