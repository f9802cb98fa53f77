"""The order of training rows: `slot -> (stream, epoch, row)`, a pure function of seed and manifest.

It does not depend on the number of workers: slots are divided among ranks afterwards. Within a stream the order is a
two-level shuffle: blocks of rows are permuted, and rows are permuted inside a window of blocks, which bounds the reads.
Any slot is computed in constant time and memory, without the slots before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.order.batch_sizes import BatchSizes
from data_pipeline.order.mixture import LAST_SLOT, assign, counts, quantise
from data_pipeline.order.permutation import permute

BLOCK = 64
"""Rows that stay together in the first level of the shuffle: a row group of the shards."""
_LOOKUP_SIZE = 1 << 21
"""Streams times slots of one look-up at most: a few arrays of 8 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The rows of one language, by number."""

    name: str
    rows: int
    weight: float = 1.0
    """Share of the slots, relative to the other streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase of the language mixture: weights for the steps before `until`. A curriculum has several, in order."""

    until: int
    weights: tuple[float, ...]
    """One a stream; 0 leaves the stream out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Slots and their rows, as parallel arrays [m]. `weight` 0 marks a copy that only fills a micro-batch."""

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
        """The slots of all parts, one part after the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__})

    def take(self, index: NDArray[np.int64]) -> "Slots":
        return Slots(**{name: getattr(self, name)[index] for name in self.__slots__})


