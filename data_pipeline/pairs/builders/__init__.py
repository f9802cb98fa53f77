"""Builders of training pairs from text: one a file, and the table of all.

The settings of an entry are the section `embed.builders.NAME`. Pairs from the user need no builder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from data_pipeline.pairs.builders.simcse import SimCse
from data_pipeline.table import Row

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs


class Builder(Protocol):
    """A frozen dataclass whose fields are its settings."""

    def __call__(self, documents: Iterable[tuple[str, str]], most: int, seed: int) -> Pairs:
        """At most `most` pairs from (language, text) of each document; equal for equal seeds.

        Raises:
            DataError: the text yields no pair.
        """
        ...


Entry = Row[Builder]

BUILDERS: dict[str, Entry] = {
    "simcse": Entry(SimCse, "Gao, Yao and Chen, EMNLP 2021 (arXiv:2104.08821)"),
}
