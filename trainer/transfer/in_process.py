"""A transfer in this process, without Ray and without artefacts, for text that fits the memory.

The steps are those of `scion shard` and `scion transfer`: clean the text, train the tokenizer, place the new tokens, graft. The
jobs also hold text out, remove duplicates and balance languages; this module trains on all text.
"""

import difflib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.pairs import text_pairs
from data_pipeline.sources import documents
from data_pipeline.sources.models import model_folder
from data_pipeline.text.clean import clean
from data_pipeline.tokenizers import train as tokenizers
from data_pipeline.tokenizers.adopt import adopt
from data_pipeline.tokenizers.train import TokenizerConfig
from trainer.models import loading
from trainer.transfer import chain
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS
from trainer.transfer.plan import TransferPlan
from trainer.transfer.problem import Problem, assemble
from trainer.word_vectors.texts import Texts


@dataclass(frozen=True, slots=True)
class GraftedModel:
    """The source model with the new vocabulary."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerFast = field(repr=False)
    plan: TransferPlan
    has_given_tokenizer: bool = False
    """Whether the user gave the tokenizer; then its template may differ from the source's."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a Hugging Face folder, and the plan beside it.

        Raises:
            OSError: the folder cannot be written.
        """
        with storage.local_output(os.fspath(folder)) as local:
            self.model.save_pretrained(local)
            self.tokenizer.save_pretrained(local)
            self.plan.save(local)


def transfer(
    source_model: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | Iterable[str],
    pairs: str | os.PathLike[str] | Iterable[tuple[str, str]] | None = None,
    method: str | Sequence[str] = "focus",
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerFast | TokenizerConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    warn: Callable[[str], None] = print,
) -> GraftedModel:
    """The source model with the vocabulary of a new language, its new embeddings placed by a method.

    Args:
        source_model: a model folder, a URI or a hub name, `NAME` or `NAME@REVISION`.
        text: documents in the new language: a path, glob, URI or dataset name as in the key `text`, or texts and `Path`s.
        pairs: aligned pairs, for methods that learn from them: a path as in the key `pairs`, or (source, new language).
        method: a method of `scion.methods()`, or a chain, `aligned+focus` or `["aligned", "focus"]`.
        tokenizer: the new tokenizer, its folder or hub name, or how to train it; trained with the defaults where not given.
        settings: settings of the methods by name, keys as in `transfer.methods`: `{"focus": {"fasttext": {"dim": 50}}}`.
        seed: of all random rows.
        warn: receives lines on what the tokenizer's rules cost in this text, and on a method that places few tokens.

    Raises:
        ConfigError: no such method, or one without the pairs or the donor that it needs.
        DataError: the text or the pairs cannot be read, or are too little.
        ModelError: there is no such model, or its vocabulary cannot be replaced.
    """
    if not isinstance(source_model, str | os.PathLike):
        raise ConfigError(f"expected a folder or a name, got {type(source_model).__name__}.", "source_model")
    source_model = storage.absolute(folder) if os.path.isdir(folder := os.fspath(source_model)) else folder
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"expected a whole number, at least 0, got {seed!r}.", "seed")
    seed, method = int(seed), method if isinstance(method, str) else "+".join(map(str, method))
    own = _method_settings(method, settings or {})
    anchors, positives = _read_pairs(pairs)
    if not anchors and any(chain.needs_pairs(name, own.__getitem__) for name in own):
        raise ConfigError(f"{method} learns from aligned pairs.", "pairs", "Give pairs, or take method=focus.")
    with model_folder(source_model) as folder:
        source = tokenizers.load(folder)
        texts = _read_texts(text, layout=loading.is_causal(loading.model_config(folder)))
        target = _target_tokenizer(source, [*texts, *anchors, *positives], tokenizer, warn)
        learned_from = Texts(corpus=lambda: iter(texts), anchors=anchors, positives=positives)
        problem = Problem(source, target, learned_from, seed)
        plan = replace(assemble(problem, chain.place(problem, method, own.__getitem__), method), source_model=source_model)
        if warning := chain.shortfall(plan):
            warn(warning)
        model = loading.language_model(folder, seed, "auto")
    if chain.is_from_scratch(method):
        model = loading.with_random_weights(model, seed)
    graft(model, plan, target)
    given = tokenizer is not None and not isinstance(tokenizer, TokenizerConfig)
    return GraftedModel(model, target, plan, has_given_tokenizer=given)


def _method_settings(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of each method of a chain.

    Raises:
        ConfigError: no such method, or settings of a method that is not in the chain, or with a wrong key or value.
    """
    chain.check(method, "method")
    if others := set(given) - set(chain.parts(method)):
        raise ConfigError(f"{min(others)} is not in the chain {method}.", "settings", "Remove it, or change method=.")
    return {name: _settings_of(name, given.get(name, {})) for name in chain.parts(method)}


