"""Training pairs from text: one way a file; the table is here.

The settings of a row are the section `embed.builders.NAME`. Pairs that the user gives need no builder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from data_pipeline.pairs.builders.simcse import SimCse

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs


class Builder(Protocol):
    """A frozen dataclass whose fields are its settings."""

    def __call__(self, documents: Iterable[tuple[str, str]], most: int, seed: int) -> Pairs:
        """At most `most` pairs from (language, text) of each document; the same for the same seed.

        Raises:
            DataError: the text gives none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: a class whose fields are the settings, and where it was published."""

    config: type[Builder]
    paper: str


BUILDERS: dict[str, Entry] = {
    "simcse": Entry(SimCse, "Gao, Yao and Chen, EMNLP 2021 (arXiv:2104.08821)"),
}
