"""Metrics of embedders: one a file; the table is here. The settings of an entry are the section `evaluate.settings.NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trainer.evaluation.retrieval import Retrieval

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.embedder import Embedder


class Metric(Protocol):
    """A metric: a frozen dataclass whose fields are its settings."""

    def __call__(self, embedder: Embedder, pairs: Pairs) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Scores as JSON objects: over all text pairs, and by language if there are several."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the table: a class whose fields are the settings, and the paper."""

    config: type[Metric]
    paper: str


METRICS: dict[str, Entry] = {
    "retrieval": Entry(Retrieval, "Artetxe and Schwenk, TACL 2019 (arXiv:1812.10464)"),
}
