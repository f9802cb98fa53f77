"""The order of a run: `slot -> (stream, epoch, row)`, a pure function of seed and manifest.

It never depends on the number of workers: which rank computes a slot is decided afterwards. Within a stream the order
is a two-level shuffle: row groups are permuted, and rows are permuted inside a window of row groups, so that reads stay
bounded and any slot is found without the slots before it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.errors import DataError
from data_pipeline.order.mixture import assign
from data_pipeline.order.permutation import permute


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Rows of one language: row groups of `group_rows` rows each, the last one of a shard possibly smaller."""

    name: str
    group_rows: tuple[int, ...]
    weight: float = 1.0

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Planned rows, one entry a slot: parallel arrays [m]. `weight` 0 marks a row that only fills up the ranks."""

    step: NDArray[np.int64]
    slot: NDArray[np.int64]
    stream: NDArray[np.int64]
    epoch: NDArray[np.int64]
    row: NDArray[np.int64]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.slot)

    def take(self, index: NDArray[np.int64]) -> "Slots":
        return Slots(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderPlan:
    """The whole run's order. `batch` slots make a step; slot j of step s is the global slot `s * batch + j`."""

    streams: tuple[Stream, ...]
    batch: int
    seed: int
    window_groups: int = 16

    def __post_init__(self) -> None:
        empty = [stream.name for stream in self.streams if stream.rows == 0]
        if not self.streams or empty:
            raise DataError(f"no rows to train on{' in ' + ', '.join(empty) if empty else ''}.", fix="Give more text.")

    def step(self, step: int) -> Slots:
        """The slots of one step, in order."""
        return self.lookup(step * self.batch + np.arange(self.batch))

    def lookup(self, slots: NDArray[np.int64]) -> Slots:
        """The planned rows of any global slots."""
        weights = np.array([stream.weight for stream in self.streams])
        chosen, position = assign(weights / weights.sum(), slots)
        epoch, row = np.zeros_like(position), np.zeros_like(position)
        for number, stream in enumerate(self.streams):
            mine = chosen == number
            epoch[mine], row[mine] = self._shuffled(stream, position[mine])
        return Slots(
            step=slots // self.batch,
            slot=slots % self.batch,
            stream=chosen,
            epoch=epoch,
            row=row,
            weight=np.ones(len(slots), np.float32),
        )

    def for_rank(self, step: int, rank: int, world: int, micro: int) -> Slots:
        """The slots of `step` that `rank` computes, `micro` to a micro-step.

        Slot j goes to rank (j // micro) % world. A step that does not fill all ranks evenly is filled up with copies of
        its first slot at weight 0, so that any number of workers can run any batch.
        """
        whole = self.step(step)
        filled = -(-self.batch // (micro * world)) * micro * world
        index = np.arange(filled)
        mine = index[(index // micro) % world == rank]
        real = mine < self.batch
        slots = whole.take(np.where(real, mine, 0))
        return Slots(
            step=slots.step,
            slot=mine.astype(np.int64),
            stream=slots.stream,
            epoch=slots.epoch,
            row=slots.row,
            weight=real.astype(np.float32),
        )

    def micro_steps(self, world: int, micro: int) -> int:
        """Micro-steps that each rank makes in a step."""
        return -(-self.batch // (micro * world))

    def _shuffled(self, stream: Stream, position: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        epoch, offset = position // stream.rows, position % stream.rows
        row = np.empty_like(offset)
        for number in np.unique(epoch):
            mine = epoch == number
            row[mine] = self._shuffled_epoch(stream, int(number), offset[mine])
        return epoch, row

    def _shuffled_epoch(self, stream: Stream, epoch: int, offset: NDArray[np.int64]) -> NDArray[np.int64]:
        sizes = np.array(stream.group_rows, np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        key = keyed_random.key("order", self.seed, stream.name, epoch)
        groups = permute(key, len(sizes), np.arange(len(sizes)))
        ends = np.cumsum(sizes[groups])
        row = np.empty_like(offset)
        for first in range(0, len(groups), self.window_groups):
            window = groups[first : first + self.window_groups]
            base = ends[first - 1] if first else 0
            end = ends[min(first + self.window_groups, len(groups)) - 1]
            mine = (offset >= base) & (offset < end)
            if not mine.any():
                continue
            inside = permute(keyed_random.key(key, "window", first), int(end - base), offset[mine] - base)
            bounds = np.concatenate([[0], np.cumsum(sizes[window])])
            place = np.searchsorted(bounds, inside, side="right") - 1
            row[mine] = starts[window[place]] + inside - bounds[place]
        return row
