"""Model folders in, models out, with errors that name the folder.

A weight that the folder lacks is drawn at random by transformers, with a warning. Here that is an error, save for a
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

_POSITIONS_AFTER_PAD = {
    "roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet", "xmod", "data2vec-text", "ibert",
    "longformer", "luke", "lilt", "markuplm", "layoutlmv3",
}  # fmt: skip

_NOT_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"
"""A variable that keeps transformers from reading weights ahead of those that it puts in."""

HEADS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "masked": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING, ("ForMaskedLM", "ForPreTraining")),
    "causal": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, ("ForCausalLM", "LMHeadModel")),
    "seq2seq": (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, ("ForConditionalGeneration",)),
}
"""Kinds of language model: how it is loaded, which architectures have one, and what their classes are called."""


def kind_of(folder: str) -> str:
    """A key of `HEADS`, of the model in `folder`.

    Raises:
        ModelError: no model there, or one that is no language model.
    """
    return kind(_loaded(lambda: AutoConfig.from_pretrained(folder), folder), folder)


def kind(settings: PretrainedConfig, folder: str) -> str:
    """A key of `HEADS`: what the saved class is, else the first kind that the architecture has.

    Raises:
        ModelError: it is no language model.
    """
    if multimodal.is_multimodal(settings):
        multimodal.check(settings, folder)
        return "causal"
    names = tuple(settings.architectures or ())
    masked: Any = MODEL_FOR_MASKED_LM_MAPPING.get(type(settings), None)
    for found, (_, _, endings) in HEADS.items():
        if any(name.endswith(endings) for name in names):
            # XLM's masked language model has the name of a causal one.
            return "masked" if found == "causal" and masked is not None and masked.__name__ in names else found
    for found, (_, mapping, _) in HEADS.items():
        if type(settings) in mapping:
            return found
    raise ModelError(
        f"{settings.model_type} is no language model.", f"model {folder}", f"Scion knows {', '.join(HEADS)} language models."
    )


Dtype = torch.dtype | Literal["auto"]
"""Of weights; `auto` for the one that they are saved in."""
WeightCallback = Callable[[torch.nn.Parameter], None]
"""What is done with each weight as soon as it is read, before the next one is."""


def language_model(folder: str, seed: int, dtype: Dtype = torch.float32, each: WeightCallback | None = None) -> PreTrainedModel:
    """The model with its language-model head. A head that the folder lacks is drawn from `seed`. Of a multimodal checkpoint
    the text tower, as a model of its own.

    Args:
        each: not called for weights that are drawn or tied, nor for those of a multimodal checkpoint.

    Raises:
        ModelError: no model there, one that is no language model, or one that lacks weights other than the head's.
    """
    auto = HEADS[kind_of(folder)][0]
    with _seeded(seed), quiet():
        if multimodal.is_multimodal(AutoConfig.from_pretrained(folder)):
            return with_soft_cap(multimodal.language_model(_loaded(lambda: _whole(multimodal.AUTO, folder, dtype), folder)))
        return with_soft_cap(_loaded(lambda: _whole(_class(auto, folder), folder, dtype, each), folder))


def meta_language_model(settings: PretrainedConfig, folder: str) -> PreTrainedModel | None:
    """A model of the architecture that has names and shapes and no weights; None of a multimodal one."""
    if multimodal.is_multimodal(settings):
        return None
    with torch.device("meta"), quiet():
        return HEADS[kind(settings, folder)][0].from_config(settings)  # type: ignore[no-any-return]


def meta_encoder(settings: PretrainedConfig) -> PreTrainedModel | None:
    """The same of the model without a head; None of one of which only a part is the embedder."""
    if multimodal.is_multimodal(settings) or settings.is_encoder_decoder:
        return None
    with torch.device("meta"), quiet():
        try:
            return AutoModel.from_config(settings, add_pooling_layer=False)  # type: ignore[no-any-return]
        except TypeError:  # it has none
            return AutoModel.from_config(settings)  # type: ignore[no-any-return]


def with_random_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same architecture, sizes and format, its weights drawn from `seed`."""
    with _seeded(seed):
        fresh: Any = type(model)(model.config)
    return fresh.to(model.dtype).eval()  # type: ignore[no-any-return]


