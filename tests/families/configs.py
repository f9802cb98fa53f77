"""Tiny models of the common families: two or three layers, with random weights large enough that outputs differ.

Windows, soft caps, sinks and relative positions are set so that they affect a row of 64 tokens.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from trainer.models.loading import with_soft_cap

VOCABULARY, WINDOW = 300, 16
_ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 140, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_DECODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
    "max_position_embeddings": 140, "attention_dropout": 0.0,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 140, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An architecture with tiny settings."""

    kind: Literal["masked", "causal", "seq2seq", "multimodal"] = "masked"
    tokenizer: str = "wordpiece"
    """The style of the tokenizer: a key of `tests.conftest.FAMILIES`."""
    way: tuple[str | None, str] = ("sdpa", "tapped")
    """The kernel and head that the check chooses on a CPU; the kernel is None for rows of one document."""
    refused: str = ""
    """A part of the reason why it is refused; empty if it is not."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        return self.kind == "causal"

    @property
    def packs(self) -> bool:
        """Whether it is a language model that can train on packed rows."""
        return self.kind in ("masked", "causal")


def _encoder(tokenizer: str = "wordpiece", way: Any = ("sdpa", "tapped"), refused: str = "", **settings: Any) -> Family:
    return Family(tokenizer=tokenizer, way=way, refused=refused, settings=_ENCODER | settings)


def _decoder(tokenizer: str = "byte_level", way: Any = ("sdpa", "tapped"), refused: str = "", **settings: Any) -> Family:
    return Family(kind="causal", tokenizer=tokenizer, way=way, refused=refused, settings=_DECODER | settings)


def _other(tokenizer: str, causal: bool, way: Any = ("sdpa", "tapped"), refused: str = "", **settings: Any) -> Family:
    return Family(kind="causal" if causal else "masked", tokenizer=tokenizer, way=way, refused=refused, settings=settings)


_DEBERTA = {
    "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0, "max_relative_positions": -1,
}  # fmt: skip
_DISTILBERT = {
    "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0, "attention_dropout": 0.0,
    "max_position_embeddings": 140,
}  # fmt: skip
_OPT = {
    "hidden_size": 32, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64,
    "max_position_embeddings": 140, "dropout": 0.0, "attention_dropout": 0.0, "do_layer_norm_before": False,
}  # fmt: skip
_DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "num_key_value_heads": 2,
}  # fmt: skip
_NEXT = {
    "head_dim": 16, "num_hidden_layers": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
_GPTNEO = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW,
    "max_position_embeddings": 140, "embed_dropout": 0.0, "resid_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 140, "dropout": 0.0,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip


def _seq2seq(tokenizer: str, settings: dict[str, Any]) -> Family:
    return Family(kind="seq2seq", tokenizer=tokenizer, refused="can be transferred, but not pretrained", settings=settings)


_SINGLE = (None, "tapped")
_PADDING = "another vector in a padded batch|not give the same logits"

FAMILIES: dict[str, Family] = {
    # encoders
    "bert": _encoder(),
    "roberta": _encoder("byte_level"),
    "xlm-roberta": _encoder("unigram"),
    "camembert": _encoder("unigram"),
    "xlm-roberta-xl": _encoder("unigram"),
    "xmod": _encoder("unigram", languages=["en_XX"], default_language="en_XX"),
    "data2vec-text": _encoder("byte_level"),
    "electra": _encoder(embedding_size=16),
    "albert": _encoder("unigram", embedding_size=16),
    "distilbert": _other("wordpiece", False, **_DISTILBERT),
    "modernbert": _encoder("byte_level", local_attention=WINDOW, global_attn_every_n_layers=2, num_hidden_layers=3),
    "eurobert": _encoder("byte_level", num_key_value_heads=2),
    "nomic_bert": _encoder(),
    "ernie": _encoder(),
    "esm": _encoder(way=(None, "gathered"), position_embedding_type="rotary", token_dropout=True, mask_token_id=4),
    "longformer": _encoder("byte_level", way=(None, "tapped"), attention_window=[WINDOW, WINDOW]),
    "deberta-v2": _encoder("unigram", way=_SINGLE, **_DEBERTA),
    "mpnet": _encoder("byte_level", way=_SINGLE),
    "megatron-bert": _encoder(way=_SINGLE),
    "roformer": _encoder(way=_SINGLE, embedding_size=32),
    "convbert": _encoder(refused=_PADDING, embedding_size=32),
    "mobilebert": _encoder(refused="weights per token", embedding_size=16, true_hidden_size=32, intra_bottleneck_size=32),
    "funnel": _other("wordpiece", False, refused=_PADDING, d_model=32, n_head=2, d_head=16, d_inner=64, block_sizes=[1, 1]),
    # decoders
    "gpt2": _other("byte_level", True, **_GPT2),
    "gpt_neo": _other("byte_level", True, **_GPTNEO),
    "gpt_neox": _decoder(),
    "gptj": _other("byte_level", True, **_GPT2, rotary_dim=8),
    "opt": _other("byte_level", True, **_OPT),
    "llama": _decoder("byte_fallback"),
    "mistral": _decoder("byte_fallback", sliding_window=WINDOW),
    "mixtral": _decoder("byte_fallback", **_MOE),
    "qwen2": _decoder(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _decoder(head_dim=16),
    "qwen3_moe": _decoder(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "qwen3_next": _decoder(way=_SINGLE, **_NEXT),
    "gemma": _decoder("byte_fallback", head_dim=16),
    "gemma2": _decoder("byte_fallback", way=("eager", "gathered"), head_dim=16, sliding_window=WINDOW,
                       attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3_text": _decoder("byte_fallback", head_dim=16, sliding_window=WINDOW),
    "phi": _decoder(),
    "phi3": _decoder("byte_fallback", sliding_window=WINDOW),
    "olmo": _decoder(),
    "olmo2": _decoder(),
    "olmo3": _decoder(sliding_window=WINDOW),
    "gpt_oss": _decoder(way=("eager", "tapped"), head_dim=16, sliding_window=WINDOW, **_MOE),
    "deepseek_v3": _decoder(**_DEEPSEEK),
    "cohere2": _decoder(way=("sdpa", "gathered"), sliding_window=WINDOW),
    "granite": _decoder(way=("sdpa", "gathered"), logits_scaling=8.0),
    "smollm3": _decoder(),
    "stablelm": _decoder(),
    "starcoder2": _decoder(sliding_window=WINDOW),
    "falcon": _other("byte_level", True, way=_SINGLE, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True,
                     new_decoder_architecture=False),
    "bloom": _other("byte_level", True, way=_SINGLE, hidden_size=32, n_layer=2, n_head=2),
    "mpt": _other("byte_level", True, way=_SINGLE, d_model=32, n_layers=2, n_heads=2, max_seq_len=140),
    "mamba": _other("byte_level", True, way=_SINGLE, hidden_size=32, num_hidden_layers=2, state_size=8),
    # encoder-decoders, whose encoders become embedders
    "t5": _seq2seq("unigram", _T5),
    "mt5": _seq2seq("unigram", _T5),
    "umt5": _seq2seq("unigram", _T5),
    "bart": _seq2seq("byte_level", _BART),
    "mbart": _seq2seq("unigram", _BART),
    # the text tower of a multimodal checkpoint
    "gemma3": Family(kind="multimodal", tokenizer="byte_fallback", settings={
        "text_config": _DECODER | {"head_dim": 16, "sliding_window": WINDOW}, "vision_config": _VISION,
        "mm_tokens_per_image": 1,
    }),
}  # fmt: skip
"""By `model_type`. Some are refused because a convolution or pooling reads padding, which changes a text in a padded batch."""


COMMON = (
    "bert", "roberta", "xlm-roberta", "electra", "albert", "distilbert", "modernbert", "eurobert", "deberta-v2", "gpt2",
    "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt_oss",
)  # fmt: skip
"""The most used families, and one of each kind: `make test` covers these."""


_AUTO: dict[str, Any] = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "multimodal": AutoModelForImageTextToText,
}


def tiny(name: str, vocabulary: int = VOCABULARY, **ids: int | None) -> PreTrainedModel:
    """A model of the family, in training mode; `ids` are those of special tokens."""
    family = FAMILIES[name]
    base = {"pad_token_id": 1} | ({"bos_token_id": 2, "eos_token_id": 3} if family.causal else {})
    token_settings = {"vocab_size": vocabulary} | base | ids
    options = family.settings | token_settings
    if family.kind == "multimodal":
        options = family.settings | ids | {"text_config": family.settings["text_config"] | token_settings}
    settings = AutoConfig.for_model(name, **options)
    kind = _AUTO[family.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = with_soft_cap(kind.from_config(settings))
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(std=0.2) if weight.ndim > 1 else weight.add_(0.1 * torch.randn_like(weight))
    return model.train()
