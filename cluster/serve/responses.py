"""HTTP responses with JSON bodies."""

import orjson
from starlette.responses import Response

from cluster.serve.protocol import RequestError

_RETRY = (429, 503)
"""Statuses of errors that pass."""
_UNREAD = (401, 408, 413)
"""Statuses of errors after which a body may be on its way, which nobody will read."""


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    """The error in OpenAI's format."""
    headers = {"Retry-After": "1"} if error.status in _RETRY else {}
    if error.status in _UNREAD:
        headers["Connection"] = "close"
    return json_response(orjson.dumps(error.body()), error.status, headers)
