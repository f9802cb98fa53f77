"""Observes requests: an id for each, metrics, a line in the log, a trace, and a header that says where the time went."""

import logging
import uuid
from collections.abc import Sequence
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.serve.metrics import Recorder
from cluster.serve.request_record import CURRENT, RequestRecord
from cluster.serve.tracing import Tracing

_log = logging.getLogger("scion.serve.requests")
_ID_BYTES = 128
"""Length of a request id that a client gives, at most."""
_OTHER = "other"
"""Route of paths that are not served: each would be a series of its own."""


class Observe:
    """Wraps the API."""

    def __init__(self, app: ASGIApp, paths: Sequence[str], recorder: Recorder, tracing: Tracing | None) -> None:
        """
        Args:
            paths: those that are served; one may end with a parameter.
        """
        self._app, self._recorder, self._tracing = app, recorder, tracing
        self._paths = {path for path in paths if "{" not in path}
        self._prefixes = {path.partition("{")[0]: path for path in paths if "{" in path}
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(id=_id(scope), status=500)  # Starlette answers with 500 if the API raises an error

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode()), *_timing(record)]
            await send(message)

        self._count(+1)
        mark = CURRENT.set(record)
        try:
            await self._app(scope, receive, observed_send)
        finally:
            CURRENT.reset(mark)
            self._count(-1)
            self._note(scope, record)

    def _count(self, change: int) -> None:
        self._ongoing += change
        self._recorder.record("scion_requests_in_progress", self._ongoing)

    def _note(self, scope: Scope, record: RequestRecord) -> None:
        """Records a request that is over."""
        ended = perf_counter()
        route = self._route(scope["path"].removeprefix(scope.get("root_path", "")))
        self._recorder.record("scion_requests_total", 1, route, record.model, str(record.status))
        self._recorder.record("scion_request_seconds", ended - record.began, route, record.model)
        phases = record.phases()
        for phase, (begin, end) in phases.items():
            self._recorder.record(f"scion_{phase}_seconds", end - begin)
        if record.texts:
            self._recorder.record("scion_request_texts", record.texts)
        if self._tracing is not None:
            self._tracing.export(scope, route, record, ended)
        if _log.isEnabledFor(logging.INFO):
            milliseconds = {f"{phase}_ms": round(1000 * (end - begin), 2) for phase, (begin, end) in phases.items()}
            about = {"request_id": record.id, "method": scope["method"], "path": scope["path"], "status": record.status}
            size = {
                "model": record.model or None,
                "texts": record.texts,
                "tokens": record.tokens,
                "ms": round(1000 * (ended - record.began), 2),
            }
            _log.info("request", extra={"fields": about | size | milliseconds})

    def _route(self, path: str) -> str:
        """The path of the route: what a client wrote otherwise would make a series of its own."""
        if path in self._paths:
            return path
        return next((route for prefix, route in self._prefixes.items() if path.startswith(prefix)), _OTHER)


def _id(scope: Scope) -> str:
    """The client's id of a request, if it is short and printable; else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    if 0 < len(given) <= _ID_BYTES and all(33 <= byte < 127 for byte in given):
        return str(given.decode())
    return uuid.uuid4().hex


def _timing(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    """The header `Server-Timing` (W3C), in milliseconds, which browsers show."""
    phases = [f"{phase};dur={1000 * (end - begin):.2f}" for phase, (begin, end) in record.phases().items()]
    return [(b"server-timing", ", ".join(phases).encode())] if phases else []
