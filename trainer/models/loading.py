"""Loads models from folders, with errors that name the folder.

transformers initialises a weight that the folder lacks at random, with a warning. Here that is an error, except for a
language-model head or a pooler.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

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
    core_model_loading,
)
from transformers.utils import logging as transformers_logging

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError, reason
from data_pipeline.sources.models import hub_name
from trainer.models import encoder_decoders, factored_embeddings, multimodal
from trainer.models.bidirectional import is_bidirectional

_POSITIONS_AFTER_PAD = {
    "roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "xmod", "data2vec-text", "ibert",
    "longformer", "luke", "lilt", "markuplm", "layoutlmv3",
}  # fmt: skip

_NO_PREFETCH = "HF_DEACTIVATE_ASYNC_LOAD"
"""An environment variable that stops transformers from prefetching weights."""

HEADS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING, ("ForMaskedLM", "ForPreTraining")),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, ("ForCausalLM", "LMHeadModel")),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, ("ForConditionalGeneration",)),
}
"""Kinds of language model: the auto class, the mapping of architectures that have one, and the suffixes of class names."""


def kind_of(folder: str) -> str:
    """The kind of the language model in `folder`, a key of `HEADS`.

    Raises:
        ModelError: the folder has no model, or it is not a language model.
    """
    return kind(_load(lambda: AutoConfig.from_pretrained(folder), folder), folder)


def kind(config: PretrainedConfig, folder: str) -> str:
    """The kind of a language model, a key of `HEADS`: that of the saved class, else the first that the architecture has.

    Raises:
        ModelError: it is not a language model.
    """
    if multimodal.is_multimodal(config):
        multimodal.check(config, folder)
        return "causal"
    architectures = tuple(config.architectures or ())
    masked_class: Any = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    for kind_name, (_, _, endings) in HEADS.items():
        if any(name.endswith(endings) for name in architectures):
            # XLM's masked language model is named like a causal one.
            return (
                "masked"
                if kind_name == "causal" and masked_class is not None and masked_class.__name__ in architectures
                else kind_name
            )
    for kind_name, (_, mapping, _) in HEADS.items():
        if type(config) in mapping:
            return kind_name
    raise ModelError(
        f"{config.model_type} is no language model.", f"model {folder}", f"Scion knows {', '.join(HEADS)} language models."
    )


Dtype = torch.dtype | Literal["auto"]
"""The dtype of loaded weights; `auto` means the saved one."""
WeightCallback = Callable[[torch.nn.Parameter], None]
"""Called with each weight after it is read, before the next one is read."""


def language_model(folder: str, seed: int, dtype: Dtype = torch.float32, each: WeightCallback | None = None) -> PreTrainedModel:
    """Loads a model with its language-model head.

    A missing head gets random weights from `seed`. Of a multimodal checkpoint only the text tower is loaded, as a model of its
    own.

    Args:
        each: called with each weight, except random or tied ones and those of a multimodal checkpoint.

    Raises:
        ModelError: the folder has no model, it is not a language model, or it lacks weights other than the head's.
    """
    auto = HEADS[kind_of(folder)][0]
    with _seeded(seed), quiet():
        if multimodal.is_multimodal(AutoConfig.from_pretrained(folder)):
            return with_soft_cap(
                multimodal.language_model(_load(lambda: _load_complete(multimodal.AUTO, folder, dtype), folder))
            )
        return with_soft_cap(_load(lambda: _load_complete(_class(auto, folder), folder, dtype, each), folder))


def meta_language_model(config: PretrainedConfig, folder: str) -> PreTrainedModel | None:
    """The model on the meta device, with names and shapes but without weights; None for a multimodal one."""
    if multimodal.is_multimodal(config):
        return None
    with torch.device("meta"), quiet():
        return HEADS[kind(config, folder)][0].from_config(config)  # type: ignore[no-any-return]


def meta_encoder(config: PretrainedConfig) -> PreTrainedModel | None:
    """The model without a head on the meta device; None if only a part of the model becomes the embedder."""
    if multimodal.is_multimodal(config) or config.is_encoder_decoder:
        return None
    with torch.device("meta"), quiet():
        try:
            return AutoModel.from_config(config, add_pooling_layer=False)  # type: ignore[no-any-return]
        except TypeError:  # an architecture without a pooler
            return AutoModel.from_config(config)  # type: ignore[no-any-return]


def with_random_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same architecture, sizes and dtype, with random weights from `seed`."""
    with _seeded(seed):
        random_model: Any = type(model)(model.config)
    return random_model.to(model.dtype).eval()  # type: ignore[no-any-return]


