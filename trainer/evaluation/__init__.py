"""Metrics of embedders: one a file; the table is here. The settings of an entry are the section `evaluate.settings.NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from data_pipeline.table import Row
from trainer.evaluation.isotropy import Isotropy
from trainer.evaluation.measured import Measured
from trainer.evaluation.ranked_pairs import RankedPairs
from trainer.evaluation.retrieval import Retrieval

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.evaluation.encoder import Encoder


class Metric(Protocol):
    """A metric: a frozen dataclass whose fields are its settings."""

    def __call__(self, embedder: Encoder, pairs: Pairs) -> Measured:
        """The scores over all text pairs, and by language if there are several."""
        ...


Entry = Row[Metric]

METRICS: dict[str, Entry] = {
    "retrieval": Entry(Retrieval, "Artetxe and Schwenk, TACL 2019 (arXiv:1812.10464)"),
    "ranking": Entry(RankedPairs, "Järvelin and Kekäläinen, TOIS 2002 (nDCG)"),
    "isotropy": Entry(Isotropy, "Rudman et al., Findings of ACL 2022 (arXiv:2108.07344)"),
}
