"""One optimizer step over all micro-batches of all ranks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from trainer.config.train import TrainConfig
from trainer.tasks.task import Batch

_TOLD = 5
"""Numbers at the head of the first all-reduce: wish, written, and the three of `_sizes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What a step came to, the same on every rank but for the seconds."""

    loss: float
    """Mean over the step's targets."""
    norm: float | None
    """Of the gradient, before clipping."""
    applied: bool
    """Whether the weights were updated: not where loss or gradient was not finite."""
    losses: list[float]
    """Mean over the targets of each stream; not a number where it had none."""
    targets: list[int]
    """Of each stream."""
    padding: float
    """Share of the tokens that are padding."""
    tokens: int
    """Without padding."""
    attention_pairs: int
    """Of tokens that see each other."""
    wishes: int
    """What the first rank wished for, as given."""
    written: int
    """Ranks that said that theirs is written."""
    own: list[float]
    """Of each rank, as given: the seconds of the step before that it needed by itself."""
    seconds: dict[str, float]
    """Where the time of this rank went."""


def set_rates(engine: Any, config: TrainConfig, step: int) -> None:
    """The learning rates of a step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = config.rate(step, group["embedding"], group["use_muon"])


def optimizer_step(
    engine: Any, batches: list[Batch], streams: int, wishes: int, written: bool, own: float = 0.0
) -> StepOutcome:
    """Forward, backward and update; every rank calls it with as many batches.

    The sum of losses is divided by the number of targets of the whole step, not batch by batch: ranks whose rows have
    fewer targets would weigh too much otherwise. The first all-reduce carries what the ranks have to tell each other.
    """
    device, world, clock = engine.device, dist.get_world_size(), _Clock()
    times = [0.0] * world
    times[dist.get_rank()] = own
    told = [wishes, int(written), *_sizes(batches), *times]
    shared = torch.tensor(told + _targets(batches, streams), dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    clock.lap("agree")
    targets = shared[-streams:]
    # DeepSpeed divides by accumulation steps and averages over ranks; both are multiplied back in.
    scale = world * engine.gradient_accumulation_steps() / max(1.0, float(targets.sum()))
    sums = torch.zeros(streams, dtype=torch.float64, device=device)
    for number, batch in enumerate(batches, 1):
        batch = batch.to(device)
        # Said each time, because DeepSpeed counts on from step to step, while a warm-up of the batch changes the number.
        engine.set_gradient_accumulation_boundary(number == len(batches))
        with clock.device("forward", device):
            losses = engine(batch)
        sums.index_add_(0, batch.streams, losses.detach().double())
        clock.lap("forward")
        engine.backward(losses.sum() * scale)
        clock.lap("backward")
        if number < len(batches):
            engine.step()
    dist.all_reduce(sums)
    clock.lap("agree")
    with _refusing_what_is_not_finite(engine.optimizer, sums.sum()):
        engine.step()
    norm = engine.get_global_grad_norm()
    told = shared.tolist()
    outcome = StepOutcome(
        loss=float(sums.sum() / targets.sum().clamp_min(1)),
        norm=None if norm is None else float(norm),
        applied=engine.was_step_applied(),
        losses=(sums / targets).tolist(),
        targets=[int(count) for count in targets.tolist()],
        tokens=int(told[2]),
        attention_pairs=int(told[3]),
        padding=1 - told[2] / max(1.0, told[4]),
        wishes=int(told[0]),
        written=int(told[1]),
        own=told[_TOLD : _TOLD + world],
        seconds=clock.seconds,
    )
    clock.lap("update")
    clock.read_device()
    return outcome


class _Clock:
    """Seconds of wall time by what they were spent on. A GPU works on behind, so that there only their sum says much."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def device(self, what: str, device: torch.device) -> Iterator[None]:
        """On a GPU, marks where the block begins and ends in the device's own work."""
        if device.type != "cuda":
            yield
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((what, begin, end))

    def read_device(self) -> None:
        """Seconds between those marks, as `device_...`. After the step's numbers have been read, so that nothing waits."""
        for what, begin, end in self._events:
            name = f"device_{what}"
            self.seconds[name] = round(self.seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000, 5)

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] = round(self.seconds.get(what, 0.0) + now - self._last, 5)
        self._last = now


def _sizes(batches: list[Batch]) -> list[float]:
    """Tokens without padding, pairs of them, and tokens with padding."""
    return [float(sum(getattr(batch, name) for batch in batches)) for name in ("tokens", "attention_pairs", "size")]


def _targets(batches: list[Batch], streams: int) -> list[float]:
    """Targets of each stream."""
    counts = torch.zeros(streams, dtype=torch.float64)
    for batch in batches:
        counts += batch.counts(streams)
    return counts.tolist()


@contextmanager
def _refusing_what_is_not_finite(optimizer: Any, loss: torch.Tensor) -> Iterator[None]:
    """While the block runs, DeepSpeed leaves the step out, and clears the gradients, if `loss` or the norm is not finite.

    ZeRO-3 does so for the norm; ZeRO-1 and 2 do under bf16 only where all gradients were scanned before (`check_grad_overflow`:
    six kernels a parameter), though the norm says as much. Here the norm is looked at in either; the loss is added as 0 or nan.
    """
    name = "_get_norm_groups" if hasattr(optimizer, "_get_norm_groups") else "scaled_global_norm"
    real = getattr(optimizer, name)

    def guarded(*arguments: Any, **options: Any) -> Any:
        norm = real(*arguments, **options)
        optimizer.check_grad_overflow = True
        nothing = loss * 0.0
        return [part + nothing.to(part.dtype) for part in norm] if isinstance(norm, list) else norm + nothing.to(norm.dtype)

    scan = optimizer.check_grad_overflow = getattr(optimizer, "check_grad_overflow", False)
    setattr(optimizer, name, guarded)
    try:
        yield
    finally:
        setattr(optimizer, name, real)
        optimizer.check_grad_overflow = scan
