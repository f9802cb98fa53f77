"""Extracts the text tower of a multimodal checkpoint, as a language model of its own.

Supports only towers that transformers has as a separate architecture, such as Gemma 3's and those of LLaVA. A tower with
special positions, such as Qwen 2 VL's, is not the same model without images.
"""

import copy
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from data_pipeline.errors import ModelError

AUTO: Any = AutoModelForImageTextToText
"""The auto class that loads the whole checkpoint."""


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the text model is one of several parts; the two sides of an encoder-decoder do not count."""
    return getattr(config, "text_config", None) is not None and not config.is_encoder_decoder


def check(config: PretrainedConfig, folder: str) -> None:
    """Rejects a checkpoint whose text tower is not a causal language model of its own.

    Raises:
        ModelError: transformers has no causal language model for the tower.
    """
    tower_config = config.get_text_config()
    if type(tower_config) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(tower_config) not in MODEL_MAPPING:
        raise ModelError(
            f"the text tower of {config.model_type} is not a language model of its own in transformers.",
            f"model {folder}",
            "Take a text-only checkpoint of the same family.",
        )


def language_model(whole: PreTrainedModel) -> PreTrainedModel:
    """The text tower with its head; weights are shared with `whole`, not copied."""
    tower, config = _tower(whole), _text_config(whole)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    head: Any = whole.get_output_embeddings()
    state = {f"{model_class.base_model_prefix}.{name}": weight for name, weight in tower.state_dict().items()}
    state |= {f"lm_head.{name}": weight for name, weight in head.state_dict().items()}
    model: PreTrainedModel = model_class.from_pretrained(None, config=config, state_dict=state, dtype=whole.dtype)
    model.generation_config = copy.deepcopy(whole.generation_config)
    return model


def encoder(whole: PreTrainedModel) -> PreTrainedModel:
    """The text tower without a head."""
    tower, config = _tower(whole), _text_config(whole)
    model_class: Any = MODEL_MAPPING[type(config)]
    model: PreTrainedModel = model_class.from_pretrained(None, config=config, state_dict=tower.state_dict(), dtype=whole.dtype)
    return model


def _text_config(whole: PreTrainedModel) -> PretrainedConfig:
    config = copy.deepcopy(whole.config.get_text_config())
    config.tie_word_embeddings = whole.config.tie_word_embeddings
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is None:
            setattr(config, name, getattr(whole.config, name, None))
    return config


def _tower(whole: PreTrainedModel) -> PreTrainedModel:
    kind: Any = MODEL_MAPPING[type(whole.config.get_text_config())]
    tower: PreTrainedModel = next(module for module in whole.modules() if isinstance(module, kind))
    return tower
