"""Blocked nearest-neighbour kernels whose answers do not depend on the blocks, to the last bit.

The matrix product of a block only proposes candidates, in bf16 where the machine is fast at it; how it rounds depends on
its shape and on the machine. So every candidate is scored again in fp64, where products of unit rows are exact (see
`exact.py`), ties go to the lower index, and a bound on the first product's rounding proves that no key outside the candidates
belongs to the answer. Rows for which it does not are done again in fp32, then with twice the candidates.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from trainer.spread import Local, Spread, blocks
from trainer.transfer.exact import directions

TILE = 8192
"""Keys scored at once."""
_SPARE = {torch.float32: 6, torch.bfloat16: 22}
"""Neighbours proposed beyond the wanted ones, so that the proof succeeds at the first try for nearly every row."""
_SUPPORT = 64
"""Proposed for a sparsemax; supports of trained vectors have some tens of members."""
_AT_ONCE = 64
"""Candidates of a row that are scored again at once."""

Certified = Callable[[NDArray[np.float64], float], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""From candidate scores [n, c] in descending order to their weights, and which rows no key outside could change, when
keys outside score at most `scores[:, -1] + error`."""


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Rows at length 1, rounded so that their products are exact in fp64; a zero row stays zero."""
    return directions(vectors)[0]


def top_softmax(
    queries: torch.Tensor, keys: torch.Tensor, k: int, temperature: float, spread: Spread | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each query the `k` keys of highest cosine and their softmax weights.

    Args:
        queries: float32 [n, A], unit rows.
        keys: float32 [m, A], unit rows.

    Returns:
        [n, k] indices in descending order of cosine, and [n, k] weights whose rows sum to 1.
    """
    k = min(k, len(keys))

    def certified(scores: NDArray[np.float64], error: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        top = scores[:, :k]
        spread_out = np.exp((top - top[:, :1]) / temperature)
        return spread_out / spread_out.sum(axis=1, keepdims=True), scores[:, k - 1] > scores[:, -1] + error

    proposing = torch.bfloat16 if _bf16_is_fast() else torch.float32
    return _mixtures(queries, keys, k + _SPARE[proposing], certified, spread or Local(), proposing)


def top_sparsemax(
    queries: torch.Tensor, keys: torch.Tensor, spread: Spread | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sparsemax of the cosines with all keys (Martins and Astudillo, ICML 2016), computed from the highest few.

    Sparsemax gives weight to the highest scores only: when every score outside the candidates is below the threshold
    found among them, the result is the exact one.

    Returns:
        [n, k] indices and [n, k] weights, 0 outside the support, k the largest support.
    """

    def certified(scores: NDArray[np.float64], error: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        weights, threshold = sparsemax_sorted(scores)
        return weights, threshold >= scores[:, -1] + error

    # In fp32: the threshold lies so close to the scores next to it that bf16 proves little.
    return _mixtures(queries, keys, _SUPPORT, certified, spread or Local(), torch.float32)


def sparsemax_sorted(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sparsemax of rows in descending order [n, m], and the threshold of each row [n]."""
    order = np.arange(1, scores.shape[1] + 1)
    total = scores.cumsum(axis=1)
    support = (1 + order * scores > total).sum(axis=1)
    threshold = (np.take_along_axis(total, support[:, None] - 1, axis=1)[:, 0] - 1) / support
    return np.maximum(scores - threshold[:, None], 0.0), threshold


def _mixtures(
    queries: torch.Tensor, keys: torch.Tensor, count: int, certified: Certified, spread: Spread, proposing: torch.dtype
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not len(keys):
        raise DataError("there is no old token to take rows from.", "transfer", "Check the vectors and the source model.")
    parts = blocks(queries, row_bytes(len(keys), queries.shape[1]), spread.block_bytes)
    # A product costs 2 A a pair; choosing the best of a tile takes about as long as another 200.
    operations = float(len(queries)) * len(keys) * (2 * queries.shape[1] + 200)
    halves = keys.bfloat16() if proposing == torch.bfloat16 else None
    shared = (keys, halves, count, certified, spread.block_bytes)
    return _stacked(list(spread(_block, parts, *shared, operations=operations)))


def row_bytes(keys: int, width: int) -> int:
    """Scratch memory for one query against `keys` keys of `width` numbers: a tile of scores and what is scored again."""
    return 12 * min(TILE, keys) + 12 * _AT_ONCE * width


def _bf16_is_fast() -> bool:
    """Whether this CPU multiplies bf16 in hardware; without that it is slower than fp32, never other."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _block(
    queries: torch.Tensor,
    keys: torch.Tensor,
    halves: torch.Tensor | None,
    count: int,
    certified: Certified,
    block_bytes: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and weights of one block from `count` candidates a row, of more for rows that need it.

    Args:
        halves: `keys` in bf16, by which candidates are proposed; None for fp32.
    """
    count = min(count, len(keys))
    proposed = _candidates(queries, keys, count) if halves is None else _candidates(queries.bfloat16(), halves, count)
    index, scores = _rescored(queries, keys, proposed)
    weights, proven = certified(scores, _error(queries.shape[1], halves is not None))
    weights[weights < 2.0**-126] = 0.0  # nothing is left of them in fp32
    first = index[:, : weights.shape[1]], weights.astype(np.float32)
    if count == len(keys) or proven.all():
        return _stacked([first])
    again = np.flatnonzero(~proven)
    more = count if halves is not None else 2 * count
    rest = blocks(queries[torch.from_numpy(again)], row_bytes(len(keys), queries.shape[1]) + 32 * count, block_bytes)
    found = [first, *(_block(part, keys, None, more, certified, block_bytes) for part in rest)]
    index, weight = _stacked(found)
    index[again], weight[again] = index[len(queries) :], weight[len(queries) :]
    return _stacked([(index[: len(queries)], weight[: len(queries)])])


def _error(width: int, bf16: bool) -> float:
    """By how much the scores of two keys can come apart in a product of unit rows, twice the error of one.

    |fl(q.k) - q.k| <= A u |q||k| for any order of summation in fp32, u = 2^-24 (Higham 2002, section 3.1); in bf16, whose
    unit is 2^-9, each factor and the result are rounded besides.
    """
    one = width * 2.0**-24
    if bf16:
        one += 2 * 2.0**-9 + 2.0**-18 + 2.0**-9
    return 2 * one


def _stacked(
    found: list[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Blocks of different widths below each other, as wide as their longest row; index 0 where the weight is 0."""
    width = max((int((weight != 0).sum(axis=1).max(initial=1)) for _, weight in found), default=1)
    index = [np.pad(index, ((0, 0), (0, max(0, width - index.shape[1]))))[:, :width] for index, _ in found]
    weight = [np.pad(weight, ((0, 0), (0, max(0, width - weight.shape[1]))))[:, :width] for _, weight in found]
    weights = np.concatenate([np.empty((0, width), np.float32), *weight])
    return np.where(weights != 0, np.concatenate([np.empty((0, width), np.int64), *index]), 0), weights


def _candidates(queries: torch.Tensor, keys: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [n, count] of the keys with the highest products, found tile by tile."""
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(keys), TILE):
        score = queries @ keys[start : start + TILE].T
        top, place = score.topk(min(count, score.shape[1]), dim=1, sorted=False)
        best, index = torch.cat([best, top], dim=1), torch.cat([index, place + start], dim=1)
        if best.shape[1] > count:
            best, place = best.topk(count, dim=1, sorted=False)
            index = index.gather(1, place)
    return index


def _rescored(
    queries: torch.Tensor, keys: torch.Tensor, candidates: torch.Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Candidates and their scores in fp64, in descending order of score, equal ones by index."""
    index = np.sort(candidates.numpy(), axis=1)
    scores = np.empty(index.shape)
    wide = queries.double().numpy()
    for start in range(0, index.shape[1], _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores[:, part] = np.einsum("na,nca->nc", wide, keys.numpy()[index[:, part]].astype(np.float64))
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(scores, order, axis=1)
