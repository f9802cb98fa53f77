"""Decoders whose tokens attend to all others, also to those behind them (LLM2Vec, BehnamGhader et al. 2024, arXiv:2404.05961).

transformers drops the causal mask of a model whose config.json says `is_causal: false`, and keeps padding and windows: a window
of w tokens then reaches as far forwards. So the folder of such a model is bidirectional for AutoModel and for
sentence-transformers too, from transformers 5.2 on. Whether it is true of an architecture is measured, by the flow of
information: an edited last token has to change the state of the first one.
"""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from data_pipeline.errors import ModelError

_ATTENTIONS = ("full_attention", "sliding_attention")
"""Kinds of layers whose masks transformers drops; others are recurrent, or have a causal mask of their own."""
_REFUSED = {
    "gpt_neo": "masks later tokens inside its attention, whatever its config says",
    "mpt": "is no longer computed by transformers without a causal mask",
    "bloom": "scores keys by ALiBi, which counts from the left: later tokens would get the highest scores",
}
_EAGER = ("stablelm",)
"""Architectures whose SDPA attention does not read the setting where a batch has no padding."""
_TOKENS = 8


def is_bidirectional(config: PretrainedConfig) -> bool:
    """Whether the config drops the causal mask of a decoder; EmbeddingGemma's does so by a setting of its own."""
    config = config.get_text_config()
    return getattr(config, "is_causal", True) is False or bool(getattr(config, "use_bidirectional_attention", False))


def check_config(config: PretrainedConfig, model: str) -> None:
    """Checks that the causal mask of this architecture can be dropped.

    Raises:
        ModelError: it cannot.
    """
    config = config.get_text_config()
    reason = _REFUSED.get(config.model_type)
    if config.model_type == "falcon" and config.alibi:
        reason = _REFUSED["bloom"]
    other = [kind for kind in getattr(config, "layer_types", None) or () if kind not in _ATTENTIONS]
    if reason is None and other:
        reason = f"has layers of the kind {other[0]}, which have no causal mask to drop"
    if reason is None and getattr(config, "num_attention_heads", None) is None:
        reason = "has no attention"
    if reason is not None:
        raise _refusal(config, model, reason)


def make_bidirectional(model: PreTrainedModel) -> PreTrainedModel:
    """Drops the causal mask of the model, also of its copies in folders.

    Raises:
        ModelError: its architecture is one where this cannot be done.
    """
    check_config(model.config, str(model.name_or_path))
    model.config.is_causal = False
    model.config.use_cache = False  # the states of a text change with each token that is added to it
    if model.config.model_type in _EAGER:
        model.set_attn_implementation("eager")
        model.config.attn_implementation = "eager"
    return model


def check_flow(model: Any) -> None:
    """Checks that the first token of a model whose config says so reads those behind it.

    Raises:
        ModelError: it does not.
    """
    if is_bidirectional(model.config) and not first_reads_last(model):
        raise _refusal(model.config, str(model.name_or_path), "does not: its first token reads no other")


def first_reads_last(model: PreTrainedModel) -> bool:
    """Whether editing the last of a few tokens changes the state of the first one, by more than rounding."""
    settings = model.config.get_text_config()
    ids = torch.arange(_TOKENS, device=model.device)[None] % (settings.vocab_size - 1) + 1
    edited = ids.clone()
    edited[0, -1] = ids[0, 0]
    training = model.training
    model.eval()
    with torch.no_grad():
        before, after = (model(input_ids=row).last_hidden_state[0, 0].float() for row in (ids, edited))
    model.train(training)
    rounding = max(5e-6, torch.finfo(model.dtype).eps)
    return float((before - after).abs().max()) > rounding * float(before.abs().max())


def _refusal(config: PretrainedConfig, model: str, reason: str) -> ModelError:
    return ModelError(
        f"{config.model_type} cannot be made bidirectional: it {reason}.",
        f"model {model}".strip(),
        "Leave bidirectional out; embed.template=echo lets all pooled tokens read the whole text as well.",
    )
