"""The text tower of a checkpoint that also sees or hears, as a language model of its own.

Only towers whose architecture transformers offers alone, such as Gemma 3's and those of LLaVA: a tower with positions of its
own, such as Qwen 2 VL's, is not the same model without its images.
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
"""How the whole checkpoint is loaded."""


def is_multimodal(settings: PretrainedConfig) -> bool:
    """Whether its text model is one part of several; the two sides of an encoder-decoder are not meant."""
    return getattr(settings, "text_config", None) is not None and not settings.is_encoder_decoder


def check(settings: PretrainedConfig, folder: str) -> None:
    """Refuses a checkpoint whose tower is no causal language model of its own.

    Raises:
        ModelError: so it is.
    """
    tower = settings.get_text_config()
    if type(tower) not in MODEL_FOR_CAUSAL_LM_MAPPING or type(tower) not in MODEL_MAPPING:
        raise ModelError(
            f"the text tower of {settings.model_type} is no language model of its own in transformers.",
            f"model {folder}",
            "Take a checkpoint of the same family that reads text only.",
        )


def language_model(whole: PreTrainedModel) -> PreTrainedModel:
    """The tower and its head; weights are shared with `whole`, not copied."""
    tower, settings = _tower(whole), _settings(whole)
    one: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    head: Any = whole.get_output_embeddings()
    state = {f"{one.base_model_prefix}.{name}": weight for name, weight in tower.state_dict().items()}
    state |= {f"lm_head.{name}": weight for name, weight in head.state_dict().items()}
    made: PreTrainedModel = one.from_pretrained(None, config=settings, state_dict=state, dtype=whole.dtype)
    made.generation_config = copy.deepcopy(whole.generation_config)
    return made


def encoder(whole: PreTrainedModel) -> PreTrainedModel:
    """The tower without a head."""
    tower, settings = _tower(whole), _settings(whole)
    one: Any = MODEL_MAPPING[type(settings)]
    made: PreTrainedModel = one.from_pretrained(None, config=settings, state_dict=tower.state_dict(), dtype=whole.dtype)
    return made


def _settings(whole: PreTrainedModel) -> PretrainedConfig:
    settings = copy.deepcopy(whole.config.get_text_config())
    settings.tie_word_embeddings = whole.config.tie_word_embeddings
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(settings, name, None) is None:
            setattr(settings, name, getattr(whole.config, name, None))
    return settings


def _tower(whole: PreTrainedModel) -> PreTrainedModel:
    kind: Any = MODEL_MAPPING[type(whole.config.get_text_config())]
    tower: PreTrainedModel = next(module for module in whole.modules() if isinstance(module, kind))
    return tower