def encoder(folder: str, dtype: Dtype = torch.float32, each: WeightCallback | None = None) -> PreTrainedModel:
    """The model without a head, in evaluation mode: of an encoder-decoder the encoder, of a multimodal checkpoint the text
    tower. `AutoModel` and sentence-transformers run what `save_pretrained` writes of it in the same way.

    Args:
        each: as in `language_model`; nor for weights of BART's family, which are computed from what is read.

    Raises:
        ModelError: no model there, one that lacks weights, or an encoder-decoder whose encoder is no model of its own.
    """

    def load(auto: Any) -> Any:
        try:
            return _whole(auto, folder, dtype, each, add_pooling_layer=False)
        except TypeError:  # an architecture that never had a pooler
            return _whole(auto, folder, dtype, each)

    settings = _loaded(lambda: AutoConfig.from_pretrained(folder), folder)
    each = None if multimodal.is_multimodal(settings) or encoder_decoders.is_rebuilt(settings) else each
    with _seeded(0), quiet():
        if multimodal.is_multimodal(settings):
            multimodal.check(settings, folder)
            model: PreTrainedModel = multimodal.encoder(_loaded(lambda: load(multimodal.AUTO), folder))
        else:
            auto = encoder_decoders.encoder_auto_class(settings, folder)
            model = _loaded(lambda: load(auto or _class(AutoModel, folder)), folder)
            model = encoder_decoders.encoder(model)
    return with_soft_cap(model).eval()


