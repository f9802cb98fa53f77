"""Batch sizes of the steps of a run with a batch warm-up."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """Pure functions of the step."""

    batch: int
    """Rows of a step, after the warm-up."""
    warmup: tuple[tuple[int, int], ...]
    """(until, batch): other sizes for the steps before `until`, in order."""

    def size(self, step: int) -> int:
        """Rows of a step."""
        return next((batch for until, batch in self.warmup if step < until), self.batch)

    def offset(self, step: int) -> int:
        """Rows of all steps before `step`."""
        ends, sizes = self.phases()
        starts = [0, *ends]
        return sum(size * max(0, min(step, end) - start) for start, end, size in zip(starts, [*ends, step], sizes, strict=True))

    def phases(self) -> tuple[list[int], list[int]]:
        """The steps at which the batch size changes, and the sizes before, between and after them."""
        return [until for until, _ in self.warmup], [*(batch for _, batch in self.warmup), self.batch]
