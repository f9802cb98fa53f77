"""Applies a plan, W @ E, to anything that has one row or one number per token."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.errors import ModelError
from trainer.transfer.plan import DRAWS, Provenance, TransferPlan

Matrix = Literal["inputs", "outputs"]
"""The matrix to make; the random rows of the two are independent draws."""
FILLING_BIAS = -1e4
"""The bias of a row without a token: finite in every dtype, and its exponential is 0 beside any real logit."""
_STREAMS = {"inputs": "row", "outputs": "output row"}
_BLOCK = 4096


def embeddings(plan: TransferPlan, old: torch.Tensor, matrix: Matrix = "inputs") -> torch.Tensor:
    """The new matrix [V, D], in the dtype of the old one [S, D].

    - Copied rows equal the old rows bit for bit.
    - Mixtures are summed in fp32 (fp64 for fp64).
    - Random rows are normal, with the mean and standard deviation of each old column. They are keyed on the token, so a token
      has the same random row in any vocabulary.
    - Rows without a token are the mean of the new rows that have one. A logit is linear in its row, so theirs is the mean of
      all others, never the highest, and each gets at most the mean probability of a token (Jensen).

    Memory: both matrices and one block of 4,096 rows in fp64.

    Raises:
        ModelError: the plan was made for a larger vocabulary than `old` has rows.
    """
    _check(plan, len(old))
    dtype = torch.promote_types(old.dtype, torch.float32)
    source = old[: plan.source_rows]
    new = torch.empty(len(plan), old.shape[1], dtype=old.dtype)
    for start in range(0, len(plan), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(plan)))
        new[part] = _mixtures(plan, old, part, dtype).to(old.dtype)
    new[torch.from_numpy(plan.provenance == Provenance.MEAN)] = moments(source)[0].to(old.dtype)
    is_drawn = np.isin(plan.provenance, DRAWS)
    for group in np.unique(plan.group[is_drawn]):
        rows = np.flatnonzero(is_drawn & (plan.group == group))
        mean, deviation = moments(source, None if group == 0 else np.flatnonzero(plan.source_group == group))
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            noise = _noise(plan, block, old.shape[1], _STREAMS[matrix])
            new[torch.from_numpy(block)] = (mean + noise * deviation).to(old.dtype)
    copies = plan.copies()
    for start in range(0, len(copies), _BLOCK):
        block = copies[start : start + _BLOCK]
        new[torch.from_numpy(block)] = old[torch.from_numpy(plan.indices[plan.indptr[block]]).long()]
    filling = plan.filling()
    if len(filling):
        new[torch.from_numpy(filling)] = moments(new, np.setdiff1d(np.arange(len(plan)), filling))[0].to(old.dtype)
    return new


def bias(plan: TransferPlan, old: torch.Tensor) -> torch.Tensor:
    """The new bias [V] from the old one [S]: the same mixtures, the old mean for rows that are not mixtures.

    Rows without a token get `FILLING_BIAS`.
    """
    _check(plan, len(old))
    source = old[: plan.source_rows, None].double()
    new = _mixtures(plan, source, slice(0, len(plan)), torch.float64)[:, 0]
    new[np.isin(plan.provenance, (*DRAWS, Provenance.MEAN))] = source.mean()
    new[torch.from_numpy(plan.filling())] = FILLING_BIAS
    return new.to(old.dtype)


def moments(rows: torch.Tensor, chosen: NDArray[np.int64] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each column, float64 [D], over all rows [n, D] or the `chosen` ones."""
    mean: torch.Tensor = _sum(block for block in _blocks(rows, chosen)) / _count(rows, chosen)
    squares = _sum((block - mean) ** 2 for block in _blocks(rows, chosen))
    return mean, (squares / _count(rows, chosen)).sqrt()


def _blocks(rows: torch.Tensor, chosen: NDArray[np.int64] | None) -> Iterator[torch.Tensor]:
    for start in range(0, _count(rows, chosen), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield (rows[part] if chosen is None else rows[torch.from_numpy(chosen[part])]).double()


def _sum(blocks: Iterator[torch.Tensor]) -> torch.Tensor:
    total = next(blocks).sum(dim=0)
    for block in blocks:
        total += block.sum(dim=0)
    return total


def _count(rows: torch.Tensor, chosen: NDArray[np.int64] | None) -> int:
    return len(rows) if chosen is None else len(chosen)


def _check(plan: TransferPlan, rows: int) -> None:
    if plan.source_rows > rows:
        raise ModelError(
            f"the source tokenizer has ids up to {plan.source_rows - 1:,}, but the model's embeddings have {rows:,} rows.",
            "transfer",
            "Use the tokenizer that belongs to the model.",
        )


def _mixtures(plan: TransferPlan, old: torch.Tensor, block: slice, dtype: torch.dtype) -> torch.Tensor:
    """The weighted sums of old rows that the plan gives for a block of new rows, [block, D]; zero for rows without entries."""
    first, last = plan.indptr[block.start], plan.indptr[block.stop]
    indices: np.ndarray = plan.indices[first:last].astype(np.int64)
    if old.dtype != dtype:
        used, indices = np.unique(indices, return_inverse=True)
        old = old[torch.from_numpy(used)]
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(indices),
        old.to(dtype),
        torch.from_numpy(plan.indptr[block.start : block.stop] - first),
        mode="sum",
        per_sample_weights=torch.from_numpy(plan.weights[first:last]).to(dtype),
    )


def _noise(plan: TransferPlan, rows: NDArray[np.int64], width: int, stream: str) -> torch.Tensor:
    """Standard normal numbers, float64 [rows, width], keyed on the token and the matrix."""
    keys = np.array([keyed_random.key(stream, plan.seed, int(number)) for number in plan.keys[rows]], np.uint64)
    return torch.from_numpy(keyed_random.normals(keys[:, None], np.arange(width)[None]))
