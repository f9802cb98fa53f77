"""Blocked nearest-neighbour kernels whose results do not depend on the blocks, bit for bit.

The matrix product of a block only proposes candidates, in bf16 if the CPU is fast at it; its rounding depends on its shape and
on the machine. So every candidate is scored again in fp64, where products of unit rows are exact (see `exact.py`), and ties go
to the lower index. A bound on the rounding of the first product then proves that no key outside the candidates belongs to the
result. Rows without this proof are repeated in fp32, then with twice the candidates.

The highest scores of a row are searched via the maxima of some hundreds of groups: each of the c highest scores is in one of
the c groups with the highest maxima. This costs a fraction of the product; sorting all scores costs several times as much.
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
"""Candidates beyond the requested neighbours, so the proof succeeds at the first try for nearly every row."""
_SUPPORT = 96
"""Candidates for a sparsemax; supports of trained vectors have some tens of members."""

_AT_ONCE = 16 << 20
"""Bytes of scores computed at once: for larger buffers malloc asks the system for memory each time."""
_ALIGNED = 32
"""CPUs multiply bf16 in tiles of 32 numbers; any other width costs 50 % more."""

WeighAndProve = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""Takes candidate scores [n, c] in descending order and a bound on the scores of all other keys [n]. Returns the weights of
the candidates, and which rows no other key could change."""


