"""Blocked nearest-neighbour kernels whose answers do not depend on the blocks, to the last bit.

The matrix product of a block only proposes candidates, in bf16 where the machine is fast at it; how it rounds depends on
its shape and on the machine. So every candidate is scored again in fp64, where products of unit rows are exact (see
`exact.py`), ties go to the lower index, and a bound on the first product's rounding proves that no key outside the candidates
belongs to the answer. Rows for which it does not are done again in fp32, then with twice the candidates.

The best of a row are looked for among the maxima of some hundreds of groups first: whatever is among the best c lies in one
of the c best groups. Finding them so costs a fraction of the product, where sorting all scores costs several times as much.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from trainer.executor import Executor, LocalExecutor, blocks
from trainer.transfer.search.exact import normalise_rows

if TYPE_CHECKING:
    import torch

_SPARE = 12
"""Neighbours proposed beyond the wanted ones, so that the proof succeeds at the first try for nearly every row."""
_SUPPORT = 96
"""Proposed for a sparsemax; supports of trained vectors have some tens of members."""

_AT_ONCE = 16 << 20
"""Bytes of scores that are made at once: what is larger, malloc fetches from the system and gives back each time."""
_ALIGNED = 32
"""CPUs multiply bf16 in tiles of 32 numbers; a width that is no multiple of it costs half as much again."""

Certified = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""From candidate scores [n, c] in descending order to their weights, and which rows no key outside could change, when
keys outside score at most so much [n]."""


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Rows at length 1, rounded so that their products are exact in fp64; a zero row stays zero."""
    return normalise_rows(vectors)[0]


def top_softmax(
    queries: torch.Tensor, keys: torch.Tensor, k: int, temperature: float, spread: Executor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each query the `k` keys of highest cosine and their softmax weights.

    Args:
        queries: float32 [n, A], unit rows.
        keys: float32 [m, A], unit rows.

    Returns:
        [n, k] indices in descending order of cosine, and [n, k] weights whose rows sum to 1.
    """
    k = min(k, len(keys))

    def certified(scores: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        top = scores[:, :k]
        spread_out = np.exp((top - top[:, :1]) / temperature)
        return spread_out / spread_out.sum(axis=1, keepdims=True), scores[:, k - 1] > outside

    return _mixtures(queries, keys, k + _SPARE, certified, spread or LocalExecutor())


def top_sparsemax(
    queries: torch.Tensor, keys: torch.Tensor, spread: Executor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sparsemax of the cosines with all keys (Martins and Astudillo, ICML 2016), computed from the highest few.

    Sparsemax gives weight to the highest scores only: when every score outside the candidates is below the threshold
    found among them, the result is the exact one.

    Returns:
        [n, k] indices and [n, k] weights, 0 outside the support, k the largest support.
    """

    def certified(scores: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        weights, threshold = sparsemax_sorted(scores)
        return weights, threshold >= outside

    return _mixtures(queries, keys, _SUPPORT, certified, spread or LocalExecutor())


def sparsemax_sorted(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sparsemax of rows in descending order [n, m], and the threshold of each row [n]."""
    order = np.arange(1, scores.shape[1] + 1)
    total = scores.cumsum(axis=1)
    support = (1 + order * scores > total).sum(axis=1)
    threshold = (np.take_along_axis(total, support[:, None] - 1, axis=1)[:, 0] - 1) / support
    return np.maximum(scores - threshold[:, None], 0.0), threshold


def _mixtures(
    queries: torch.Tensor, keys: torch.Tensor, count: int, certified: Certified, spread: Executor
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not len(keys):
        raise DataError("there is no old token to take rows from.", "transfer", "Check the vectors and the source model.")
    halves, lost = _halves(keys) if _bf16_is_fast() else (None, 0.0)
    parts = _blocks(queries, len(keys), count, spread.block_bytes, spread.tasks)
    # A product costs 2 A a pair; choosing the best of them takes about as long as another 50 would.
    operations = float(len(queries)) * len(keys) * (2 * queries.shape[1] + 50)
    return _stacked(
        list(spread(_block, parts, keys, halves, lost, count, certified, spread.block_bytes, operations=operations))
    )


def _blocks(queries: torch.Tensor, keys: int, count: int, block_bytes: int, tasks: int = 1) -> list[torch.Tensor]:
    """Queries cut by the memory that `_block` takes: what it holds of each and its candidates, and the candidates' rows."""
    each, row = 12 * queries.shape[1] + 120 * count, 12 * queries.shape[1]
    spare = block_bytes - 2 * _at_once(block_bytes)
    if 2 * row * keys <= spare:
        return blocks(queries, each, spare - row * keys, tasks)
    return blocks(queries, each + row * count, spare, tasks)


def _at_once(block_bytes: int) -> int:
    return min(_AT_ONCE, block_bytes // 8)


def _bf16_is_fast() -> bool:
    """Whether this CPU multiplies bf16 in hardware; without that it is slower than fp32, never other."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _halves(keys: torch.Tensor) -> tuple[torch.Tensor, float]:
    """`keys` in bf16, columns first and padded, which multiplies fastest, and how far rounding moved a row at most."""
    import torch

    halves = torch.zeros(-(-keys.shape[1] // _ALIGNED) * _ALIGNED, len(keys), dtype=torch.bfloat16)
    lost = 0.0
    for rows, columns in zip(keys.split(4096), halves.split(4096, dim=1), strict=True):
        rounded = rows.bfloat16()
        columns[: keys.shape[1]] = rounded.T
        lost = max(lost, float(_lost(rows, rounded).max()))
    return halves, lost


def _lost(rows: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """How far rounding moved each row [n]."""
    return (rows - rounded.float()).norm(dim=1)


def _block(
    queries: torch.Tensor,
    keys: torch.Tensor,
    halves: torch.Tensor | None,
    lost: float,
    count: int,
    certified: Certified,
    block_bytes: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and weights of one block from `count` candidates a row, of more for rows that need it.

    Args:
        halves: `keys` in bf16 [A or more, m], by which candidates are proposed; None for fp32.
        lost: how far the rounding to `halves` moved a key at most.
    """
    import torch

    count = min(count, len(keys))
    proposed, outside = _proposed(queries, keys.T if halves is None else halves, lost, count, _at_once(block_bytes))
    index, scores = _rescored(queries, keys, proposed)
    weights, proven = certified(scores, outside)
    weights[weights < 2.0**-126] = 0.0  # nothing is left of them in fp32
    first = index[:, : weights.shape[1]], weights.astype(np.float32)
    if count == len(keys) or proven.all():
        return _stacked([first])
    again = np.flatnonzero(~proven)
    more = count if halves is not None else 2 * count
    rest = _blocks(queries[torch.from_numpy(again)], len(keys), more, block_bytes)
    found = [first, *(_block(part, keys, None, 0.0, more, certified, block_bytes) for part in rest)]
    index, weight = _stacked(found)
    index[again], weight[again] = index[len(queries) :], weight[len(queries) :]
    return _stacked([(index[: len(queries)], weight[: len(queries)])])


def _proposed(
    queries: torch.Tensor, columns: torch.Tensor, lost: float, count: int, at_once: int = _AT_ONCE
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The keys of the highest products in the precision of `columns` [A, m], [n, count], and a bound on the exact product of
    any other key [n].

    For unit rows |fl(q.k) - q.k| <= A u in any order of summation in fp32, u = 2^-24 (Higham 2002, section 3.1). In bf16
    both factors were moved besides, and the product is rounded to the nearest.
    """
    import torch

    rounded = torch.nn.functional.pad(queries.to(columns.dtype), (0, len(columns) - queries.shape[1]))
    step = max(1, at_once // (columns.element_size() * columns.shape[1]))
    found = [_highest(rows @ columns, count) for rows in rounded.split(step)]
    lowest = np.concatenate([lowest for _, lowest in found]).astype(np.float64)
    outside = lowest + 2 * len(columns) * 2.0**-24
    if columns.dtype != queries.dtype:
        # |q.k - q'.k'| <= |q - q'| |k'| + |q| |k - k'|
        outside += _lost(queries, rounded[:, : queries.shape[1]]).double().numpy() * (1 + lost) + lost
        outside += torch.finfo(columns.dtype).eps / 2 * np.abs(lowest)
    return np.concatenate([index for index, _ in found]), outside


def _highest(scores: torch.Tensor, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The columns of the `count` highest of each row, in no order [n, count], and the lowest of these [n]."""
    import torch

    size = scores.shape[1]
    members = round((size / count) ** 0.5)
    groups = size // members
    groups -= groups % _ALIGNED if groups - count >= _ALIGNED else 0
    members = size // groups
    best = scores[:, : groups * members].unflatten(1, (members, groups)).amax(dim=1)
    columns = _largest(best, count)[:, :, None] + groups * np.arange(members)
    rest = np.broadcast_to(np.arange(groups * members, size), (len(scores), size - groups * members))
    columns = np.concatenate([columns.reshape(len(scores), -1), rest], axis=1)
    members_of_best = scores.gather(1, torch.from_numpy(columns))
    place = _largest(members_of_best, count)
    chosen = members_of_best.gather(1, torch.from_numpy(place))
    return np.take_along_axis(columns, place, axis=1), chosen.amin(dim=1).float().numpy()


def _largest(scores: torch.Tensor, count: int) -> NDArray[np.int64]:
    """As `torch.topk(...).indices` without an order, in a third of its time."""
    at = scores.shape[1] - count
    return np.argpartition(scores.float().numpy(), at, axis=1)[:, at:] if at else np.argsort(scores.float().numpy(), axis=1)


def _stacked(
    found: list[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Blocks of different widths below each other, as wide as their longest row; index 0 where the weight is 0."""
    width = max((int((weight != 0).sum(axis=1).max(initial=1)) for _, weight in found), default=1)
    index = [np.pad(index, ((0, 0), (0, max(0, width - index.shape[1]))))[:, :width] for index, _ in found]
    weight = [np.pad(weight, ((0, 0), (0, max(0, width - weight.shape[1]))))[:, :width] for _, weight in found]
    weights = np.concatenate([np.empty((0, width), np.float32), *weight])
    return np.where(weights != 0, np.concatenate([np.empty((0, width), np.int64), *index]), 0), weights


def _rescored(
    queries: torch.Tensor, keys: torch.Tensor, candidates: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Candidates and their scores in fp64, in descending order of score, equal ones by index."""
    import torch

    index = np.sort(candidates, axis=1)
    used = torch.zeros(len(keys), dtype=torch.bool)
    used[torch.from_numpy(index.ravel())] = True
    place = (used.cumsum(0) - 1)[torch.from_numpy(index.ravel())]
    rows = keys[used].double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse matrices are new to torch
        wanted = torch.sparse_csr_tensor(
            torch.arange(0, index.size + 1, index.shape[1]), place, torch.zeros(index.size, dtype=torch.float64),
            (len(index), len(rows)), check_invariants=False,
        )  # fmt: skip
    products = torch.sparse.sampled_addmm(wanted, queries.double(), rows.T, beta=0.0)
    scores = products.values().view(index.shape).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(scores, order, axis=1)
