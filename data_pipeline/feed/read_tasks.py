"""Which rows a read task fetches: a row group once for many steps, where each step alone would read it again.

The order mixes the rows of a stream within a window of blocks (`OrderPlan.window`), and with many languages a step takes few
rows of each. So the feed plans a span of many steps, and reads a block when its first row is due. The rows that are due later
in the span arrive early and wait in the rank. This costs memory for the waiting rows and saves reading: at most one window of
each stream is read again at the end of a span.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.row_order import BLOCK, RowOrder, Slots

WINDOW_ROWS = 512
"""Rows that are due together: whole steps, at least one."""
_SPAN_WINDOWS = 64
"""Windows of a span, at least, once spans have grown."""
_SPAN_TOKENS = 1 << 26
"""Tokens of a span, at most: its rows, which are all that can wait in a rank, take 256 MiB at four bytes a token."""
_TASK_TOKENS = 1 << 20
"""Tokens that one task fetches, about, if that is more than `WINDOW_ROWS` rows."""
_GROWTH = 4


def spans(plan: RowOrder, steps: tuple[int, int], share: int, world: int, length: int) -> list[tuple[int, int]]:
    """Cuts the steps [first, last) into spans: the first is one window, so that the first batch is there soon, and later ones
    grow until they are long enough to read each row less than twice.

    Args:
        share: rows of a rank in a step.
        length: tokens of a row, about.
    """
    mixed = 2 * len(plan.streams) * plan.window * BLOCK // world
    most = min(max(_SPAN_WINDOWS * WINDOW_ROWS, mixed), _SPAN_TOKENS // length)
    (first, last), rows, cuts = steps, WINDOW_ROWS, list[tuple[int, int]]()
    while first < last:
        cuts.append((first, min(first + max(1, min(rows, most) // share), last)))
        first, rows = cuts[-1][1], rows * _GROWTH
    return cuts


def tasks(steps: list[Slots], length: int) -> Iterator[Slots]:
    """The slots of consecutive steps, by the task that reads them, the first that is due first; each in order of the slots.

    A block is read in the window in which its first row is due. Windows with many blocks are divided into several tasks.
    """
    slots = Slots.concat(steps)
    window = np.repeat(np.arange(len(steps)), [len(step) for step in steps]) // max(1, WINDOW_ROWS // len(steps[0]))
    order = np.lexsort((slots.row // BLOCK, slots.epoch, slots.stream))
    edges = _edges(slots.stream[order], slots.epoch[order], slots.row[order] // BLOCK)
    sizes = np.diff(np.append(edges, len(order)))
    due = np.repeat(window[np.minimum.reduceat(order, edges)], sizes)  # slots are numbered in the order in which they are due
    rank = np.argsort(due, kind="stable")
    order, due, begins = order[rank], due[rank], np.repeat(edges, sizes)[rank]
    blocks = _edges(due, begins)
    starts = np.repeat(blocks, np.diff(np.append(blocks, len(order))))
    before = np.repeat(_edges(due), np.diff(np.append(_edges(due), len(order))))
    part = (starts - before) // max(WINDOW_ROWS, _TASK_TOKENS // length)
    for one in np.split(order, _edges(due, part)[1:]):
        yield slots.take(np.sort(one))


def _edges(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where a row of the columns differs from the one before, the first included."""
    changed = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.append(0, np.flatnonzero(changed) + 1)
