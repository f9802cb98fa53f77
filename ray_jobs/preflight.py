"""Checks before Ray starts what a job would otherwise find out after minutes or hours.

The settings are checked against the source model, and for the files that methods need.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.sources import documents
from data_pipeline.sources.models import is_path
from ray_jobs import embed_stages
from ray_jobs.compared_runs import compared_configs
from ray_jobs.config.schema import ScionConfig
from ray_jobs.job import jobs
from trainer.config.train import TrainConfig
from trainer.evaluation.probes import PROBES
from trainer.mining.config import MineConfig
from trainer.models.pooling import check_pooling
from trainer.objectives.nested import NestedConfig, check_widths
from trainer.transfer import chain

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PACKED = ("shard", "transfer", "pretrain", "compare", "pipeline")
"""Jobs with rows of `shard.length` tokens."""
_PRETRAINS = ("pretrain", "compare", "pipeline")
"""Jobs that pretrain."""
_OF_HEADS = ("classif", "summary", "cls")
"""Parts of the names of dropout rates outside the layers."""
_TEXTS = ("text", "test_text", "pairs", "test_pairs")
_FILES = ("vectors", "source_vectors", "target_vectors", "dictionary")
_MODELS = ("donor", "embedder")


def check(config: ScionConfig, job: str) -> None:
    """Refuses settings with which `job` would fail. Checks that need no model come first.

    Raises:
        ConfigError: names the setting.
        ModelError: a named model does not exist, or cannot be pretrained.
    """
    if config.embed.model is not None and (job == "pipeline" or (job == "merge" and not config.merge.models)):
        raise ConfigError(
            f"`scion {job}` embeds the model that it pretrained.", "embed.model", "Leave it out, or use `scion embed`."
        )
    _check_inputs(config, job)
    runs = list(compared_configs(config).values()) if job == "compare" else [config]
    for one in runs:
        _check_libraries(one, job)
        if job in ("transfer", "pipeline", "compare"):
            _check_methods(one)
    if job in _PACKED:
        _check_source_model(config, job)
    if job == "embed" or (job == "pipeline" and config.pairs is not None):
        for stage in embed_stages.every(config, "embed"):
            _check_embed_model(stage.config)
    if config.pairs is None and (job == "mine" or (config.embed.mined and job in ("embed", "pipeline"))):
        raise ConfigError("there are no pairs to mine negatives for.", "pairs", "Give pairs=.")
    if job in ("evaluate", "pipeline"):
        _check_compared(config.evaluate.models)
    if job == "mine" or (job == "pipeline" and config.embed.mined):
        _check_mining(config.mine)


def _check_methods(config: ScionConfig) -> None:
    """Checks that the method, or each method of a chain, has the data that it learns from."""
    for method in chain.parts(config.method):
        _check_method(method, getattr(config.transfer.methods, method))
        if config.pairs is None and chain.needs_pairs(method, partial(getattr, config.transfer.methods)):
            raise ConfigError(f"{method} learns from aligned pairs.", "pairs", "Give pairs=, or take method=focus.")


def _check_inputs(config: ScionConfig, job: str) -> None:
    """Checks that named files and folders exist. Imports no library that takes seconds."""
    table = jobs()
    read = {key for one in (job, *table[job].after) for key in table[one].keys}
    given = {key: getattr(config, key) for key in (*_TEXTS, "source_model", "tokenizer") if not table[job].keys or key in read}
    for key, spec in given.items():
        if spec and key in _TEXTS:
            documents.check(spec, key=key)
        elif spec:
            _check_there(key, spec)
    if job == "drift":
        _check_versions(config)
    if "pairs" in read or not table[job].keys:
        for one in embed_stages.every(config, "embed")[:-1]:
            if one.config.pairs is not None:
                documents.check(one.config.pairs, key=f"pairs of {one.folder}")
    if not table[job].keys or "evaluate" in read:
        for name, spec in config.evaluate.files.items():
            _check_test_set(name, spec)


def _check_test_set(name: str, spec: str) -> None:
    """Checks that a test set exists, and reads it if it is on this machine, so that wrong columns are found before the work."""
    key = f"evaluate.{name}"
    if documents.check(spec, key=key) and "://" not in spec:
        with tempfile.TemporaryDirectory() as cache:
            PROBES[name].load(spec, cache, key=key)
    if (package := PROBES[name].package) is not None and not is_installed(package):
        raise ConfigError("scikit-learn is not installed.", key, "pip install 'scion-lm[probes]'")


def _check_versions(config: ScionConfig) -> None:
    """Checks that there are versions of an embedder, and pairs on whose anchors their drift is measured."""
    if not config.drift.versions:
        raise ConfigError("there are none.", "drift.versions", "Name embedders, such as {v1: runs/a/embed, v2: runs/b/embed}.")
    for name, folder in config.drift.versions.items():
        _check_there(f"drift.versions.{name}", folder)
    if config.pairs is None:
        raise ConfigError("the drift is measured on the anchors of training pairs.", "pairs", "Give pairs=.")


def _check_libraries(config: ScionConfig, job: str) -> None:
    """Checks that the libraries of `train.track` and `train.lora_rank` are installed here.

    A worker trains without a tracker.
    """
    embeds = job == "embed" or (job == "pipeline" and config.pairs is not None)
    trains = {"pretrain": job in _PRETRAINS, "embed": embeds}
    for section in (name for name, does in trains.items() if does):
        for kind in getattr(config, section).train.track:
            if not is_installed(kind):
                raise ConfigError(f"{kind} is not installed.", f"{section}.train.track", f"pip install 'scion-lm[{kind}]'")
        if getattr(config, section).train.lora is not None and not is_installed("peft"):
            raise ConfigError("peft is not installed.", f"{section}.train.lora_rank", "pip install 'scion-lm[lora]'")


def is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # Python raises it where an import is blocked
        return False


def _check_source_model(config: ScionConfig, job: str) -> None:
    """Checks that the source model exists and fits the job, the length of rows and the names in the settings of pretraining."""
    from trainer.models import loading
    from trainer.tasks.language_modeling import check_objective

    source = _settings("source_model", config.source_model)
    kind = loading.kind(source, config.source_model)
    if job in _PRETRAINS and source.is_encoder_decoder:
        raise ModelError(
            "an encoder-decoder can be transferred and embedded, but not pretrained here.",
            f"source_model={config.source_model}",
            "Use `scion transfer`, then `scion embed` with embed.model=OUTPUT/transfer.",
        )
    _check_length("shard.length", config.shard.length, source, config.source_model)
    runs = compared_configs(config).values() if job == "compare" else [config] if job in _PRETRAINS else []
    for settings in (run.pretrain for run in runs):
        check_objective(source, kind, settings.objective == "mntp", config.source_model)
        _check_names(settings.train, lambda: loading.meta_language_model(source, config.source_model), "pretrain.train")


def _check_names(train: TrainConfig, made: Callable[[], PreTrainedModel | None], section: str) -> None:
    """Checks the names in `frozen` and the layers of adapters, on a model of the same architecture that takes no memory."""
    import torch

    from trainer.models.adapters import add_adapters
    from trainer.models.freezing import frozen_names

    key = "lora_targets" if train.lora else "frozen"
    if not (train.frozen or train.lora) or (model := made()) is None:
        return
    try:
        if train.lora is not None:
            add_adapters(model, train.lora)
        else:
            frozen_names(torch.nn.ModuleDict({"model": model}), train.frozen)
    except ConfigError as error:
        raise ConfigError(error.what, f"{section}.{key}", error.fix) from None


def _check_embed_model(config: ScionConfig) -> None:
    """Checks that the model to embed exists and reads text, and that length, pooling, layer names and dropout fit it."""
    from trainer.models import bidirectional, loading

    model = config.first_model
    settings = _settings("source_model" if config.embed.model is None else "embed.model", model)
    if getattr(settings.get_text_config(), "vocab_size", None) is None:
        raise ModelError(f"{settings.model_type} has no vocabulary.", f"model {model}", "Name a model that reads text.")
    _check_names(config.embed.train, lambda: loading.meta_encoder(settings), "embed.train")
    _check_length("embed.max_length", config.embed.max_length, settings, model)
    is_causal = loading.is_causal(settings)
    if config.embed.bidirectional and is_causal:
        bidirectional.check_config(settings, model)
    becomes_bidirectional = config.embed.bidirectional or (config.embed.model is None and config.pretrain.objective == "mntp")
    check_pooling(config.embed.pooling, is_causal and not becomes_bidirectional, model)
    _check_nested(config.embed.nested, settings)
    if config.embed.teacher is not None:
        _check_teacher(config.embed.teacher, settings)
    if config.pairs is None:
        _check_dropout(config.embed.model, settings)


def _check_mining(mine: MineConfig) -> None:
    """Checks that the models and the corpus of the mining are there, and that the teacher has one output."""
    from trainer.mining import cross_encoder

    for key, model in (("mine.model", mine.model), ("mine.teacher", mine.teacher)):
        if model is not None:
            _check_there(key, model)
    if mine.corpus is not None:
        documents.check(mine.corpus, key="mine.corpus")
    if mine.teacher is not None:
        cross_encoder.check(mine.teacher, mine.teacher_length)


def _check_nested(nested: NestedConfig, settings: PretrainedConfig) -> None:
    """Checks that widths and exits are parts of the model."""
    from trainer.models import exits, loading

    check_widths(nested.widths, getattr(settings.get_text_config(), "hidden_size", math.inf))
    if nested.exits and (model := loading.meta_encoder(settings)) is not None:
        exits.check_exits(model, nested.exits)


def _check_teacher(teacher: str, settings: PretrainedConfig) -> None:
    """Checks that the teacher's vectors are as wide as the student's, or wider: it encodes all texts before the first step."""
    of_teacher = _settings("embed.teacher", teacher)
    widths = [getattr(one.get_text_config(), "hidden_size", None) for one in (settings, of_teacher)]
    projected = [getattr(one.get_text_config(), "word_embed_proj_dim", None) for one in (settings, of_teacher)]
    ours, theirs = (other or width for width, other in zip(widths, projected, strict=True))
    if ours is not None and theirs is not None and ours > theirs:
        raise ConfigError(
            f"its vectors have {theirs} dimensions, the student's {ours}.",
            f"embed.teacher={teacher}",
            "Take a teacher of the same width or a wider one.",
        )


def _check_dropout(given: str | None, settings: PretrainedConfig) -> None:
    """Checks that the model has dropout: without pairs a line is its own positive, and dropout makes two views of it."""
    if given is not None:
        raise ConfigError("a given model learns from pairs.", "pairs", "Give pairs=.")
    rates = settings.get_text_config().to_dict()
    of_layers = [value for name, value in rates.items() if "drop" in name and not any(part in name for part in _OF_HEADS)]
    if not any(isinstance(value, float) and value > 0 for value in of_layers):
        raise ConfigError(
            f"without pairs, dropout makes two views of a line (SimCSE), and {settings.model_type} has none.",
            "pairs",
            "Give pairs=, or a source model whose config.json names a dropout above 0.",
        )


def _check_compared(models: Mapping[str, str]) -> None:
    """Checks that the models of `evaluate.models` exist; their weights are not read."""
    for name, model in models.items():
        key = f"evaluate.models.{name}"
        try:
            _settings(key, model)
        except ModelError as error:
            raise ModelError(error.what, f"{key}={model}", error.fix) from None


def _settings(key: str, spec: str) -> PretrainedConfig:
    from trainer.models import loading

    _check_there(key, spec)
    return loading.model_config(spec)


def _check_there(key: str, spec: str) -> None:
    """Checks that a model that is written like a path is a folder."""
    if is_path(spec) and not os.path.isdir(spec):
        raise ConfigError("no such folder.", f"{key}={spec}", "Name a model folder or a hub name.")


def _check_length(key: str, length: int, settings: PretrainedConfig, model: str) -> None:
    """Checks that the model has positions for rows of `length` tokens; else raises ConfigError."""
    from trainer.models import loading

    longest = loading.max_length(settings)
    scaled = " before LongRoPE changes their scale" if longest in loading.longrope_lengths(settings.get_text_config()) else ""
    if length > longest:
        raise ConfigError(
            f"rows of {length:,} tokens do not fit {model}, whose positions reach {longest:,}{scaled}.",
            key,
            f"At most {longest}.",
        )


def _check_method(method: str, settings: Any) -> None:
    """Checks that a method has the donor and the files that its settings name."""
    for key, value in _named(settings, f"transfer.methods.{method}"):
        name = key.rpartition(".")[2]
        if name == "donor" and not value:
            raise ConfigError(
                f"{method} needs a donor, a model that was trained on the new language.",
                key,
                "Set it to a folder or a hub name.",
            )
        if value and name in _FILES and not storage.exists(value):
            raise ConfigError("no such file.", f"{key}={value}", "Name a file that is there.")
        if value and name in _MODELS:
            _check_there(key, value)


def _named(settings: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The settings that name a file or a model, in inner sections too."""
    for entry in dataclasses.fields(settings):
        value, key = getattr(settings, entry.name), f"{prefix}.{entry.name}"
        if dataclasses.is_dataclass(value):
            yield from _named(value, key)
        elif entry.name in (*_FILES, *_MODELS):
            yield key, value
