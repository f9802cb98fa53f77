"""CLP: a new token starts as the mean of all shared tokens, weighted by how like it they are in a donor model.

Ostendorff and Rehm, 2023 (arXiv:2301.09626). With the donor's rows a of new tokens t and shared tokens s:

    w_ts = cos(a_t, a_s) / sum_s' cos(a_t, a_s')         E_new[t] = sum_s w_ts E_old[s]

Ours differs: tokens are matched by canonical form, so that the donor's tokenizer need not be the new one. Cosines may be
negative and cancel, so that the sum comes near 0 and the weights blow up, or turn their signs: a row whose sum is less than
a tenth of the sum of |cosines| leaves out its negative cosines, and is unplaced if it has no other. `top` keeps the nearest
shared tokens only; without it W is dense, which is refused where it would not fit. Cosines are exact, see `exact.py`.
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

_LEAST = 0.1
"""Part of the sum of |cosines| that the sum of cosines must reach."""
_ENTRY_BYTES = 32
"""An old id and a weight, here and while the plan is put together."""
_MOST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ClpConfig:
    """Which model says what is alike, and how many of its answers count."""

    donor: str | None = None
    """A model with trained rows for the new tokens: a folder or a hub name."""
    top: int | None = None
    """Shared tokens that a new one mixes, the nearest; all of them if not set, as in the paper."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise ConfigError(f"clp needs top >= 1, got {self.top}.")


def place(problem: Problem, config: ClpConfig) -> Placement:
    """Mixtures of shared tokens for every new token that the donor has.

    Raises:
        ConfigError: they would take too much memory.
    """
    found = donor.load(problem, config.donor, "clp")
    width = len(found.source_ids) if config.top is None else min(config.top, len(found.source_ids))
    _check_memory(len(found.new_ids), width)
    return found.mixtures(
        *cosine_mixtures(found.new_embeddings, found.shared_embeddings, width, problem.executor), Provenance.NEIGHBOURS
    )


def cosine_mixtures(
    new: torch.Tensor, shared: torch.Tensor, width: int, spread: Executor
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each row of `new` [N, A] the `width` rows of `shared` [O, A] of highest cosine, and their weights."""
    (new, _), (shared, _) = normalise_rows(new), normalise_rows(shared)
    parts = blocks(new, 40 * len(shared), spread.block_bytes, spread.tasks)
    # A product costs 2 A a pair, twice that in fp64; sorting takes about as long as another 4,000.
    operations = float(len(new)) * len(shared) * (4 * new.shape[1] + 4000)
    found = list(spread(_block, parts, shared, width, operations=operations))
    columns = np.concatenate([np.empty((0, width), np.int64), *[columns for columns, _ in found]])
    return columns, np.concatenate([np.empty((0, width), np.float32), *[weights for _, weights in found]])


def _block(new: torch.Tensor, shared: torch.Tensor, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    cosines = products(new, shared)
    columns = np.argsort(-cosines, axis=1, kind="stable")[:, :width]  # equal ones by index
    return columns, _weights(np.take_along_axis(cosines, columns, axis=1)).astype(np.float32)


def _weights(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows that sum to 1, in proportion to the cosines; zeros for a row without a positive one."""
    cancels = cosines.sum(axis=1, keepdims=True) < _LEAST * np.abs(cosines).sum(axis=1, keepdims=True)
    kept = np.where(cancels, np.maximum(cosines, 0.0), cosines)
    return kept / np.maximum(kept.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _check_memory(new: int, width: int) -> None:
    if new * width * _ENTRY_BYTES > _MOST_BYTES:
        raise ConfigError(
            f"{new:,} new tokens that mix {width:,} shared ones each take {new * width * _ENTRY_BYTES / 2**30:.0f} GiB.",
            "transfer.methods.clp.top",
            f"Set it to at most {_MOST_BYTES // _ENTRY_BYTES // new:,}, or take clp_plus, whose mixtures are sparse.",
        )
