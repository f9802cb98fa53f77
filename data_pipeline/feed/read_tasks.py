"""Groups the slots of many steps into read tasks, so that a row group is read once and not again for each step.

The order mixes the rows of a stream within a window of blocks (`RowOrder.window`), and with many languages a step takes few
rows of each. So the feed looks at a span of many steps and reads a block when its first row is due. Rows that are due later
in the span arrive early and wait in the rank. The price is memory for waiting rows; the gain is that at most one window of
each stream is read again, at the end of a span.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_pipeline.order.row_order import BLOCK, RowOrder, Slots

WINDOW_ROWS = 512
"""Rows that count as due together: whole steps, at least one."""
_SPAN_WINDOWS = 64
"""Least number of windows in a full-grown span."""
_SPAN_TOKENS = 1 << 26
"""Most tokens in a span. All rows that can wait in a rank are of one span: 256 MiB at four bytes a token."""
_TASK_TOKENS = 1 << 20
"""Approximate tokens that one task reads, if that is more than `WINDOW_ROWS` rows."""
_GROWTH = 4


def spans(order: RowOrder, steps: tuple[int, int], share: int, world: int, length: int) -> list[tuple[int, int]]:
    """Cuts the steps [first, last) into spans.

    The first span is one window, so that the first batch arrives soon; later ones grow until each row is read less than twice.

    Args:
        share: rows of a rank in a step.
        length: approximate tokens of a row.
    """
    mixed_rows = 2 * len(order.streams) * order.window * BLOCK // world
    max_rows = min(max(_SPAN_WINDOWS * WINDOW_ROWS, mixed_rows), _SPAN_TOKENS // length)
    (first, last), rows, cuts = steps, WINDOW_ROWS, list[tuple[int, int]]()
    while first < last:
        cuts.append((first, min(first + max(1, min(rows, max_rows) // share), last)))
        first, rows = cuts[-1][1], rows * _GROWTH
    return cuts


def tasks(steps: list[Slots], length: int) -> Iterator[Slots]:
    """Divides the slots of consecutive steps into tasks, in the order in which they are due; each task keeps slot order.

    A task reads a block in the window in which the block's first row is due. A window with many blocks makes several tasks.
    """
    slots = Slots.concat(steps)
    window = np.repeat(np.arange(len(steps)), [len(step) for step in steps]) // max(1, WINDOW_ROWS // len(steps[0]))
    order = np.lexsort((slots.row // BLOCK, slots.epoch, slots.stream))
    edges = _edges(slots.stream[order], slots.epoch[order], slots.row[order] // BLOCK)
    sizes = np.diff(np.append(edges, len(order)))
    due = np.repeat(window[np.minimum.reduceat(order, edges)], sizes)  # slots are numbered in the order they are due
    rank = np.argsort(due, kind="stable")
    order, due, begins = order[rank], due[rank], np.repeat(edges, sizes)[rank]
    blocks = _edges(due, begins)
    starts = np.repeat(blocks, np.diff(np.append(blocks, len(order))))
    before = np.repeat(_edges(due), np.diff(np.append(_edges(due), len(order))))
    part = (starts - before) // max(WINDOW_ROWS, _TASK_TOKENS // length)
    for members in np.split(order, _edges(due, part)[1:]):
        yield slots.take(np.sort(members))


def _edges(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions at which the columns differ from the position before; includes 0."""
    changed = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return np.append(0, np.flatnonzero(changed) + 1)
