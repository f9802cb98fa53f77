"""A transfer in this process, without Ray and without artefacts, for text that fits the memory.

The steps are those of `scion shard` and `scion transfer`: clean the text, train the tokenizer, place the new tokens, graft. The
jobs also hold text out, remove duplicates and balance languages; this module trains on all text.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

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

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    plan: TransferPlan
    source_model: str
    """The folder or hub name of the source model."""

    def save(self, folder: str) -> None:
        """Writes a Hugging Face folder, and the plan beside it.

        Raises:
            OSError: the folder cannot be written.
        """
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.plan.save(folder)


def transfer(
    source_model: str,
    *,
    text: str | Iterable[str],
    pairs: str | Sequence[tuple[str, str]] | None = None,
    method: str = "focus",
    tokenizer: str | TokenizerConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    warn: Callable[[str], None] = print,
) -> GraftedModel:
    """The source model with the vocabulary of a new language, its new embeddings placed by a method.

    Args:
        source_model: a model folder, a URI or a hub name, `NAME` or `NAME@REVISION`.
        text: documents in the new language: a path, glob, URI or dataset name as in the key `text`, or texts.
        pairs: aligned pairs, for methods that learn from them: a path as in the key `pairs`, or (source, new language).
        method: a method of `scion.methods()`, or a chain such as `aligned+focus`.
        tokenizer: the new tokenizer's folder or hub name, or how to train it; trained with the defaults where not given.
        settings: settings of methods by their names, e.g. `{"focus": FocusConfig(...)}`.
        seed: of all random rows.
        warn: receives lines on what the tokenizer's rules cost in this text.

    Raises:
        ConfigError: no such method, or one without the pairs or the donor that it needs.
        DataError: the text or the pairs cannot be read, or are too little.
        ModelError: there is no such model, or its vocabulary cannot be replaced.
    """
    own = _method_settings(method, settings or {}, has_pairs=pairs is not None)
    with model_folder(source_model) as folder:
        source = tokenizers.load(folder)
        texts = _read_texts(text, layout=loading.is_causal(loading.model_config(source_model)))
        anchors, positives = _read_pairs(pairs)
        target = _target_tokenizer(source, [*texts, *anchors, *positives], tokenizer, warn)
        learned_from = Texts(corpus=lambda: iter(texts), anchors=anchors, positives=positives)
        problem = Problem(source, target, learned_from, seed)
        plan = assemble(problem, chain.place(problem, method, own.__getitem__), method)
        model = loading.language_model(folder, seed, "auto")
    if chain.is_from_scratch(method):
        model = loading.with_random_weights(model, seed)
    graft(model, plan, target)
    return GraftedModel(model, target, plan, source_model)


def _method_settings(method: str, given: Mapping[str, Any], has_pairs: bool) -> dict[str, Any]:
    """The settings of each method of a chain.

    Raises:
        ConfigError: no such method, or one without the pairs that it needs.
    """
    chain.check(method, "method")
    own = {name: given.get(name, METHODS[name].config()) for name in chain.parts(method)}
    if not has_pairs and any(chain.needs_pairs(name, own.__getitem__) for name in own):
        raise ConfigError(f"{method} learns from aligned pairs.", "pairs", "Give pairs, or take method=focus.")
    return own


def _target_tokenizer(
    source: PreTrainedTokenizerFast, texts: list[str], given: str | TokenizerConfig | None, warn: Callable[[str], None]
) -> PreTrainedTokenizerFast:
    """The tokenizer of the new language: the given one, adapted to the source model, or one trained on the texts."""
    if isinstance(given, str):
        with model_folder(given) as folder:
            return adopt(tokenizers.load(folder), source, texts[:200], warn)
    trained = tokenizers.train(source, texts, given or TokenizerConfig(), warn)
    trained.name_or_path = ""  # it is not the source's file any more
    return trained


def _read_texts(text: str | Iterable[str], layout: bool) -> list[str]:
    """Clean texts; `layout` as in `clean`."""
    if not isinstance(text, str):
        found = list(text)
    else:
        with tempfile.TemporaryDirectory(prefix="scion-") as cache:
            units = documents.units(documents.resolve(text, cache, key="text"))
            tables = [documents.read(unit, ("text",), (), key="text") for unit in units]
        found = [row for table in tables for row in table["text"].to_pylist() if row]
    if not any(one.strip() for one in found):
        raise DataError("there is no text in it.", "text", "Give documents that are not empty.")
    return [clean(one, layout=layout) for one in found]


def _read_pairs(pairs: str | Sequence[tuple[str, str]] | None) -> tuple[list[str], list[str]]:
    """Anchors and positives."""
    if pairs is None or isinstance(pairs, str):
        with tempfile.TemporaryDirectory(prefix="scion-") as cache:
            loaded = text_pairs.load(pairs, cache, key="pairs")
        return loaded.anchors, loaded.positives
    return [clean(anchor) for anchor, _ in pairs], [clean(positive) for _, positive in pairs]