def with_soft_cap(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its own eager attention where SDPA would leave out the cap on its scores: transformers 5.17 runs Gemma 2
    with SDPA and without the cap, 5.23 does not. Its config.json says so, for whoever loads what is saved."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
        model.config.attn_implementation = "eager"
    return model


def model_config(spec: str) -> PretrainedConfig:
    """The configuration of a model folder, URI or hub name, without its weights.

    Raises:
        ModelError: there is none.
    """
    with quiet():
        if "://" not in spec and not os.path.isdir(spec):
            name, revision = hub_name(spec)
            return _loaded(lambda: AutoConfig.from_pretrained(name, revision=revision or "main"), spec, hub=True)
        if "://" not in spec:
            return _loaded(lambda: AutoConfig.from_pretrained(spec), spec)
        with tempfile.TemporaryDirectory() as folder:
            path = storage.join(spec, "config.json")
            if storage.exists(path):
                with open(os.path.join(folder, "config.json"), "wb") as file:
                    file.write(storage.read_bytes(path))
            return _loaded(lambda: AutoConfig.from_pretrained(folder), folder)


def is_causal(settings: PretrainedConfig) -> bool:
    """Whether a token of the model sees only what stands before it: an architecture that has a causal head and no other, and
    that is not saved as an encoder, as BertGeneration's is."""
    names = tuple(settings.architectures or ())
    if any(name.endswith(("Encoder", "EncoderModel")) for name in names):
        return False
    kinds = [kind for kind, (_, mapping, _) in HEADS.items() if type(settings.get_text_config()) in mapping]
    named = any(name.endswith(HEADS["masked"][2]) for name in names)
    return kinds == ["causal"] or (bool(getattr(settings, "is_decoder", False)) and not named and "causal" in kinds)


def position_offset(settings: PretrainedConfig) -> int:
    """The position id of a row's first token: RoBERTa's family counts from behind the padding id.

    Raises:
        ModelError: its configuration names no padding id.
    """
    absolute = settings.model_type == "esm" and getattr(settings, "position_embedding_type", "absolute") == "absolute"
    if not absolute and settings.model_type not in _POSITIONS_AFTER_PAD:
        return 0
    if settings.pad_token_id is None:
        raise ModelError(
            f"{settings.model_type} counts positions from its padding id, and there is none.",
            f"model {settings.name_or_path}".strip(),
            "Set pad_token_id in its config.json to the id of its padding token.",
        )
    return int(settings.pad_token_id) + 1


def check_pad_id(settings: PretrainedConfig, pad_id: int | None) -> None:
    """Refuses a tokenizer whose padding id would shift the position of every token.

    Raises:
        ModelError: so it is.
    """
    if position_offset(settings) and pad_id != settings.pad_token_id:
        raise ModelError(
            f"{settings.model_type} counts positions from its padding id {settings.pad_token_id}, the new tokenizer pads with "
            f"{pad_id}.",
            "the new tokenizer",
            f"Give its padding token the id {settings.pad_token_id}.",
        )


def max_length(settings: PretrainedConfig) -> int:
    """The longest row that the model's positions reach, and in which a text is read as it is by itself: LongRoPE turns all
    texts of a batch by other angles once one of them is longer than the original length (Ding et al. 2024, arXiv:2402.13753).
    """
    settings = settings.get_text_config()
    positions = getattr(settings, "max_position_embeddings", getattr(settings, "max_seq_len", None))  # MPT has the latter
    lengths = [int(positions) - position_offset(settings)] if positions is not None and positions > 0 else []  # XLNet's is -1
    return min([*lengths, *longrope_lengths(settings)], default=1 << 20)


def longrope_lengths(settings: PretrainedConfig) -> list[int]:
    """The original lengths that LongRoPE scales, of the layers that have it."""
    rope: dict[str, Any] = getattr(settings, "rope_parameters", None) or {}
    by_layer = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    return [one["original_max_position_embeddings"] for one in by_layer if one.get("rope_type") == "longrope"]


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _class(auto: Any, folder: str) -> Any:
    """`auto`, or our own class for a folder that keeps factors: the code in the folder is for others, and never run."""
    settings = AutoConfig.from_pretrained(folder)
    if getattr(settings, "embedding_rank", None) is None:
        return auto
    return getattr(factored_embeddings, settings.auto_map[auto.__name__].rpartition(".")[2])


def _whole(auto: Any, folder: str, dtype: Dtype, each: WeightCallback | None = None, **options: Any) -> Any:
    """The model, once none of its weights is missing but those of a head or a pooler."""
    with nullcontext() if each is None else _calling(each):
        model, found = auto.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if odd := sorted(found["mismatched_keys"]):
        name, there, wanted = odd[0]
        raise ModelError(
            f"{name} is {tuple(there)} in the file, and {tuple(wanted)} by config.json.",
            f"model {folder}",
            "Weights and config.json do not belong together: save both again with save_pretrained.",
        )
    missing = sorted(name for name in found["missing_keys"] if not _may_be_new(model, name))
    if missing:
        ends = {_end(name) for name in missing}
        others = sorted(found["unexpected_keys"], key=lambda name: (_end(name) not in ends, name))
        renamed = f" It holds {_listed(others)}, for which the model has no place." if others else ""
        raise ModelError(
            f"weights of {type(model).__name__} are missing: {_listed(missing)}.{renamed}",
            f"model {folder}",
            "Save the model again with save_pretrained; only a language-model head or a pooler may be missing.",
        )
    return model


def _may_be_new(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to a pooler, or to what stands behind the body of a model with a head."""
    if "pooler" in name.split("."):
        return True
    if model.base_model is not model:
        return not name.startswith(f"{model.base_model_prefix}.")
    head = model.get_output_embeddings()  # T5's head stands beside its parts
    return any(name.startswith(f"{path}.") for path, module in model.named_modules() if module is head and path)


def _end(name: str) -> str:
    """What renaming leaves of a weight's name as a rule: `output.dense.weight`."""
    return ".".join(name.split(".")[-3:])


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _loaded(load: Callable[[], Any], folder: str, hub: bool = False) -> Any:
    where = f"model {folder}"
    if not hub and not os.path.exists(os.path.join(folder, "config.json")):
        raise ModelError("the folder has no config.json.", where, "Name a folder that save_pretrained wrote.")
    try:
        return load()
    except (TypeError, ModelError):
        raise
    except Exception as error:  # transformers raises OSError, ValueError, safetensors' and the hub's own errors
        raise ModelError(f"cannot be loaded ({reason(error)})", where, "Name a model folder.") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' reports of missing heads and the like: what there is to say is said in our own words."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def _calling(each: WeightCallback) -> Iterator[None]:
    """While the block runs, transformers' loader reads one weight after the other and gives each to `each`.

    It builds models without memory and then puts in weights by `set_param_for_module`, once they have their names, format and
    form; afterwards it compares tied weights and adds rows to their biases, so that modules with those stay whole.
    """
    put = core_model_loading.set_param_for_module

    def put_and_call(model: PreTrainedModel, name: str, *arguments: Any, **options: Any) -> None:
        put(model, name, *arguments, **options)
        path, _, own = name.rpartition(".")
        tied = {one.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for one in pair}
        module = model.get_submodule(path)
        weight = getattr(module, own)
        computed = hasattr(module, "create_weight")  # sinusoids, as RoFormer's, whose shape it asks for afterwards
        if isinstance(weight, torch.nn.Parameter) and not weight.is_meta and path not in tied and not computed:
            each(weight)

    ahead = os.environ.get(_NOT_AHEAD)
    core_model_loading.set_param_for_module = put_and_call  # type: ignore[assignment]
    os.environ[_NOT_AHEAD] = "1"
    try:
        yield
    finally:
        core_model_loading.set_param_for_module = put
        if ahead is None:
            del os.environ[_NOT_AHEAD]
        else:
            os.environ[_NOT_AHEAD] = ahead
