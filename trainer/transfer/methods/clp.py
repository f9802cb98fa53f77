"""CLP: a new token starts as the mean of all shared tokens, weighted by their cosine similarity in a donor model.

Ostendorff and Rehm, 2023 (arXiv:2301.09626). With the donor's rows a of new tokens t and shared tokens s:

    w_ts = cos(a_t, a_s) / sum_s' cos(a_t, a_s')         E_new[t] = sum_s w_ts E_old[s]

Differences from the paper:

- Tokens are matched by canonical form, so the donor's tokenizer may differ from the new one.
- Negative cosines can cancel positive ones: the sum approaches 0 and the weights explode or change sign. If the sum is below
  a tenth of the sum of |cosines|, negative cosines are dropped; a token without a positive one stays unplaced.
- `top` keeps only the nearest shared tokens. Without it W is dense, which is rejected if it would not fit in memory.

Cosines are exact, see `exact.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError
from trainer.executor import Executor, blocks
from trainer.transfer import donor
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.exact import normalise_rows, products

if TYPE_CHECKING:
    import torch

_MIN_SUM = 0.1
"""The share of the sum of |cosines| that the sum of cosines must reach."""
_ENTRY_BYTES = 32
"""A source id and a weight, here and while the plan is assembled."""
MAX_BYTES = 4 << 30
"""Memory that all mixtures may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClpConfig:
    """The donor and the number of shared tokens in a mixture."""

    donor: str | None = None
    """A model with trained embeddings for the new tokens: a folder or a hub name."""
    top: int | None = None
    """Number of nearest shared tokens that a new token mixes; all if not set, as in the paper."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ConfigError(f"clp needs top >= 1, got {self.top}.")


def place(problem: Problem, config: ClpConfig) -> Placement:
    """Places every new token that the donor has.

    Raises:
        ConfigError: the mixtures would take too much memory.
    """
    loaded = donor.load(problem, config.donor, "clp")
    width = len(loaded.source_ids) if config.top is None else min(config.top, len(loaded.source_ids))
    _check_memory(len(loaded.new_ids), width)
    return loaded.mixtures(
        *cosine_mixtures(loaded.new_embeddings, loaded.shared_embeddings, width, problem.executor), Provenance.NEIGHBOURS
    )


def cosine_mixtures(
    new: torch.Tensor, shared: torch.Tensor, width: int, executor: Executor
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `width` rows of `shared` [O, A] with the highest cosine to each row of `new` [N, A], and their weights."""
    (new, _), (shared, _) = normalise_rows(new), normalise_rows(shared)
    parts = blocks(new, 40 * len(shared), executor.block_bytes, executor.tasks)
    # Operations of one cosine: 2 A, twice that in fp64; sorting takes as long as about 4,000 more.
    operations = float(len(new)) * len(shared) * (4 * new.shape[1] + 4000)
    results = list(executor(_block, parts, shared, width, operations=operations))
    columns = np.concatenate([np.empty((0, width), np.int64), *[columns for columns, _ in results]])
    return columns, np.concatenate([np.empty((0, width), np.float32), *[weights for _, weights in results]])


def _block(new: torch.Tensor, shared: torch.Tensor, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    cosines = products(new, shared)
    columns = np.argsort(-cosines, axis=1, kind="stable")[:, :width]  # ties by index
    return columns, cosine_weights(np.take_along_axis(cosines, columns, axis=1)).astype(np.float32)


def cosine_weights(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights in proportion to the cosines, summing to 1; zeros for a row without a positive cosine."""
    cancels = cosines.sum(axis=1, keepdims=True) < _MIN_SUM * np.abs(cosines).sum(axis=1, keepdims=True)
    summands = np.where(cancels, np.maximum(cosines, 0.0), cosines)
    return summands / np.maximum(summands.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _check_memory(new: int, width: int) -> None:
    if new * width * _ENTRY_BYTES > MAX_BYTES:
        raise ConfigError(
            f"{new:,} mixtures of {width:,} shared tokens each take {new * width * _ENTRY_BYTES / 2**30:.0f} GiB.",
            "transfer.methods.clp.top",
            f"Set it to at most {MAX_BYTES // _ENTRY_BYTES // new:,}, or take clp_plus, whose mixtures are sparse.",
        )
