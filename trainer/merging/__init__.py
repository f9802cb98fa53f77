"""Merging models: one method a file; the table is here. The settings of an entry are the section `merge.methods.NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from data_pipeline.table import Row
from trainer.merging.uniform import Uniform

if TYPE_CHECKING:
    import torch


class Merge(Protocol):
    """A merge method: a frozen dataclass whose fields are its settings."""

    def __call__(self, weights: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Merges the state dicts of several models of one architecture.

        Args:
            names: the names of the models, for errors.

        Raises:
            ModelError: the models do not have the same tensors of the same shapes.
        """
        ...


Entry = Row[Merge]

MERGES: dict[str, Entry] = {
    "uniform": Entry(Uniform, "model soup: Wortsman et al., ICML 2022 (arXiv:2203.05482)"),
}