def encoder(folder: str, dtype: Dtype = torch.float32, each: WeightCallback | None = None) -> PreTrainedModel:
    """Loads a model without a head, in evaluation mode, as one that `AutoModel` runs in the same way once saved.

    Of an encoder-decoder the encoder, of a multimodal checkpoint the text tower.

    Args:
        each: as in `language_model`; also not called for the BART family, whose weights are converted after reading.

    Raises:
        ModelError: the folder has no model or lacks weights, or the encoder of an encoder-decoder cannot run alone.
    """

    def load(auto: Any) -> Any:
        try:
            return _load_complete(auto, folder, dtype, each, add_pooling_layer=False)
        except TypeError:  # an architecture without a pooler
            return _load_complete(auto, folder, dtype, each)

    config = _load(lambda: AutoConfig.from_pretrained(folder), folder)
    each = None if multimodal.is_multimodal(config) or encoder_decoders.is_rebuilt(config) else each
    with _seeded(0), quiet():
        if multimodal.is_multimodal(config):
            multimodal.check(config, folder)
            model: PreTrainedModel = multimodal.encoder(_load(lambda: load(multimodal.AUTO), folder))
        else:
            auto = encoder_decoders.encoder_auto_class(config, folder)
            model = _load(lambda: load(auto or _class(AutoModel, folder)), folder)
            model = encoder_decoders.encoder(model)
    return with_soft_cap(model).eval()


def with_soft_cap(model: PreTrainedModel) -> PreTrainedModel:
    """Switches a model with soft-capped scores to eager attention, since SDPA may ignore the cap.

    transformers 5.17 runs Gemma 2 with SDPA and without the cap, 5.23 does not. The choice is written to config.json for other
    users of the model.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
        model.config.attn_implementation = "eager"
    return model


def model_config(spec: str) -> PretrainedConfig:
    """The config of a model folder, URI or hub name; does not load weights.

    Raises:
        ModelError: there is no config.
    """
    with quiet():
        if "://" not in spec and not os.path.isdir(spec):
            name, revision = hub_name(spec)
            return _load(lambda: AutoConfig.from_pretrained(name, revision=revision or "main"), spec, hub=True)
        if "://" not in spec:
            return _load(lambda: AutoConfig.from_pretrained(spec), spec)
        with tempfile.TemporaryDirectory() as folder:
            path = storage.join(spec, "config.json")
            if storage.exists(path):
                with open(os.path.join(folder, "config.json"), "wb") as file:
                    file.write(storage.read_bytes(path))
            return _load(lambda: AutoConfig.from_pretrained(folder), folder)


def is_causal(config: PretrainedConfig) -> bool:
    """Whether tokens attend only to previous tokens.

    They do if the architecture has a causal head and no other, and the model is not saved as an encoder, as BertGeneration's
    is, or as bidirectional.
    """
    if is_bidirectional(config):
        return False
    architectures = tuple(config.architectures or ())
    if any(name.endswith(("Encoder", "EncoderModel")) for name in architectures):
        return False
    kinds = [kind for kind, (_, mapping, _) in HEADS.items() if type(config.get_text_config()) in mapping]
    is_saved_as_masked = any(name.endswith(HEADS["masked"][2]) for name in architectures)
    return kinds == ["causal"] or (bool(getattr(config, "is_decoder", False)) and not is_saved_as_masked and "causal" in kinds)


def position_offset(config: PretrainedConfig) -> int:
    """The position id of the first token: the RoBERTa family counts from the padding id + 1.

    Raises:
        ModelError: the config has no padding id.
    """
    esm_absolute = config.model_type == "esm" and getattr(config, "position_embedding_type", "absolute") == "absolute"
    if not esm_absolute and config.model_type not in _POSITIONS_AFTER_PAD:
        return 0
    if config.pad_token_id is None:
        raise ModelError(
            f"{config.model_type} counts positions from its padding id, and there is none.",
            f"model {config.name_or_path}".strip(),
            "Set pad_token_id in its config.json to the id of its padding token.",
        )
    return int(config.pad_token_id) + 1


def check_pad_id(config: PretrainedConfig, pad_id: int | None) -> None:
    """Rejects a tokenizer whose padding id would shift the position of every token.

    Raises:
        ModelError: the padding id would shift positions.
    """
    if position_offset(config) and pad_id != config.pad_token_id:
        raise ModelError(
            f"{config.model_type} counts positions from its padding id {config.pad_token_id}, the new tokenizer pads with "
            f"{pad_id}.",
            "the new tokenizer",
            f"Give its padding token the id {config.pad_token_id}.",
        )


def max_length(config: PretrainedConfig) -> int:
    """The longest row that the model supports, and in which a text has the same vectors as alone.

    LongRoPE changes the angles of all texts in a batch if one of them exceeds the original length (Ding et al. 2024,
    arXiv:2402.13753).
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))  # MPT has the latter
    lengths = [int(positions) - position_offset(config)] if positions is not None and positions > 0 else []  # XLNet's is -1
    return min([*lengths, *longrope_lengths(config)], default=1 << 20)


