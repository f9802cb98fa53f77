"""Where the numbers of a step go beside the log: Prometheus through Ray, and TensorBoard where it is asked for."""

from typing import Any

from ray.util.metrics import Gauge

from data_pipeline import storage

FOLDER = "tensorboard"
"""Below a run's folder."""
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
"""Names in TensorBoard, and with `scion_` before them in Prometheus."""


class Sinks:
    """Of the first rank."""

    def __init__(self, uri: str, tensorboard: bool, next_step: int) -> None:
        """What TensorBoard was told of steps from `next_step` on is taken back: those are made again."""
        self._gauges = {name: Gauge(f"scion_{name}", said, tag_keys=("run",)) for name, said in _GAUGES.items()}
        self._streams = Gauge("scion_stream_loss", "Mean loss of a target, by language", tag_keys=("run", "stream"))
        self._run, self._board = _ascii(uri), _writer(uri, next_step) if tensorboard else None

    def step(self, entry: dict[str, Any]) -> None:
        """An entry of the log of kind `step`."""
        for name, gauge in self._gauges.items():
            if entry.get(name) is not None:
                gauge.set(entry[name], {"run": self._run})
                self._told(name, entry[name], entry["step"])
        for name, part in entry["streams"].items():
            self._streams.set(part["loss"], {"run": self._run, "stream": _ascii(name)})
            self._told(f"loss/{name}", part["loss"], entry["step"])

    def evaluation(self, entry: dict[str, Any]) -> None:
        """One of kind `evaluation`."""
        for name, value in entry.items():
            if isinstance(value, float):
                self._told(f"evaluation/{name}", value, entry["step"])
        for way, scores in entry.get("retrieval", {}).items():
            for name, value in scores.items():
                self._told(f"evaluation/{name}/{way}", value, entry["step"])

    def _told(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, step)


def _ascii(name: str) -> str:
    """Ray takes labels of Prometheus in ASCII only."""
    return name.encode("ascii", "backslashreplace").decode()


def _writer(uri: str, next_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(storage.join(uri, FOLDER), purge_step=next_step, flush_secs=10)
