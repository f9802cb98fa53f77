"""The order of a run: `slot -> (stream, epoch, row)`, a pure function of seed and manifest.

It never depends on the number of workers: which rank computes a slot is decided afterwards. Within a stream the order is a
two-level shuffle: blocks of rows are permuted, and rows are permuted inside a window of blocks, so that reads stay bounded.
Any slot is found in constant time and memory, without the slots before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.order.batch_sizes import BatchSizes
from data_pipeline.order.mixture import LAST_SLOT, assign, counts, quantise
from data_pipeline.order.permutation import permute

BLOCK = 64
"""Rows that stay together in the first level of the shuffle: a row group of the shards."""
_TOGETHER = 1 << 21
"""Streams times slots that are looked up together at most, 8 bytes each a few times over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The rows of one language, by number."""

    name: str
    rows: int
    weight: float = 1.0
    """Share of the slots, relative to the other streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Other weights for the steps before `until`: a curriculum has several, in order."""

    until: int
    weights: tuple[float, ...]
    """One a stream; 0 leaves it out."""


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

    @classmethod
    def concat(cls, parts: list["Slots"]) -> "Slots":
        """One after the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__})

    def take(self, index: NDArray[np.int64]) -> "Slots":
        return Slots(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """The whole run's order.

    A step has `batch` slots, fewer in a warm-up of the batch: slot j of step s is the global slot `sizes.offset(s) + j`. A
    stream's rows are counted on through all stages, so that none comes twice before all of its stream came once.
    """

    streams: tuple[Stream, ...]
    batch: int
    seed: int
    warmup: tuple[tuple[int, int], ...] = ()
    """(until, batch): other batch sizes for the steps before `until`, in order."""
    stages: tuple[Phase, ...] = ()
    window: int = 16
    """Blocks among which rows are mixed in the second level."""

    def __post_init__(self) -> None:
        empty = [stream.name for stream in self.streams if stream.rows == 0]
        if not self.streams or empty:
            raise DataError(f"no rows to train on{' in ' + ', '.join(empty) if empty else ''}.", fix="Give more text.")
        for name, ends in (("stages", [s.until for s in self.stages]), ("warm-up", [until for until, _ in self.warmup])):
            if sorted(set(ends)) != ends or (ends and ends[0] < 1):
                raise ConfigError(f"the steps at which {name} end must rise from 1 on, got {ends}.")

    @property
    def sizes(self) -> BatchSizes:
        return BatchSizes(batch=self.batch, warmup=self.warmup)

    @property
    def change_steps(self) -> tuple[int, ...]:
        """The steps from which on the mixture or the batch size is another."""
        return (*(stage.until for stage in self.stages), *(until for until, _ in self.warmup))

    def step(self, step: int) -> Slots:
        """The slots of one step, in order."""
        return self.lookup(self.sizes.offset(step) + np.arange(self.sizes.size(step)))

    def steps(self, steps: Sequence[int]) -> Iterator[Slots]:
        """The slots of each of some steps. Looked up together: with a hundred languages, one step after the other takes seven
        times as long."""
        largest = max([self.batch, *(batch for _, batch in self.warmup)])
        count = max(1, _TOGETHER // (len(self.streams) * largest))
        for first in range(0, len(steps), count):
            some = steps[first : first + count]
            found = self.lookup(np.concatenate([self.sizes.offset(step) + np.arange(self.sizes.size(step)) for step in some]))
            ends = np.cumsum([self.sizes.size(step) for step in some])
            yield from (found.take(np.arange(end - self.sizes.size(step), end)) for step, end in zip(some, ends, strict=True))

    def passes(self, steps: int) -> dict[str, float]:
        """How often the first `steps` go over each stream, by its name."""
        read = self._counts(self.sizes.offset(steps)).tolist()
        return {stream.name: rows / stream.rows for stream, rows in zip(self.streams, read, strict=True)}

    def lookup(self, slots: NDArray[np.int64]) -> Slots:
        """The planned rows of any global slots, each below `LAST_SLOT`."""
        if len(slots) and int(slots.max()) >= LAST_SLOT:
            raise ConfigError(f"a run may have {LAST_SLOT} rows.", fix="Lower steps or batch_size.")
        step, slot = self._steps(slots)
        chosen, position = self._assigned(slots)
        epoch, row = np.empty_like(position), np.empty_like(position)
        for number in np.unique(chosen):
            mine = np.flatnonzero(chosen == number)
            stream = self.streams[number]
            epoch[mine], offset = np.divmod(position[mine], stream.rows)
            row[mine] = self._shuffled(stream, epoch[mine], offset)
        return Slots(step=step, slot=slot, stream=chosen, epoch=epoch, row=row, weight=np.ones(len(slots), np.float32))

    def for_rank(self, step: int, rank: int, world: int, micro: int) -> Slots:
        """The slots of `step` that `rank` computes, `micro` to a micro-step (`part`)."""
        return self.rank_share(self.step(step), rank, world, micro)

    def rank_share(self, whole: Slots, rank: int, world: int, micro: int) -> Slots:
        """What `rank` computes of the slots of a step.

        The slots in order of stream and row are cut into one part a rank, so that a rank reads few row groups. A rank
        computes its part in order of the slots. What does not fill its micro-steps is filled up with copies of its first
        slot at weight 0, so that any number of workers can run any batch.
        """
        start, end = (len(whole) * edge // world for edge in (rank, rank + 1))
        mine = np.sort(np.lexsort((whole.row, whole.stream))[start:end])
        places = np.arange(-(-len(whole) // (micro * world)) * micro)
        real = places < len(mine)
        index = np.zeros_like(places)
        index[real] = mine
        index[~real] = mine[0] if len(mine) else 0
        # Copies are numbered behind the slots of the step, each once.
        slot = np.where(real, index, len(whole) + rank * len(places) - start + places - len(mine))
        return replace(whole.take(index), slot=slot, weight=real.astype(np.float32))

    def micro_steps(self, step: int, world: int, micro: int) -> int:
        """Micro-steps that each rank makes in a step."""
        return -(-self.sizes.size(step) // (micro * world))

    def _steps(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The step of each global slot, and the slot's number in it."""
        ends, sizes = self.sizes.phases()
        starts = np.array([0, *ends])
        offsets = np.array([self.sizes.offset(step) for step in starts])
        part = np.searchsorted(offsets, slots, side="right") - 1
        step, slot = np.divmod(slots - offsets[part], np.array(sizes)[part])
        return starts[part] + step, slot

    def _assigned(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The stream of each slot and its position in the stream, epochs counted on: stage after stage."""
        stream, position = np.empty_like(slots), np.empty_like(slots)
        for weights, start, end in self._mixtures():
            mine = np.flatnonzero((slots >= start) & (slots < end))
            if len(mine):
                stream[mine], inside = assign(weights, slots[mine] - start)
                position[mine] = inside + self._counts(start)[stream[mine]]
        return stream, position

    def _mixtures(self) -> Iterator[tuple[NDArray[np.int64], int, int]]:
        """The weights of each stage, with its first slot and the one behind its last."""
        parts = [*(part.weights for part in self.stages), tuple(stream.weight for stream in self.streams)]
        edges = [0, *(self.sizes.offset(stage.until) for stage in self.stages), LAST_SLOT]
        for weights, (start, end) in zip(parts, pairwise(edges), strict=True):
            yield quantise(np.array(weights)), start, end

    def _counts(self, slots: int) -> NDArray[np.int64]:
        """How many of the first `slots` each stream has."""
        found = np.zeros(len(self.streams), np.int64)
        for weights, start, end in self._mixtures():
            if start < slots:
                found += counts(weights, min(slots, end) - start)
        return found

    def _shuffled(self, stream: Stream, epoch: NDArray[np.int64], offset: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at `offset` of an epoch: blocks in one permutation, then rows within their window of blocks.

        The rows behind the last whole block keep the last place among the blocks; they mix with its window.
        """
        keys = keyed_random.bits(keyed_random.key("order", self.seed, stream.name), epoch)
        size = BLOCK * self.window
        window = offset // size
        whole, inside = stream.rows // size, np.empty_like(offset)
        for mine, rows in ((window < whole, size), (window == whole, stream.rows % size)):
            if mine.any():
                inner = keyed_random.bits(keys[mine], window[mine] + 1)
                inside[mine] = permute(inner, rows, offset[mine] - window[mine] * size)
        block, place = np.divmod(window * size + inside, BLOCK)
        full = stream.rows // BLOCK
        moved = block < full
        block[moved] = permute(keys[moved], full, block[moved])
        return block * BLOCK + place


def order_step(step: int, skipped: tuple[tuple[int, int], ...]) -> int:
    """The planned step of training step `step` when the planned steps [first, last) of `skipped`, in order, are left out."""
    for first, last in skipped:
        if step >= first:
            step += last - first
    return step
