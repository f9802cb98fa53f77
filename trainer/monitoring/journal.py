"""Writes what happens in a run to its log, and numbers to Prometheus and trackers."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.artifacts import storage
from trainer.config.train import TrainConfig
from trainer.models.flops import Flops, device_peak
from trainer.monitoring import run_log
from trainer.monitoring.metric_writers import MetricWriters
from trainer.monitoring.run_log import RunLog
from trainer.monitoring.step_outcome import StepOutcome
from trainer.monitoring.trackers import Tracked


class Journal:
    """Writes on the first rank only."""

    def __init__(
        self,
        uri: str,
        identity: str,
        config: TrainConfig,
        streams: list[str],
        flops: Flops,
        note: Callable[[str], None],
    ) -> None:
        """`note` shows the user a line."""
        self._identity, self._note = identity, note
        self._uri, self._config, self._streams, self._flops = uri, config, streams, flops
        self._log = RunLog(storage.join(uri, run_log.FOLDER)) if dist.get_rank() == 0 else None
        self._writers: MetricWriters | None = None
        self._peak = device_peak()

    def write(self, kind: str, **entry: Any) -> None:
        """Writes an entry and flushes it to the disk."""
        if self._log is None:
            return
        if kind == "start":
            self._writers = self._make_writers(entry["next_step"])
        self._log.write(kind, **entry)
        self._log.sync()
        if self._writers is None:
            return
        if kind == "evaluation":
            self._writers.evaluation(entry)
        elif kind in ("finished", "stopped"):
            self._writers.close()

    def _make_writers(self, next_step: int) -> MetricWriters:
        """The writers of this attempt. Reads the log of earlier ones only if there is a tracker."""
        before = run_log.read(storage.join(self._uri, run_log.FOLDER), fields=("step",)) if self._config.track else []
        seen = [entry for entries in before for entry in entries]
        run = Tracked(
            uri=self._uri,
            identity=self._identity,
            begun=str(seen[0]["time"] if seen else 0),
            next_step=next_step,
            settings=asdict(self._config),
        )
        return MetricWriters(run, self._config.track, seen, self._note)

    def step(
        self, step: int, order_step: int, outcome: StepOutcome, waited: float, seconds: float, communication: float | None
    ) -> None:
        """Writes a step: its `seconds`, those of them `waited` for rows, and those in collectives (`communication`)."""
        if self._log is None or self._writers is None:
            return
        world = dist.get_world_size()
        tflops = self._flops.step(outcome.tokens, sum(outcome.targets), outcome.attention_pairs) / seconds / world / 1e12
        streams = {
            name: {"loss": loss, "targets": targets}
            for name, loss, targets in zip(self._streams, outcome.losses, outcome.targets, strict=True)
            if targets
        }
        entry = {
            "step": step,
            "planned": order_step,
            "loss": outcome.loss,
            "norm": outcome.norm,
            "applied": outcome.is_applied,
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
        self._writers.step(entry)
