"""Masked next-token prediction of bidirectional decoders, against transformers' own shifted loss of each document alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_pipeline.errors import ModelError
from data_pipeline.feed.masking import Masker
from data_pipeline.feed.target_batch import TargetBatch, unpack_rows
from data_pipeline.shards import format
from data_pipeline.shards.pack import concat_split
from data_pipeline.tokenizers.ragged import Ragged
from tests.conftest import FAMILIES as TOKENIZERS
from tests.conftest import tiny_decoder
from tests.families.configs import FAMILIES, VOCABULARY, tiny
from trainer.models.bidirectional import first_reads_last, is_bidirectional, make_bidirectional
from trainer.models.packed_lm import PackedLM
from trainer.tasks.language_modeling import LanguageModelTask

LENGTH, MASK = 64, 4
SPECIAL = (0, 1, 2, 3, MASK)


def packed_table(weight: float = 1.0) -> pa.Table:
    """Rows of several documents, each of which begins with an ordinary token."""
    draw = np.random.default_rng(5)
    rows = concat_split(Ragged.of([draw.integers(5, VOCABULARY, size).tolist() for size in (20, 50, 30, 64, 10)]), LENGTH, 1)
    table = format.text_rows(rows, VOCABULARY)
    for tag in ("stream", "epoch"):
        table = table.append_column(tag, pa.array([0] * len(table)))
    table = table.append_column("row", pa.array(range(len(table))))
    return table.append_column("weight", pa.array([weight] * len(table)))


def masked(**settings: Any) -> tuple[TargetBatch, np.ndarray]:
    """A batch, and the ids before they were masked."""
    masker = Masker(
        length=LENGTH, mask_id=MASK, special_ids=SPECIAL, vocab_size=VOCABULARY, probability=0.2, seed=1, predicts_next=True
    )
    table = packed_table()
    return replace(masker, **settings)(table), unpack_rows(table, LENGTH)[0]


def own_loss(model: Any, batch: TargetBatch, ids: np.ndarray) -> tuple[float, int]:
    """The sum of transformers' loss, which shifts labels itself, over documents alone, and the number of targets.

    A token is a target if it was masked; the batch says so only by the place before it.
    """
    total, count = 0.0, 0
    wanted = np.full(ids.shape, -100)
    after = batch.places.numpy() + 1
    wanted.ravel()[after] = ids.ravel()[after]
    for row, segments in enumerate(batch.segments):
        for number in segments[segments >= 0].unique():
            places = torch.nonzero(segments == number)[:, 0]
            labels = torch.from_numpy(wanted)[row, places][None]
            if (targets := int((labels >= 0).sum())) > 0:
                with torch.no_grad():
                    loss = model(input_ids=batch.input_ids[row, places][None], labels=labels).loss
                total, count = total + float(loss) * targets, count + targets
    return total, count


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2", "qwen2"])
def test_the_loss_is_transformers_own_of_the_next_token_where_it_was_masked(name: str) -> None:
    batch, ids = masked()
    module = PackedLM(make_bidirectional(tiny(name).eval()), False, 0.2)  # type: ignore[arg-type]
    module.check(LENGTH)
    losses = module(batch)
    plain = make_bidirectional(tiny(name).eval())
    expected, count = own_loss(plain, batch, ids)
    assert len(losses) == count > 20
    assert float(losses.detach().sum()) == pytest.approx(expected, rel=1e-5)
    shifted = replace(batch, places=batch.places + 1)
    assert abs(float(module(shifted).detach().sum()) - expected) > 1


def test_a_target_is_the_masked_token_behind_its_place_in_the_same_document() -> None:
    batch, ids = masked()
    after = batch.places + 1
    segments, positions = batch.segments.flatten(), batch.positions.flatten()
    assert (segments[after] == segments[batch.places]).all()
    assert (positions[after] > 0).all()
    assert batch.labels.tolist() == ids.ravel()[after].tolist()
    shown = batch.input_ids.flatten()[after]
    assert 0.6 < float((shown == MASK).float().mean()) < 0.95
    untouched = np.ones(ids.size, bool)
    untouched[after] = False
    assert (batch.input_ids.flatten().numpy()[untouched] == ids.ravel()[untouched]).all()
    assert batch.attention_pairs == masked(predicts_next=False)[0].attention_pairs


def test_every_token_but_a_document_s_first_may_be_masked() -> None:
    batch, _ = masked(probability=0.999)
    ordinary = (batch.segments >= 0) & (batch.positions > 0)
    assert (batch.places + 1).tolist() == torch.nonzero(ordinary.flatten())[:, 0].tolist()


def test_a_masked_token_is_predicted_from_both_sides() -> None:
    """Editing a token behind the target moves its loss; in a causal model it would not."""
    batch, _ = masked()
    module = PackedLM(make_bidirectional(tiny("llama").eval()), False, 0.2)  # type: ignore[arg-type]
    module.check(LENGTH)
    segments = batch.segments.flatten()
    place = next(int(one) for one in batch.places if one + 3 < len(segments) and segments[one] == segments[one + 3])
    edited = batch.input_ids.clone()
    edited.view(-1)[place + 3] = edited.view(-1)[place + 3] % 200 + 20
    which = batch.places.tolist().index(place)
    before, after = module(batch)[which], module(replace(batch, input_ids=edited))[which]
    assert abs(float((before - after).detach())) > 1e-4


@pytest.fixture
def decoder_folder(english, tmp_path) -> str:
    tokenizer = TOKENIZERS["byte_level"](english)
    tiny_decoder(tokenizer, "llama").save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


def task_of(folder: str, **settings: Any) -> LanguageModelTask:
    return LanguageModelTask(model_uri=folder, length=LENGTH, probability=0.2, seed=1, **settings)


def test_the_trained_model_stays_bidirectional_and_is_no_causal_model_any_more(decoder_folder, tmp_path) -> None:
    task = task_of(decoder_folder, mntp=True)
    task.check()
    module = task.module()
    assert module.check(LENGTH).path.kernel == "sdpa"
    assert task.collator().predicts_next  # type: ignore[union-attr]
    task.export(module.state_dict(), str(tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert is_bidirectional(again.config)
    assert first_reads_last(again.base_model)
    task_of(str(tmp_path / "out"), mntp=True).check()
    with pytest.raises(ModelError, match=r"its tokens read those behind them.*pretrain.objective=mntp"):
        task_of(str(tmp_path / "out")).check()


def test_a_model_that_mntp_cannot_train_is_refused(decoder_folder, source_folder, english, tmp_path) -> None:
    with pytest.raises(ModelError, match="bert predicts masked tokens at their own place: mntp is for decoders"):
        task_of(source_folder, mntp=True).check()
    tiny("gpt_neo").save_pretrained(tmp_path / "neo")
    TOKENIZERS["byte_level"](english, 280).save_pretrained(tmp_path / "neo")
    assert FAMILIES["gpt_neo"].causal
    with pytest.raises(ModelError, match="gpt_neo cannot be made bidirectional"):
        task_of(str(tmp_path / "neo"), mntp=True).check()


def test_without_a_mask_token_a_decoder_masks_with_the_underscore(english, tmp_path) -> None:
    tokenizer = TOKENIZERS["byte_level"](english)
    tokenizer.mask_token = None
    tiny_decoder(tokenizer, "llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    masker: Any = task_of(str(tmp_path), mntp=True).collator()
    assert masker.mask_id == tokenizer.convert_tokens_to_ids("_")