def unit_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Unit rows, rounded so that their products are exact in fp64; a zero row stays zero."""
    return normalise_rows(vectors)[0]


def top_softmax(
    queries: torch.Tensor, keys: torch.Tensor, k: int, temperature: float, executor: Executor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` keys with the highest cosine to each query, and their softmax weights.

    Args:
        queries: float32 [n, A], unit rows.
        keys: float32 [m, A], unit rows.

    Returns:
        [n, k] indices in descending order of cosine, and [n, k] weights whose rows sum to 1.
    """
    k = min(k, len(keys))

    def weigh_and_prove(
        scores: NDArray[np.float64], outside: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        top = scores[:, :k]
        exponentials = np.exp((top - top[:, :1]) / temperature)
        return exponentials / exponentials.sum(axis=1, keepdims=True), scores[:, k - 1] > outside

    return _weigh_neighbours(queries, keys, k + _SPARE, weigh_and_prove, executor or LocalExecutor())


def top_sparsemax(
    queries: torch.Tensor, keys: torch.Tensor, executor: Executor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sparsemax of the cosines with all keys (Martins and Astudillo, ICML 2016), computed from the highest ones.

    Sparsemax gives weight only to the highest scores: if all other scores are below the threshold of the candidates, the
    result is exact.

    Returns:
        [n, k] indices and [n, k] weights, 0 outside the support; k is the largest support.
    """

    def weigh_and_prove(
        scores: NDArray[np.float64], outside: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        weights, threshold = sparsemax_sorted(scores)
        return weights, threshold >= outside

    return _weigh_neighbours(queries, keys, _SUPPORT, weigh_and_prove, executor or LocalExecutor())


def sparsemax_sorted(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sparsemax of rows in descending order [n, m], and the threshold of each row [n]."""
    order = np.arange(1, scores.shape[1] + 1)
    total = scores.cumsum(axis=1)
    support = (1 + order * scores > total).sum(axis=1)
    threshold = (np.take_along_axis(total, support[:, None] - 1, axis=1)[:, 0] - 1) / support
    return np.maximum(scores - threshold[:, None], 0.0), threshold


def _weigh_neighbours(
    queries: torch.Tensor, keys: torch.Tensor, candidates_per_query: int, weigh_and_prove: WeighAndProve, executor: Executor
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices of the keys nearest to each query, and the weights that `weigh_and_prove` gives them.

    Args:
        candidates_per_query: for the first try; rows without a proof get more.

    Raises:
        DataError: there are no keys.
    """
    if not len(keys):
        raise DataError("no source token has a vector.", "transfer", "Check the vectors and the source model.")
    bf16_keys, rounding_error = to_bf16(keys) if is_bf16_fast() else (None, 0.0)
    parts = _blocks(queries, len(keys), candidates_per_query, executor.block_bytes, executor.tasks)
    # Operations of one product: 2 A; selecting the highest takes as long as about 50 more.
    operations = float(len(queries)) * len(keys) * (2 * queries.shape[1] + 50)
    return _stack(
        list(
            executor(
                _block,
                parts,
                keys,
                bf16_keys,
                rounding_error,
                candidates_per_query,
                weigh_and_prove,
                executor.block_bytes,
                operations=operations,
            )
        )
    )


def _blocks(
    queries: torch.Tensor, keys: int, candidates_per_query: int, block_bytes: int, tasks: int = 1
) -> list[torch.Tensor]:
    """Splits queries by the memory that `_block` takes: for each query and its candidates, and for the candidates' rows."""
    query_bytes, row_bytes = 12 * queries.shape[1] + 120 * candidates_per_query, 12 * queries.shape[1]
    available = block_bytes - 2 * _at_once(block_bytes)
    if 2 * row_bytes * keys <= available:
        return blocks(queries, query_bytes, available - row_bytes * keys, tasks)
    return blocks(queries, query_bytes + row_bytes * candidates_per_query, available, tasks)


def _at_once(block_bytes: int) -> int:
    return min(_AT_ONCE, block_bytes // 8)


def is_bf16_fast() -> bool:
    """Whether this CPU multiplies bf16 in hardware; if not, bf16 gives the same results but is slower than fp32."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def to_bf16(keys: torch.Tensor) -> tuple[torch.Tensor, float]:
    """`keys` in bf16, transposed and padded, which multiplies fastest, and the largest rounding error of a row."""
    import torch

    bf16_keys = torch.zeros(-(-keys.shape[1] // _ALIGNED) * _ALIGNED, len(keys), dtype=torch.bfloat16)
    rounding_error = 0.0
    for rows, columns in zip(keys.split(4096), bf16_keys.split(4096, dim=1), strict=True):
        rounded = rows.bfloat16()
        columns[: keys.shape[1]] = rounded.T
        rounding_error = max(rounding_error, float(_rounding_errors(rows, rounded).max()))
    return bf16_keys, rounding_error


def _rounding_errors(rows: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounding error of each row, as a distance [n]."""
    return (rows - rounded.float()).norm(dim=1)


def _block(
    queries: torch.Tensor,
    keys: torch.Tensor,
    bf16_keys: torch.Tensor | None,
    rounding_error: float,
    candidates_per_query: int,
    weigh_and_prove: WeighAndProve,
    block_bytes: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and weights of one block, from `candidates_per_query` candidates a row, or more for rows that need them.

    Args:
        bf16_keys: `keys` in bf16 [A or more, m], to propose candidates; None for fp32.
        rounding_error: the largest of a key in `bf16_keys`, as a distance.
    """
    import torch

    candidates_per_query = min(candidates_per_query, len(keys))
    candidates, outside = propose_candidates(
        queries, keys.T if bf16_keys is None else bf16_keys, rounding_error, candidates_per_query, _at_once(block_bytes)
    )
    index, scores = _rescore(queries, keys, candidates)
    weights, is_proven = weigh_and_prove(scores, outside)
    weights[weights < 2.0**-126] = 0.0  # they underflow in fp32
    first = index[:, : weights.shape[1]], weights.astype(np.float32)
    if candidates_per_query == len(keys) or is_proven.all():
        return _stack([first])
    unproven = np.flatnonzero(~is_proven)
    more = candidates_per_query if bf16_keys is not None else 2 * candidates_per_query
    parts = _blocks(queries[torch.from_numpy(unproven)], len(keys), more, block_bytes)
    results = [first, *(_block(part, keys, None, 0.0, more, weigh_and_prove, block_bytes) for part in parts)]
    index, weight = _stack(results)
    index[unproven], weight[unproven] = index[len(queries) :], weight[len(queries) :]
    return _stack([(index[: len(queries)], weight[: len(queries)])])


def propose_candidates(
    queries: torch.Tensor, columns: torch.Tensor, rounding_error: float, candidates_per_query: int, at_once: int = _AT_ONCE
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `candidates_per_query` keys with the highest products, and a bound on the exact product of any other key [n].

    Products are in the precision of `columns` [A, m]; the keys are [n, candidates_per_query].

    For unit rows |fl(q.k) - q.k| <= A u in any order of summation in fp32, with u = 2^-24 (Higham 2002, section 3.1). In bf16
    both factors are rounded too, and the product is rounded to the nearest.
    """
    import torch

    rounded = torch.nn.functional.pad(queries.to(columns.dtype), (0, len(columns) - queries.shape[1]))
    step = max(1, at_once // (columns.element_size() * columns.shape[1]))
    results = [highest_scores(rows @ columns, candidates_per_query) for rows in rounded.split(step)]
    lowest = np.concatenate([lowest for _, lowest in results]).astype(np.float64)
    outside = lowest + 2 * len(columns) * 2.0**-24
    if columns.dtype != queries.dtype:
        # |q.k - q'.k'| <= |q - q'| |k'| + |q| |k - k'|
        outside += (
            _rounding_errors(queries, rounded[:, : queries.shape[1]]).double().numpy() * (1 + rounding_error) + rounding_error
        )
        outside += torch.finfo(columns.dtype).eps / 2 * np.abs(lowest)
    return np.concatenate([index for index, _ in results]), outside


def highest_scores(scores: torch.Tensor, candidates_per_query: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The columns of the highest scores of each row [n, candidates_per_query], unordered, and their lowest score [n]."""
    import torch

    size = scores.shape[1]
    members = round((size / candidates_per_query) ** 0.5)
    groups = size // members
    groups -= groups % _ALIGNED if groups - candidates_per_query >= _ALIGNED else 0
    members = size // groups
    best = scores[:, : groups * members].unflatten(1, (members, groups)).amax(dim=1)
    columns = _largest(best, candidates_per_query)[:, :, None] + groups * np.arange(members)
    remainder = np.broadcast_to(np.arange(groups * members, size), (len(scores), size - groups * members))
    columns = np.concatenate([columns.reshape(len(scores), -1), remainder], axis=1)
    candidate_scores = scores.gather(1, torch.from_numpy(columns))
    chosen_places = _largest(candidate_scores, candidates_per_query)
    chosen = candidate_scores.gather(1, torch.from_numpy(chosen_places))
    return np.take_along_axis(columns, chosen_places, axis=1), chosen.amin(dim=1).float().numpy()


def _largest(scores: torch.Tensor, candidates_per_query: int) -> NDArray[np.int64]:
    """Like `torch.topk(...).indices` but unordered, in a third of the time."""
    at = scores.shape[1] - candidates_per_query
    return np.argpartition(scores.float().numpy(), at, axis=1)[:, at:] if at else np.argsort(scores.float().numpy(), axis=1)


def _stack(
    blocks: list[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Concatenates blocks of different widths, padded to the longest row; the index is 0 where the weight is 0."""
    width = max((int((weight != 0).sum(axis=1).max(initial=1)) for _, weight in blocks), default=1)
    indices = [np.pad(indices, ((0, 0), (0, max(0, width - indices.shape[1]))))[:, :width] for indices, _ in blocks]
    weight = [np.pad(weight, ((0, 0), (0, max(0, width - weight.shape[1]))))[:, :width] for _, weight in blocks]
    weights = np.concatenate([np.empty((0, width), np.float32), *weight])
    return np.where(weights != 0, np.concatenate([np.empty((0, width), np.int64), *indices]), 0), weights


def _rescore(
    queries: torch.Tensor, keys: torch.Tensor, candidates: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The candidates and their scores in fp64, in descending order of score, ties by index."""
    import torch

    index = np.sort(candidates, axis=1)
    is_used = torch.zeros(len(keys), dtype=torch.bool)
    is_used[torch.from_numpy(index.ravel())] = True
    places = (is_used.cumsum(0) - 1)[torch.from_numpy(index.ravel())]
    rows = keys[is_used].double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sparse matrices are new to torch
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, index.size + 1, index.shape[1]),
            places,
            torch.zeros(index.size, dtype=torch.float64),
            (len(index), len(rows)),
            check_invariants=False,
        )
    products = torch.sparse.sampled_addmm(pattern, queries.double(), rows.T, beta=0.0)
    scores = products.values().view(index.shape).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(scores, order, axis=1)
