"""The encoder of an encoder-decoder, as a model that others load without its decoder.

T5's family has a class for it. BART's has none that `AutoModel` knows, but its encoder computes what another architecture
does: BART's what BERT computes (norms behind each part), mBART's what RoBERTa with norms before each part computes, which ends
with a norm. Positions count from 2 there, word rows may be scaled, and there are no token types.
"""

import math
import re
from typing import Any

import torch
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoModel,
    BartConfig,
    BertConfig,
    BertModel,
    MBartConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
)

from data_pipeline.errors import ModelError

_OFFSET = 2
"""Rows of BART's position embeddings before that of the first place."""
_SAME = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "layernorm_embedding": "embeddings.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
"""Parts by their names in BART, and in both others."""
_NORMS = {
    "bert": {"self_attn_layer_norm": "attention.output.LayerNorm", "final_layer_norm": "output.LayerNorm"},
    "roberta-prelayernorm": {
        "self_attn_layer_norm": "attention.LayerNorm", "final_layer_norm": "intermediate.LayerNorm", "layer_norm": "LayerNorm",
    },
}  # fmt: skip


def encoder_auto_class(settings: PretrainedConfig, folder: str) -> Any:
    """The class that loads the model for `encoder`; None where it is no encoder-decoder.

    Raises:
        ModelError: its encoder is no model of its own anywhere.
    """
    if type(settings) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        found: Any = MODEL_FOR_TEXT_ENCODING_MAPPING[type(settings)]
        return found if found.__name__.endswith("EncoderModel") else None
    if isinstance(settings, BartConfig | MBartConfig):
        return AutoModel
    if settings.is_encoder_decoder:
        raise ModelError(
            f"the encoder of {settings.model_type} cannot be an embedder: no class of transformers runs it alone.",
            f"model {folder}",
            "Take T5, mT5, UMT5, BART, mBART, an encoder or a decoder.",
        )
    return None


def is_rebuilt(settings: PretrainedConfig) -> bool:
    """Whether `encoder` makes another model of it."""
    return isinstance(settings, BartConfig | MBartConfig)


def encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of a model of BART's family as BERT or RoBERTa, with the same output; any other model as it is."""
    if not is_rebuilt(model.config):
        return model
    old: Any = model.config
    sizes: dict[str, Any] = {
        "vocab_size": old.vocab_size, "hidden_size": old.d_model, "num_hidden_layers": old.encoder_layers,
        "num_attention_heads": old.encoder_attention_heads, "intermediate_size": old.encoder_ffn_dim,
        "hidden_act": old.activation_function, "hidden_dropout_prob": old.dropout, "layer_norm_eps": 1e-5,
        "attention_probs_dropout_prob": old.attention_dropout, "type_vocab_size": 1, "pad_token_id": old.pad_token_id,
        "bos_token_id": old.bos_token_id, "eos_token_id": old.eos_token_id,
    }  # fmt: skip
    before: Any = model.get_encoder()
    places = before.embed_positions.weight.detach()[_OFFSET:]
    if isinstance(model.config, MBartConfig):
        first = old.pad_token_id + 1
        places = torch.cat([places.new_zeros(first, old.d_model), places])
        made: Any = RobertaPreLayerNormModel(
            RobertaPreLayerNormConfig(**sizes, max_position_embeddings=len(places)), add_pooling_layer=False
        )
    else:
        made = BertModel(BertConfig(**sizes, max_position_embeddings=len(places)), add_pooling_layer=False)
    state = {_renamed(name, made.config.model_type): weight for name, weight in before.state_dict().items()}
    state["embeddings.word_embeddings.weight"] = before.embed_tokens.weight.detach() * (
        math.sqrt(old.d_model) if old.scale_embedding else 1.0
    )
    del state["embed_positions.weight"]
    state["embeddings.position_embeddings.weight"] = places
    state["embeddings.token_type_embeddings.weight"] = places.new_zeros(1, old.d_model)
    made.load_state_dict(state)
    return made  # type: ignore[no-any-return]


def _renamed(name: str, kind: str) -> str:
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    parts = _SAME | _NORMS[kind]
    for old in sorted(parts, key=len, reverse=True):  # `final_layer_norm` holds `layer_norm`
        if old in name:
            return name.replace(old, parts[old])
    return name