def _settings_of(method: str, given: Any) -> Any:
    """The settings of a method, given as its dataclass or as a mapping of some keys.

    Raises:
        ConfigError: they are neither, or have a wrong key or value.
    """
    config = METHODS[method].config
    if isinstance(given, config):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"expected a dict or {config.__name__}, got {type(given).__name__}.", f"settings[{method!r}]")
    try:
        return _from_mapping(config, given)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{error}.".replace("?.", "?"), f"settings[{method!r}]", "`scion config transfer.methods` lists the keys."
        ) from error


def _from_mapping(config: type[Any], given: Mapping[str, Any]) -> Any:
    """A dataclass of settings from a mapping, with its sections as mappings in it."""
    defaults = config()
    if unknown := set(given) - {one.name for one in fields(config)}:
        near = difflib.get_close_matches(min(map(str, unknown)), [one.name for one in fields(config)], n=1)
        raise ValueError(f"there is no key {min(map(str, unknown))!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    changes = {
        key: _from_mapping(type(section), value)
        if isinstance(value, Mapping) and is_dataclass(section := getattr(defaults, key, None))
        else value
        for key, value in given.items()
    }
    return replace(defaults, **changes)


def _target_tokenizer(
    source: PreTrainedTokenizerFast,
    texts: list[str],
    given: str | os.PathLike[str] | PreTrainedTokenizerFast | TokenizerConfig | None,
    warn: Callable[[str], None],
) -> PreTrainedTokenizerFast:
    """The tokenizer of the new language: the given one with the source's tokens of a role, or one trained on the texts."""
    if given is None or isinstance(given, TokenizerConfig):
        target = tokenizers.train(source, texts, given or TokenizerConfig(), warn)
    elif isinstance(given, PreTrainedTokenizerFast):
        target = adopt(given, source, texts[:200], warn)
    elif isinstance(given, str | os.PathLike):
        with model_folder(os.fspath(given)) as folder:
            target = adopt(tokenizers.load(folder), source, texts[:200], warn)
    else:
        fix = "Give a fast tokenizer, its folder or name, or TokenizerConfig(vocab_size=...)."
        raise ConfigError(f"expected a tokenizer, got {type(given).__name__}.", "tokenizer", fix)
    target.name_or_path = ""  # its ids are not those of the source's file
    return target


def _read_texts(text: str | os.PathLike[str] | Iterable[str], layout: bool) -> list[str]:
    """Clean texts; `layout` as in `clean`."""
    if not isinstance(text, Iterable | os.PathLike):
        raise DataError(f"expected texts, got {type(text).__name__}.", "text", "Give strings.")
    if isinstance(text, str | os.PathLike):
        texts = _read_files(os.fspath(text))
    else:
        texts = []
        for one in text:
            texts += _read_files(os.fspath(one)) if isinstance(one, os.PathLike) else [] if one is None else [one]
    if other := next((one for one in texts if not isinstance(one, str)), None):
        raise DataError(f"expected texts, got {type(other).__name__}.", "text", "Give strings.")
    if texts and all(len(one) < 1000 and os.path.isfile(one) for one in texts):
        raise DataError(f"{texts[0]!r} is the name of a file.", "text", "Give files as `pathlib.Path`, or one path or glob.")
    if not any(one.strip() for one in texts):
        raise DataError("there is no text in it.", "text", "Give documents that are not empty.")
    return [clean(one, layout=layout) for one in texts]


def _read_files(path: str) -> list[str]:
    """The documents at a path, a glob, a URI or a dataset."""
    with tempfile.TemporaryDirectory(prefix="scion-") as cache:
        units = documents.units(documents.resolve(path, cache, key="text"))
        tables = [documents.read(unit, ("text",), (), key="text") for unit in units]
    return [row for table in tables for row in table["text"].to_pylist() if row]


def _read_pairs(pairs: str | os.PathLike[str] | Iterable[Any] | None) -> tuple[list[str], list[str]]:
    """Anchors and positives, without pairs that have a blank side; both empty for None."""
    if pairs is None or isinstance(pairs, str | os.PathLike):
        with tempfile.TemporaryDirectory(prefix="scion-") as cache:
            loaded = text_pairs.load(None if pairs is None else os.fspath(pairs), cache, key="pairs")
        return loaded.anchors, loaded.positives
    cleaned = [tuple(map(clean, _sides(pair))) for pair in pairs]
    both = [pair for pair in cleaned if all(pair)]
    return [anchor for anchor, _ in both], [positive for _, positive in both]


def _sides(pair: Any) -> tuple[str, str]:
    """Anchor and positive of a pair, which is two texts or a row with these columns.

    Raises:
        DataError: it is neither.
    """
    sides = (pair.get("anchor"), pair.get("positive")) if isinstance(pair, Mapping) else pair
    match sides:
        case (str(anchor), str(positive)):
            return anchor, positive
    raise DataError(
        f"expected two texts, got {str(pair)[:80]}.",
        "pairs",
        "Give (source, new language), or dicts with `anchor` and `positive`.",
    )
