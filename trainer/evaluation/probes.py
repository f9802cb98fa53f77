"""Probes: a row says how the test set `evaluate.NAME=FILE` is read, and which metric measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_pipeline.pairs import candidates, graded_pairs, labelled_texts
from trainer.evaluation.classification import classification
from trainer.evaluation.clustering import clustering
from trainer.evaluation.measured import Measured
from trainer.evaluation.reranking import reranking
from trainer.evaluation.similarity import similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A test set and its metric."""

    load: Callable[..., Any]
    """`load(spec, cache, key=...)` reads the test set; DataError if its columns or values are wrong."""
    measure: Callable[..., Measured]
    """Takes an `Encoder` and the test set."""
    package: str | None = None
    """A package that is needed and is not one of Scion's own."""


PROBES: dict[str, Probe] = {
    "sts": Probe(load=graded_pairs.load, measure=similarity),
    "classification": Probe(load=labelled_texts.load, measure=classification, package="sklearn"),
    "clustering": Probe(load=labelled_texts.load, measure=clustering, package="sklearn"),
    "reranking": Probe(load=candidates.load, measure=reranking),
}
