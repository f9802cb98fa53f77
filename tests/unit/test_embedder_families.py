"""Embedders of every kind give the same vectors when read by us, by sentence-transformers and by AutoModel."""

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MBartModel,
    MT5Config,
    MT5ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from data_pipeline.errors import ConfigError, ModelError
from tests.unit.models.test_loading import gemma3
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.models.pooling import check_pooling, pooling_name
from trainer.tasks.contrastive import ContrastiveTask

SIZE = 300
SMALL = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 60,
}
T5 = {"vocab_size": SIZE, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 60,
    "init_std": 0.2,
}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 16,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": SIZE,
    "max_position_embeddings": 60,
    "do_layer_norm_before": False,
}
KINDS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=2, n_positions=60)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=16)),
    "opt-350m": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**T5)),
    "umt5": lambda: UMT5ForConditionalGeneration(UMT5Config(**T5)),
    "bart": lambda: BartModel(BartConfig(**BART)),
    "mbart": lambda: MBartModel(MBartConfig(**BART, scale_embedding=True)),
    "gemma3 multimodal": gemma3,
}


def tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level, without a pad token, as GPT-2's and Llama's are."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = [] if size < 256 else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=sorted(KINDS))
def model_and_embedder(request: pytest.FixtureRequest, english: list[str], tmp_path: Any) -> tuple[str, str]:
    """A model folder of each kind, and the embedder that training it for zero steps writes."""
    model = KINDS[request.param]().eval()
    source, embedder_folder = str(tmp_path / "model"), str(tmp_path / "embedder")
    model.save_pretrained(source)
    tokenizer(english, 90 if request.param.startswith("gemma3") else SIZE).save_pretrained(source)
    task = ContrastiveTask(model_uri=source, spec=EmbedderSpec(pooling="lasttoken", max_length=32))
    task.collator()
    task.export(task.module().state_dict(), embedder_folder)
    return request.param, embedder_folder


def test_every_reader_gives_the_same_vectors(model_and_embedder: tuple[str, str], english: list[str]) -> None:
    from sentence_transformers import SentenceTransformer

    kind, folder = model_and_embedder
    texts = [text[:60] for text in english[:30]]
    loaded_embedder = Embedder.load(folder)
    vectors = loaded_embedder.encode(texts)
    assert vectors.shape == (30, loaded_embedder.width)
    assert loaded_embedder.width == (16 if kind == "opt-350m" else 32)
    alone = np.concatenate([loaded_embedder.encode([text]) for text in texts])
    assert np.abs(vectors - alone).max() < 1e-5
    theirs = SentenceTransformer(folder, device="cpu").encode(texts, batch_size=7)
    assert np.abs(theirs - vectors).max() < 1e-5
    plain: Any = AutoModel.from_pretrained(folder).eval()
    if kind.endswith("t5"):  # AutoModel has no class for the encoder alone: it reads it as a part of the whole
        plain = plain.get_encoder()
    ids = torch.tensor([loaded_embedder.tokenize(texts[:1])[0]])
    with torch.no_grad():
        last = torch.nn.functional.normalize(plain(input_ids=ids).last_hidden_state[:, -1].float(), dim=1)
    assert np.abs(last.numpy() - vectors[:1]).max() < 1e-5
    assert loaded_embedder.tokenizer.pad_token == "</s>"
    assert loaded_embedder.model.config.pad_token_id is not None


def test_poolings_are_found_by_name_and_alias() -> None:
    assert [pooling_name(name) for name in ("mean", "cls", "lasttoken", "last", "first")] == [
        "mean",
        "cls",
        "lasttoken",
        "lasttoken",
        "cls",
    ]
    with pytest.raises(ConfigError, match="'median' is not known"):
        pooling_name("median")
    with pytest.raises(ConfigError, match="first token sees no other"):
        check_pooling("cls", True, "gpt2")
    check_pooling("cls", False, "bert")
    check_pooling("last", True, "gpt2")


def test_a_tokenizer_that_cannot_pad_is_rejected(english: list[str]) -> None:
    bare = tokenizer(english, SIZE)
    bare.eos_token = None
    with pytest.raises(ModelError, match="no token to pad with"):
        Embedder(KINDS["gpt2"]().transformer, bare, EmbedderSpec())
