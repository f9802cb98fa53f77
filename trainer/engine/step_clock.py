"""Where the time of a step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Seconds of wall time by what they were spent on. A GPU works asynchronously: there only their sum means much."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def device(self, what: str, device: torch.device) -> Iterator[None]:
        """On a GPU, marks the begin and the end of the block in the device's queue."""
        if device.type != "cuda":
            yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((what, begin, end))

    def read_device(self) -> None:
        """Adds the seconds between those marks, as `device_...`. Called after the step's numbers were read, it never waits."""
        for what, begin, end in self._events:
            name = f"device_{what}"
            self.seconds[name] = round(self.seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000, 5)

    def lap(self, what: str) -> None:
        """Adds the time since the last lap to `what`."""
        now = time.perf_counter()
        self.seconds[what] = round(self.seconds.get(what, 0.0) + now - self._last, 5)
        self._last = now
