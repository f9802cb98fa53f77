"""Model folders in, models out, with errors that name the folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from data_pipeline.errors import ModelError, reason
from trainer.models import factored_embeddings

_POSITIONS_AFTER_PAD = {
    "roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "xmod", "data2vec-text", "ibert",
}  # fmt: skip


HEADS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING, ("ForMaskedLM", "ForPreTraining")),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, ("ForCausalLM", "LMHeadModel")),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, ("ForConditionalGeneration",)),
}
"""Kinds of language model: how it is loaded, which architectures have one, and what their classes are called."""


def kind_of(folder: str) -> str:
    """A key of `HEADS`: what the saved class is, else the first kind that the architecture has.

    Raises:
        ModelError: no model there, or one that is no language model.
    """
    settings = _loaded(lambda: AutoConfig.from_pretrained(folder), folder)
    names = tuple(settings.architectures or ())
    for kind, (_, _, endings) in HEADS.items():
        if any(name.endswith(endings) for name in names):
            return kind
    for kind, (_, mapping, _) in HEADS.items():
        if type(settings) in mapping:
            return kind
    raise ModelError(
        f"{settings.model_type} is no language model.", f"model {folder}", f"Scion knows {', '.join(HEADS)} language models."
    )


def language_model(folder: str, seed: int) -> PreTrainedModel:
    """The model with its language-model head, in fp32. A head that the folder lacks is drawn from `seed`.

    Raises:
        ModelError: no model there, or one that is no language model.
    """
    auto = HEADS[kind_of(folder)][0]
    with _seeded(seed), _quiet():
        return _loaded(lambda: _class(auto, folder).from_pretrained(folder, dtype=torch.float32), folder)


def drawn_anew(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same architecture and sizes, its weights drawn from `seed`."""
    with _seeded(seed):
        fresh: PreTrainedModel = type(model)(model.config)
    return fresh.eval()


def encoder(folder: str) -> PreTrainedModel:
    """The model without a head, in fp32 and in evaluation mode.

    Raises:
        ModelError: no model there.
    """

    def load() -> Any:
        try:
            return _class(AutoModel, folder).from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
        except TypeError:  # an architecture that never had a pooler
            return _class(AutoModel, folder).from_pretrained(folder, dtype=torch.float32)

    with _seeded(0), _quiet():
        model: PreTrainedModel = _loaded(load, folder)
    return model.eval()


def position_offset(settings: PretrainedConfig) -> int:
    """The position id of a row's first token: RoBERTa's family counts from behind the padding id."""
    return int(settings.pad_token_id) + 1 if settings.model_type in _POSITIONS_AFTER_PAD else 0


def max_length(settings: PretrainedConfig) -> int:
    """The longest row that the model's position embeddings reach."""
    positions = getattr(settings, "max_position_embeddings", None)
    return 1 << 20 if positions is None else int(positions) - position_offset(settings)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _class(auto: Any, folder: str) -> Any:
    """`auto`, or our own class for a folder that keeps factors: the code in the folder is for others, and never run."""
    settings = AutoConfig.from_pretrained(folder)
    if getattr(settings, "embedding_rank", None) is None:
        return auto
    return getattr(factored_embeddings, settings.auto_map[auto.__name__].rpartition(".")[2])


def _loaded(load: Callable[[], Any], folder: str) -> Any:
    where = f"model {folder}"
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ModelError("the folder has no config.json.", where, "Name a folder that save_pretrained wrote.")
    try:
        return load()
    except TypeError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, safetensors' and the hub's own errors
        raise ModelError(f"cannot be loaded ({reason(error)})", where, "Name a model folder.") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the report of missing heads: what is missing is meant to be, and said in our own words."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
