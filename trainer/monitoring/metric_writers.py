"""Writes numbers of steps and evaluations to Prometheus, through Ray, and to trackers."""

from collections.abc import Callable, Collection
from typing import Any

from ray.util.metrics import Gauge

from trainer.monitoring.trackers import Tracked, Tracker

_GAUGES = {
    "loss": "Mean loss of a target",
    "norm": "Norm of the gradient before clipping",
    "rate": "Learning rate",
    "tokens_per_second": "Tokens trained on in a second by all workers, without padding",
    "tflops": "Useful operations a second and device, in 10^12",
    "mfu": "Useful operations as a share of the device's peak",
    "data_wait_share": "Share of a step spent waiting for rows",
    "padding": "Share of the tokens that are padding",
    "step": "Steps made",
}
"""Names in the trackers, and with `scion_` before them in Prometheus."""


class MetricWriters:
    """On the first rank."""

    def __init__(self, run: Tracked, track: Collection[str], seen: list[dict[str, Any]], warn: Callable[[str], None]) -> None:
        """
        Args:
            seen: the log's entries of earlier attempts. TensorBoard removes repeated steps; other trackers cannot, so that they
                are not sent a step twice.
        """
        self._gauges = {name: Gauge(f"scion_{name}", description, tag_keys=("run",)) for name, description in _GAUGES.items()}
        self._streams = Gauge("scion_stream_loss", "Mean loss of a target, by language", tag_keys=("run", "stream"))
        self._run = _ascii(run.uri)
        self._trackers = {kind: Tracker(kind, run, warn) for kind in track}
        self._sent = {
            kind: max((entry["step"] for entry in seen if entry["kind"] == kind), default=-1) for kind in ("step", "evaluation")
        }

    def step(self, entry: dict[str, Any]) -> None:
        """Writes a log entry of kind `step`."""
        numbers = {name: float(entry[name]) for name in _GAUGES if entry.get(name) is not None}
        for name, value in numbers.items():
            self._gauges[name].set(value, {"run": self._run})
        for name, part in entry["streams"].items():
            self._streams.set(part["loss"], {"run": self._run, "stream": _ascii(name)})
            numbers[f"loss/{name}"] = part["loss"]
        self._send_to_trackers("step", entry["step"], numbers)

    def evaluation(self, entry: dict[str, Any]) -> None:
        """Writes a log entry of kind `evaluation`."""
        numbers = {f"evaluation/{name}": value for name, value in entry.items() if isinstance(value, float)}
        for way, scores in entry.get("retrieval", {}).items():
            numbers |= {f"evaluation/{name}/{way}": value for name, value in scores.items()}
        self._send_to_trackers("evaluation", entry["step"], numbers)

    def close(self) -> None:
        """Sends what is queued: the run ends or stops."""
        for tracker in self._trackers.values():
            tracker.close()

    def _send_to_trackers(self, kind: str, step: int, numbers: dict[str, float]) -> None:
        """Sends numbers of a step to the trackers.

        Steps that an earlier attempt has sent with this `kind` of entry go to TensorBoard only, which replaces them.
        """
        again, self._sent[kind] = step <= self._sent[kind], max(step, self._sent[kind])
        for name, tracker in self._trackers.items():
            if name == "tensorboard" or not again:
                tracker.put(step, numbers)


def _ascii(name: str) -> str:
    """Ray accepts Prometheus labels in ASCII only."""
    return name.encode("ascii", "backslashreplace").decode()
