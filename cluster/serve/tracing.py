"""Traces of requests for OpenTelemetry: a span for each, and one for each of its phases, sent by OTLP.

Spans are made when a request is over, from the moments of its record, so that they cost it nothing.
"""

import os
import threading
import time
from typing import Any

from starlette.types import Scope

from cluster.serve.request_record import RequestRecord
from data_pipeline.errors import ConfigError

_CLOSE_SECONDS = 2.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Tracing:
    """Sends spans where the environment says, by OpenTelemetry's own variables."""

    def __init__(self, exporter: Any = None) -> None:
        """
        Args:
            exporter: an OpenTelemetry `SpanExporter`; OTLP over HTTP when not given.

        Raises:
            ConfigError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            fix = "Install scion-lm[traces], or unset the variable."
            raise ConfigError("traces need OpenTelemetry.", _ENDPOINTS[1], fix) from error
        # The name is a default: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are ahead of it.
        name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "scion-serve"}
        self._provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("scion.serve")
        self._kind, self._inside, self._parents = SpanKind.SERVER, set_span_in_context, TraceContextTextMapPropagator()

    def export(self, scope: Scope, route: str, record: RequestRecord, ended: float) -> None:
        """Sends the spans of a request that ended at a moment of `time.perf_counter`; its client may have begun the trace."""
        # Measured anew: the clock of the machine may be set while the server runs, and the other one stops while it sleeps.
        offset = time.time_ns() - time.perf_counter_ns()
        parents = self._parents.extract({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
        attributes = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": record.status,
            "scion.request_id": record.id,
            "scion.texts": record.texts,
            "scion.tokens": record.tokens,
        }
        name, began = f"{scope['method']} {route}", _ns(record.began, offset)
        span = self._tracer.start_span(name, parents, self._kind, attributes, start_time=began)
        for phase, (begin, end) in record.phases().items():
            part = self._tracer.start_span(phase, self._inside(span), start_time=_ns(begin, offset))
            part.end(_ns(end, offset))
        span.end(_ns(ended, offset))

    def close(self) -> None:
        """Sends what waits, for a while: a collector that does not answer must not hold up the end of a server."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_CLOSE_SECONDS)


def _ns(moment: float, offset: int) -> int:
    return int(moment * 1e9) + offset


def tracing_from_environment() -> Tracing | None:
    """Tracing where OTEL_EXPORTER_OTLP_ENDPOINT is set; ConfigError if OpenTelemetry is not installed there."""
    return Tracing() if any(os.environ.get(name) for name in _ENDPOINTS) else None
