"""Metrics of embedders: one a file; the table is here. The settings of an entry are the section `evaluate.settings.NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from data_pipeline.table import Row
from trainer.evaluation.retrieval import Retrieval

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.embedder import Embedder


class Metric(Protocol):
    """A metric: a frozen dataclass whose fields are its settings."""

    def __call__(self, embedder: Embedder, pairs: Pairs) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Scores as JSON objects: over all text pairs, and by language if there are several."""
        ...


Entry = Row[Metric]

METRICS: dict[str, Entry] = {
    "retrieval": Entry(Retrieval, "Artetxe and Schwenk, TACL 2019 (arXiv:1812.10464)"),
}