class _Mixture(NamedTuple):
    """The slots [start, end) of a run, which a mixture divides among the streams, `together` slots at a time."""

    weights: NDArray[np.int64]
    start: int
    end: int
    together: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """The order of all rows of a run.

    A step has `batch` slots, fewer in a batch warm-up: slot j of step s is the global slot `sizes.offset(s) + j`. The count
    of a stream's rows continues through all phases, so that no row comes twice before all rows of its stream came once.
    """

    streams: tuple[Stream, ...]
    batch: int
    seed: int
    warmup: tuple[tuple[int, int], ...] = ()
    """(until, batch): other batch sizes for the steps before `until`, in order."""
    stages: tuple[Phase, ...] = ()
    window: int = 16
    """Blocks among which the second level mixes rows."""
    whole_steps: bool = False
    """Whether the mixture divides the steps among the streams, so that all rows of a step are of one stream."""

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
        """The steps at which the mixture or the batch size changes."""
        return (*(phase.until for phase in self.stages), *(until for until, _ in self.warmup))

    def step(self, step: int) -> Slots:
        """The slots of one step, in order."""
        return self.lookup(self.sizes.offset(step) + np.arange(self.sizes.size(step)))

    def steps(self, steps: Sequence[int]) -> Iterator[Slots]:
        """The slots of each step.

        Looks many steps up at once: with a hundred languages, single steps take seven times as long.
        """
        largest = max([self.batch, *(batch for _, batch in self.warmup)])
        count = max(1, _LOOKUP_SIZE // (len(self.streams) * largest))
        for first in range(0, len(steps), count):
            chunk = steps[first : first + count]
            slots = self.lookup(np.concatenate([self.sizes.offset(step) + np.arange(self.sizes.size(step)) for step in chunk]))
            ends = np.cumsum([self.sizes.size(step) for step in chunk])
            yield from (slots.take(np.arange(end - self.sizes.size(step), end)) for step, end in zip(chunk, ends, strict=True))

    def passes(self, steps: int) -> dict[str, float]:
        """Passes over each stream in the first `steps`, by stream name."""
        counts = self._counts(self.sizes.offset(steps)).tolist()
        return {stream.name: rows / stream.rows for stream, rows in zip(self.streams, counts, strict=True)}

    def lookup(self, slots: NDArray[np.int64]) -> Slots:
        """The rows of any global slots, each below `LAST_SLOT`."""
        if len(slots) and int(slots.max()) >= LAST_SLOT:
            raise ConfigError(f"a run may have {LAST_SLOT} rows.", fix="Lower steps or batch_size.")
        step, slot = self._steps(slots)
        streams, position = self._assign(slots)
        epoch, row = np.empty_like(position), np.empty_like(position)
        for number in np.unique(streams):
            mine = np.flatnonzero(streams == number)
            stream = self.streams[number]
            epoch[mine], offset = np.divmod(position[mine], stream.rows)
            row[mine] = self._shuffle(stream, epoch[mine], offset)
        return Slots(step=step, slot=slot, stream=streams, epoch=epoch, row=row, weight=np.ones(len(slots), np.float32))

    def for_rank(self, step: int, rank: int, world: int, micro: int) -> Slots:
        """The slots of `step` that `rank` computes in micro-batches of `micro` rows (`rank_share`)."""
        return self.rank_share(self.step(step), rank, world, micro)

    def rank_share(self, whole: Slots, rank: int, world: int, micro: int) -> Slots:
        """The slots that `rank` computes, of all slots of a step.

        The slots, sorted by stream and row, are cut into one part a rank, so that a rank reads few row groups. A rank
        computes its part in slot order. Copies of its first slot with weight 0 fill the last micro-batch, so that any number
        of workers can run any batch.
        """
        start, end = (len(whole) * edge // world for edge in (rank, rank + 1))
        mine = np.sort(np.lexsort((whole.row, whole.stream))[start:end])
        places = np.arange(-(-len(whole) // (micro * world)) * micro)
        is_real = places < len(mine)
        index = np.zeros_like(places)
        index[is_real] = mine
        index[~is_real] = mine[0] if len(mine) else 0
        # Copies get unique slot numbers after those of the step.
        slot = np.where(is_real, index, len(whole) + rank * len(places) - start + places - len(mine))
        return replace(whole.take(index), slot=slot, weight=is_real.astype(np.float32))

    def micro_steps(self, step: int, world: int, micro: int) -> int:
        """Micro-batches that each rank computes in a step."""
        return -(-self.sizes.size(step) // (micro * world))

    def _steps(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The step of each global slot, and the slot's number in it."""
        ends, sizes = self.sizes.phases()
        starts = np.array([0, *ends])
        offsets = np.array([self.sizes.offset(step) for step in starts])
        part = np.searchsorted(offsets, slots, side="right") - 1
        step, slot = np.divmod(slots - offsets[part], np.array(sizes)[part])
        return starts[part] + step, slot

    def _assign(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The stream of each slot and its position in the stream, counted through all epochs and phases."""
        stream, position = np.empty_like(slots), np.empty_like(slots)
        for part in self._mixtures():
            mine = np.flatnonzero((slots >= part.start) & (slots < part.end))
            if len(mine):
                turn, rest = np.divmod(slots[mine] - part.start, part.together)
                stream[mine], turns = assign(part.weights, turn)
                position[mine] = turns * part.together + rest + self._counts(part.start)[stream[mine]]
        return stream, position

    def _mixtures(self) -> Iterator[_Mixture]:
        """The parts of the run within which weights, and with whole steps the batch size, stay the same."""
        ends = {phase.until for phase in self.stages} | ({until for until, _ in self.warmup} if self.whole_steps else set())
        for first, last in zip([0, *sorted(ends)], [*sorted(ends), None], strict=True):
            weights = next((phase.weights for phase in self.stages if first < phase.until), None)
            yield _Mixture(
                weights=quantise(np.array([stream.weight for stream in self.streams] if weights is None else weights)),
                start=self.sizes.offset(first),
                end=LAST_SLOT if last is None else self.sizes.offset(last),
                together=self.sizes.size(first) if self.whole_steps else 1,
            )

    def _counts(self, slots: int) -> NDArray[np.int64]:
        """Rows of each stream among the first `slots`."""
        rows = np.zeros(len(self.streams), np.int64)
        for part in self._mixtures():
            if part.start < slots:
                turns, rest = divmod(min(slots, part.end) - part.start, part.together)
                rows += counts(part.weights, turns) * part.together
                if rest:
                    rows[assign(part.weights, np.array([turns]))[0][0]] += rest
        return rows

    def _shuffle(self, stream: Stream, epoch: NDArray[np.int64], offset: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at `offset` of an epoch: permutes blocks, then rows within their window of blocks.

        The rows after the last whole block stay last among the blocks; they mix within the last window.
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
        is_full = block < full
        block[is_full] = permute(keys[is_full], full, block[is_full])
        return block * BLOCK + place


def order_step(step: int, skipped: tuple[tuple[int, int], ...]) -> int:
    """The order step of training step `step`, given the skipped order steps [first, last), ascending."""
    for first, last in skipped:
        if step >= first:
            step += last - first
    return step
