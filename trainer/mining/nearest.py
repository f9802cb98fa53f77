"""The k rows of a corpus with the highest cosine to each query, exactly and in bounded memory.

The corpus comes in blocks, and a running list of the best k is merged with the best of each. Products of unit rows on the grid
of `transfer/search/exact.py` are exact in fp64, in any order of summation and on any device; ties go to the lower index. So the
result does not depend on the blocks. The price is fp64: twice the time of fp32 on a CPU.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

SCORES = 1 << 24
"""Scores that exist at once, 8 bytes each."""


class Nearest(NamedTuple):
    """The nearest rows of each query, in descending order of score."""

    rows: torch.Tensor
    """int64 [n, k]; -1 where the corpus has fewer rows"""
    scores: torch.Tensor
    """fp64 [n, k]; -inf there"""


def nearest(queries: torch.Tensor, blocks: Iterable[torch.Tensor], k: int) -> Nearest:
    """The k nearest rows of all blocks.

    Args:
        queries: fp32 [n, d], from `normalise_rows`.
        blocks: fp32 [m, d] each, from `normalise_rows`; rows are numbered through all blocks.
    """
    best = Nearest(
        torch.full((len(queries), k), -1, device=queries.device),
        torch.full((len(queries), k), -torch.inf, dtype=torch.float64, device=queries.device),
    )
    wide, start = queries.double(), 0
    for block in blocks:
        columns = block.to(queries.device).double().T
        for part in torch.arange(len(queries), device=queries.device).split(max(1, SCORES // max(1, columns.shape[1]))):
            found = highest(wide[part] @ columns, k)
            # The rows before come first, so that a stable sort prefers them in a tie.
            rows = torch.cat([best.rows[part], found.rows + start], dim=1)
            scores, order = torch.cat([best.scores[part], found.scores], dim=1).sort(dim=1, descending=True, stable=True)
            best.rows[part], best.scores[part] = rows.gather(1, order[:, :k]), scores[:, :k]
        start += columns.shape[1]
    return best


def highest(scores: torch.Tensor, k: int) -> Nearest:
    """The k highest scores of each row [n, m] and their columns, all m where there are fewer; ties by column."""
    k = min(k, scores.shape[1])
    values, columns = scores.topk(k, dim=1)
    columns = columns.sort(dim=1).values
    # topk takes any of the columns that tie for the last place.
    for row in ((scores >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0].tolist():
        columns[row] = scores[row].sort(descending=True, stable=True).indices[:k].sort().values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return Nearest(columns.gather(1, order), values)
