"""The server's metrics: one table, and two ways out. A process shows them at /metrics, a replica hands them to Ray's agent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = tuple(float(2**n) for n in range(0, 16))


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter, a gauge, or a histogram if it has buckets."""

    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_counter: bool = False


METRICS = {
    "scion_requests_total": Metric("Requests that were answered.", ("route", "model", "status"), is_counter=True),
    "scion_request_seconds": Metric("From the head of a request to its answer.", ("route", "model"), _SECONDS),
    "scion_requests_in_progress": Metric("Requests that are being read or answered."),
    "scion_read_seconds": Metric("Until the body of a request is there.", (), _SECONDS),
    "scion_tokenize_seconds": Metric("To parse and tokenize a request.", (), _SECONDS),
    "scion_queue_seconds": Metric("A tokenized request waits for its first forward pass.", (), _SECONDS),
    "scion_encode_seconds": Metric("From the first forward pass of a request to the end of its last.", (), _SECONDS),
    "scion_request_texts": Metric("Texts of a request.", (), _COUNTS),
    "scion_pass_seconds": Metric("Time of a forward pass.", (), _SECONDS),
    "scion_pass_texts": Metric("Texts of a forward pass.", (), _COUNTS),
    "scion_tokens_total": Metric("Tokens of texts in forward passes.", is_counter=True),
    "scion_padding_tokens_total": Metric("Tokens of padding in forward passes.", is_counter=True),
    "scion_waiting_texts": Metric("Texts that no forward pass has taken."),
}


class Recorder(Protocol):
    """Takes the values of metrics, from any thread."""

    def record(self, name: str, value: float, *labels: str) -> None:
        """Adds to a counter, sets a gauge, or observes a value of a histogram."""
        ...


class Prometheus:
    """Metrics of this process, as a page that Prometheus reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._instruments = {name: self._instrument(name, metric) for name, metric in METRICS.items()}

    def _instrument(self, name: str, metric: Metric) -> Any:
        if metric.buckets:
            return Histogram(name, metric.about, metric.labels, buckets=metric.buckets, registry=self._registry)
        return (Counter if metric.is_counter else Gauge)(name, metric.about, metric.labels, registry=self._registry)

    def record(self, name: str, value: float, *labels: str) -> None:
        instrument = self._instruments[name]
        _method(METRICS[name], instrument.labels(*labels) if labels else instrument)(value)

    def page(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class RayMetrics:
    """Metrics of a replica, which the agent of its node shows to Prometheus with `ray_` in front of their names."""

    def __init__(self) -> None:
        from ray.util import metrics  # a process without Ray does not wait for its import

        def instrument(name: str, metric: Metric) -> Any:
            if metric.buckets:
                return metrics.Histogram(name, metric.about, list(metric.buckets), metric.labels)
            return (metrics.Counter if metric.is_counter else metrics.Gauge)(name, metric.about, metric.labels)

        self._instruments = {name: instrument(name, metric) for name, metric in METRICS.items()}

    def record(self, name: str, value: float, *labels: str) -> None:
        if METRICS[name].is_counter and not value:
            return  # Ray's counters refuse to add nothing
        tags = dict(zip(METRICS[name].labels, labels, strict=True))
        _method(METRICS[name], self._instruments[name])(value, tags=tags)


def _method(metric: Metric, instrument: Any) -> Callable[..., None]:
    method: Callable[..., None] = (
        instrument.observe if metric.buckets else instrument.inc if metric.is_counter else instrument.set
    )
    return method
