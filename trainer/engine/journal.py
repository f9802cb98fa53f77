"""What the first rank tells of a run: to its log, and from there to Prometheus and TensorBoard."""

from typing import Any

import torch
import torch.distributed as dist

from data_pipeline import storage
from trainer.engine import runlog
from trainer.engine.config import TrainConfig
from trainer.engine.runlog import RunLog
from trainer.engine.sinks import Sinks
from trainer.engine.step import Outcome
from trainer.models.flops import Flops, peak


class Journal:
    """Silent on all ranks but the first."""

    def __init__(self, uri: str, config: TrainConfig, streams: list[str], flops: Flops) -> None:
        self._uri, self._config, self._streams, self._flops = uri, config, streams, flops
        self._log = RunLog(storage.join(uri, runlog.FOLDER)) if dist.get_rank() == 0 else None
        self._sinks: Sinks | None = None
        self._peak = peak()

    def write(self, kind: str, **entry: Any) -> None:
        """An entry that is on the disk when this returns."""
        if self._log is None:
            return
        if kind == "start":
            self._sinks = Sinks(self._uri, self._config.tensorboard, entry["next_step"])
        self._log.write(kind, **entry)
        self._log.sync()
        if kind == "evaluation" and self._sinks is not None:
            self._sinks.evaluation(entry)

    def step(
        self, step: int, planned: int, outcome: Outcome, waited: float, seconds: float, communication: float | None
    ) -> None:
        """A step that was made in `seconds`, of which `waited` for its rows and `communication` in collectives."""
        if self._log is None or self._sinks is None:
            return
        world = dist.get_world_size()
        tflops = self._flops.step(outcome.tokens, sum(outcome.targets), outcome.pairs) / seconds / world / 1e12
        streams = {
            name: {"loss": loss, "targets": targets}
            for name, loss, targets in zip(self._streams, outcome.losses, outcome.targets, strict=True)
            if targets
        }
        entry = {
            "step": step,
            "planned": planned,
            "loss": outcome.loss,
            "norm": outcome.norm,
            "applied": outcome.applied,
            "rate": self._config.rate(step, True),
            "world": world,
            "tokens": outcome.tokens,
            "padding": round(outcome.padding, 5),
            "streams": streams,
            "seconds": round(seconds, 5),
            "data_wait": round(waited, 5),
            "communication": communication,
            "data_wait_share": round(waited / seconds, 5),
            "tokens_per_second": round(outcome.tokens / seconds, 1),
            "tflops": round(tflops, 6),
            "mfu": None if self._peak is None else round(tflops * 1e12 / self._peak, 5),
            "memory": round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else None,
            **outcome.seconds,
        }
        self._log.write("step", **entry)
        self._sinks.step(entry)
