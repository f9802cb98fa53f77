"""Extracts the encoder of an encoder-decoder, as a model that other libraries load without the decoder.

The T5 family has a class for it. The BART family has none in `AutoModel`, but its encoders compute the same as other
architectures: BART's the same as BERT (post-norm), mBART's the same as RoBERTa-PreLayerNorm (pre-norm, with a final norm).
BART's positions count from 2, its word embeddings may be scaled, and it has no token types.
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
"""Rows of BART's position embeddings before the first position."""
_SHARED_NAMES = {
    "embed_tokens.weight": "embeddings.word_embeddings.weight",
    "layernorm_embedding": "embeddings.LayerNorm",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
"""Names of modules in BART, and in BERT and RoBERTa-PreLayerNorm."""
_NORM_NAMES = {
    "bert": {"self_attn_layer_norm": "attention.output.LayerNorm", "final_layer_norm": "output.LayerNorm"},
    "roberta-prelayernorm": {
        "self_attn_layer_norm": "attention.LayerNorm",
        "final_layer_norm": "intermediate.LayerNorm",
        "layer_norm": "LayerNorm",
    },
}


def encoder_auto_class(config: PretrainedConfig, folder: str) -> Any:
    """The class that loads the model for `encoder`; None if it is not an encoder-decoder.

    Raises:
        ModelError: no class of transformers runs its encoder alone.
    """
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        auto_class: Any = MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]
        return auto_class if auto_class.__name__.endswith("EncoderModel") else None
    if isinstance(config, BartConfig | MBartConfig):
        return AutoModel
    if config.is_encoder_decoder:
        raise ModelError(
            f"the encoder of {config.model_type} cannot be an embedder: no class of transformers runs it alone.",
            f"model {folder}",
            "Take T5, mT5, UMT5, BART, mBART, an encoder or a decoder.",
        )
    return None


def is_rebuilt(config: PretrainedConfig) -> bool:
    """Whether `encoder` converts the model to another architecture."""
    return isinstance(config, BartConfig | MBartConfig)


def encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of a BART-family model as BERT or RoBERTa-PreLayerNorm, with the same output; other models unchanged."""
    if not is_rebuilt(model.config):
        return model
    config: Any = model.config
    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size, "hidden_size": config.d_model, "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_attention_heads, "intermediate_size": config.encoder_ffn_dim,
        "hidden_act": config.activation_function, "hidden_dropout_prob": config.dropout, "layer_norm_eps": 1e-5,
        "attention_probs_dropout_prob": config.attention_dropout, "type_vocab_size": 1, "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
    }  # fmt: skip
    bart_encoder: Any = model.get_encoder()
    positions = bart_encoder.embed_positions.weight.detach()[_OFFSET:]
    if isinstance(model.config, MBartConfig):
        first_position = config.pad_token_id + 1
        positions = torch.cat([positions.new_zeros(first_position, config.d_model), positions])
        converted: Any = RobertaPreLayerNormModel(
            RobertaPreLayerNormConfig(**sizes, max_position_embeddings=len(positions)), add_pooling_layer=False
        )
    else:
        converted = BertModel(BertConfig(**sizes, max_position_embeddings=len(positions)), add_pooling_layer=False)
    state = {_rename(name, converted.config.model_type): weight for name, weight in bart_encoder.state_dict().items()}
    state["embeddings.word_embeddings.weight"] = bart_encoder.embed_tokens.weight.detach() * (
        math.sqrt(config.d_model) if config.scale_embedding else 1.0
    )
    del state["embed_positions.weight"]
    state["embeddings.position_embeddings.weight"] = positions
    state["embeddings.token_type_embeddings.weight"] = positions.new_zeros(1, config.d_model)
    converted.load_state_dict(state)
    return converted  # type: ignore[no-any-return]


def _rename(name: str, kind: str) -> str:
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    parts = _SHARED_NAMES | _NORM_NAMES[kind]
    for old in sorted(parts, key=len, reverse=True):  # `final_layer_norm` contains `layer_norm`
        if old in name:
            return name.replace(old, parts[old])
    return name
