"""Decoders without a causal mask: information flows from the last token to the first, in every family that allows it."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from data_pipeline.errors import ConfigError, ModelError
from tests.conftest import FAMILIES as TOKENIZERS
from tests.families.configs import COMMON, FAMILIES, WINDOW, tiny
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models import loading
from trainer.models.bidirectional import check_config, first_reads_last, is_bidirectional, make_bidirectional
from trainer.models.dual_encoder import DualEncoder
from trainer.models.pooling import check_pooling
from trainer.tasks.contrastive import ContrastiveTask

REFUSED = {
    "gpt_neo": "masks later tokens inside its attention",
    "qwen3_next": "layers of the kind linear_attention",
    "falcon": "ALiBi",
    "bloom": "ALiBi",
    "mpt": "no longer computed by transformers without a causal mask",
    "mamba": "layers of the kind linear_attention",
}
DECODERS = [
    pytest.param(name, marks=() if name in COMMON else pytest.mark.slow)
    for name, family in FAMILIES.items()
    if family.causal and name not in REFUSED
]
LENGTH = 14
"""Within the tiny models' window."""


def states(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state


def moved(model: PreTrainedModel, attention: str, padding: str, place: int = -1) -> float:
    """How far an edited token at `place` moves the state of a text's first one, in a batch padded on a side."""
    model.set_attn_implementation(attention)
    ids = torch.randint(10, 290, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([LENGTH if padding == "none" else LENGTH - 4, LENGTH])
    mask = (torch.arange(LENGTH)[None] < sizes[:, None]).long()
    mask = mask.flip(1) if padding == "left" else mask
    real = mask[0].nonzero()[:, 0]
    edited = ids.clone()
    edited[0, real[place]] = ids[0, real[place]] % 280 + 11
    before, after = (states(model, rows, mask)[0, real[0]] for rows in (ids, edited))
    return float((before - after).abs().max())


@pytest.mark.parametrize("name", DECODERS)
def test_the_last_token_changes_the_first_only_without_a_causal_mask(name: str) -> None:
    model = tiny(name).eval().base_model
    attentions = ["eager"] if model.config._attn_implementation == "eager" else ["eager", "sdpa"]
    cases = [(attention, padding) for attention in attentions for padding in ("none", "right", "left")]
    assert all(moved(model, *case) < 1e-6 for case in cases)
    assert not first_reads_last(model)
    model.set_attn_implementation(attentions[-1])
    make_bidirectional(model)
    if model.config.model_type == "stablelm":  # where SDPA would be causal in a batch without padding
        assert model.config._attn_implementation == "eager"
        cases = [case for case in cases if case[0] == "eager"]
    assert all(moved(model, *case) > 1e-3 for case in cases)
    assert first_reads_last(model)


@pytest.mark.parametrize("name", DECODERS)
def test_a_text_has_the_same_state_in_a_padded_batch_as_alone(name: str) -> None:
    model = make_bidirectional(tiny(name).eval().base_model)
    result = DualEncoder(model, "mean").check(64)
    assert result.difference < 1e-5


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_window_reaches_as_far_forwards_as_backwards(name: str) -> None:
    """In one layer: with more, states travel from window to window."""
    model = tiny(name).eval().base_model
    model.layers = model.layers[:1]
    model.config.num_hidden_layers = 1
    make_bidirectional(model)
    ids = torch.randint(10, 290, (1, 60), generator=torch.Generator().manual_seed(1))
    edited = ids.clone()
    edited[0, 30] = ids[0, 30] % 280 + 11
    changed = ((states(model, ids) - states(model, edited))[0].abs().amax(dim=1) > 1e-6).nonzero()[:, 0]
    assert (changed == torch.arange(30 - WINDOW, 30 + WINDOW + 1)).all()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_architecture_where_it_cannot_be_done_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name} cannot be made bidirectional: it .*{REFUSED[name]}"):
        make_bidirectional(tiny(name))


def test_an_architecture_that_ignores_the_setting_is_refused_by_measurement(monkeypatch) -> None:
    monkeypatch.setattr("trainer.models.bidirectional._REFUSED", {})
    model = make_bidirectional(tiny("gpt_neo").base_model)
    with pytest.raises(ModelError, match="gpt_neo cannot be made bidirectional: it does not: its first token reads no other"):
        DualEncoder(model, "mean").check(32)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma2", "stablelm"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_reader_of_the_folder_is_bidirectional(name: str, pooling: str, english, tmp_path) -> None:
    """Texts of one length make a batch without padding."""
    from sentence_transformers import SentenceTransformer

    tokenizer = TOKENIZERS[FAMILIES[name].tokenizer](english, 280 if FAMILIES[name].tokenizer == "byte_level" else 300)
    source, folder = str(tmp_path / "source"), str(tmp_path / "embedder")
    tiny(name, len(tokenizer)).save_pretrained(source)
    tokenizer.save_pretrained(source)
    task = ContrastiveTask(model_uri=source, spec=EmbedderSpec(pooling=pooling, max_length=12), bidirectional=True)
    module = task.module()
    module.check(12)
    task.export(module.state_dict(), folder)
    ours = Embedder.load(folder)
    assert first_reads_last(ours.model)
    assert not first_reads_last(loading.encoder(source))
    theirs = SentenceTransformer(folder, device="cpu")
    for texts in (english[:20], [english[0]], ["click " * 50] * 2):
        assert np.abs(theirs.encode(texts, batch_size=7) - ours.encode(texts)).max() < 1e-5
    plain = AutoModel.from_pretrained(folder).eval()
    assert first_reads_last(plain)


def test_a_bidirectional_decoder_is_no_causal_model() -> None:
    config = AutoConfig.for_model("llama", architectures=["LlamaForCausalLM"])
    assert loading.is_causal(config)
    assert not is_bidirectional(config)
    config.is_causal = False
    assert not loading.is_causal(config)
    gemma = AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True)
    assert is_bidirectional(gemma)
    assert not loading.is_causal(gemma)
    with pytest.raises(ConfigError, match=re.escape("or set embed.bidirectional=true")):
        check_pooling("cls", True, "llama")
    check_config(AutoConfig.for_model("falcon", alibi=False), "falcon")


def test_an_encoder_stays_as_it_is(source_folder) -> None:
    task = ContrastiveTask(model_uri=source_folder, spec=EmbedderSpec(), bidirectional=True)
    assert not is_bidirectional(task.module().model.config)
