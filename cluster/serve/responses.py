"""HTTP responses with JSON bodies."""

import asyncio
from contextlib import suppress

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.serve.protocol import RequestError

_RETRY = (429, 503)
"""Statuses of errors that pass."""
_LINGER_SECONDS = 2.0
"""Time for which the rest of a body is read, and thrown away, behind the answer to it."""
_UNREAD = (401, 408, 413)
"""Statuses of errors after which a body may be on its way, which nobody will read."""


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    """The error in OpenAI's format."""
    content = orjson.dumps(error.body())
    if error.status in _UNREAD:
        return _Farewell(content, error.status, {"Connection": "close"}, "application/json")
    return json_response(content, error.status, {"Retry-After": "1"} if error.status in _RETRY else {})


class _Farewell(Response):
    """An answer to a request whose body may still be on its way.

    A connection that is closed while bytes arrive is reset, and the client may lose the answer (RFC 9112, section 9.6). So they
    are read on for a while.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})