def longrope_lengths(config: PretrainedConfig) -> list[int]:
    """The original lengths of the layers with LongRoPE."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    by_layer = [parameters for parameters in rope.values() if isinstance(parameters, dict)] or [rope]
    return [
        parameters["original_max_position_embeddings"] for parameters in by_layer if parameters.get("rope_type") == "longrope"
    ]


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _class(auto: Any, folder: str) -> Any:
    """`auto`, or our own class for a folder with factors: the code in the folder is for other users and is never run."""
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "embedding_rank", None) is None:
        return auto
    return getattr(factored_embeddings, config.auto_map[auto.__name__].rpartition(".")[2])


def _load_complete(auto: Any, folder: str, dtype: Dtype, each: WeightCallback | None = None, **options: Any) -> Any:
    """Loads the model and checks that only weights of a head or a pooler are missing."""
    with nullcontext() if each is None else _calling_each(each):
        model, info = auto.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, saved, expected = mismatched[0]
        raise ModelError(
            f"{name} is {tuple(saved)} in the file, and {tuple(expected)} by config.json.",
            f"model {folder}",
            "Weights and config.json do not belong together: save both again with save_pretrained.",
        )
    missing = sorted(name for name in info["missing_keys"] if not _may_be_missing(model, name))
    if missing:
        ends = {_end(name) for name in missing}
        others = sorted(info["unexpected_keys"], key=lambda name: (_end(name) not in ends, name))
        renamed = f" It holds {_join_some(others)}, which the model does not have." if others else ""
        raise ModelError(
            f"weights of {type(model).__name__} are missing: {_join_some(missing)}.{renamed}",
            f"model {folder}",
            "Save the model again with save_pretrained; only a language-model head or a pooler may be missing.",
        )
    return model


def _may_be_missing(model: PreTrainedModel, name: str) -> bool:
    """Whether the weight belongs to a pooler or to the head, and so may be missing from the folder."""
    if "pooler" in name.split("."):
        return True
    if model.base_model is not model:
        return not name.startswith(f"{model.base_model_prefix}.")
    head = model.get_output_embeddings()  # T5's head is beside its encoder and decoder
    return any(name.startswith(f"{path}.") for path, module in model.named_modules() if module is head and path)


def _end(name: str) -> str:
    """The end of a weight's name, which renaming usually keeps: `output.dense.weight`."""
    return ".".join(name.split(".")[-3:])


def _join_some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _load(load: Callable[[], Any], folder: str, hub: bool = False) -> Any:
    """The result of `load`; ModelError if the folder has no config.json or loading fails."""
    where = f"model {folder}"
    if not hub and not os.path.exists(os.path.join(folder, "config.json")):
        raise ModelError("the folder has no config.json.", where, "Name a folder that save_pretrained wrote.")
    try:
        return load()
    except (TypeError, ModelError):
        raise
    except Exception as error:  # transformers raises OSError, ValueError, safetensors' and the hub's own errors
        raise ModelError(
            f"cannot be loaded ({reason(error)})", where, "Check the name; fetch or make damaged files again."
        ) from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' reports, e.g. of missing heads: our own errors cover them."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def _calling_each(each: WeightCallback) -> Iterator[None]:
    """Within the block, transformers' loader reads one weight at a time and passes each to `each`.

    The loader builds models on the meta device and sets each final weight by `set_param_for_module`. Afterwards it compares
    tied weights and pads their biases, so modules with tied weights are skipped.
    """
    put = core_model_loading.set_param_for_module

    def put_and_call(model: PreTrainedModel, name: str, *arguments: Any, **options: Any) -> None:
        """Sets a weight as transformers does, then passes it to `each` unless it is tied or computed."""
        put(model, name, *arguments, **options)
        path, _, attribute = name.rpartition(".")
        tied_modules = {tied_name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for tied_name in pair}
        module = model.get_submodule(path)
        weight = getattr(module, attribute)
        is_computed = hasattr(module, "create_weight")  # sinusoids, as RoFormer's: their shape is read afterwards
        if isinstance(weight, torch.nn.Parameter) and not weight.is_meta and path not in tied_modules and not is_computed:
            each(weight)

    previous = os.environ.get(_NO_PREFETCH)
    core_model_loading.set_param_for_module = put_and_call  # type: ignore[assignment]
    os.environ[_NO_PREFETCH] = "1"
    try:
        yield
    finally:
        core_model_loading.set_param_for_module = put
        if previous is None:
            del os.environ[_NO_PREFETCH]
        else:
            os.environ[_NO_PREFETCH] = previous
