"""API keys: a request needs one of the keys in SCION_API_KEYS, where that names any."""

import hmac
import os
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.serve.protocol import RequestError
from cluster.serve.responses import error_response

ENVIRONMENT = "SCION_API_KEYS"
"""Not a setting of a configuration, which is printed, saved and sent around."""
_OPEN = ("/health", "/ready")
"""Paths that need no key: orchestrators ask them."""


def read_keys() -> tuple[str, ...]:
    """The keys in the environment, which are separated by commas."""
    return tuple(filter(None, (key.strip() for key in os.environ.get(ENVIRONMENT, "").split(","))))


class RequireKey:
    """Answers requests without a known key with 401."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN and not self._is_known(Headers(scope=scope)):
            what, fix = "the API key is missing or wrong.", "Send the header `Authorization: Bearer KEY`."
            response = error_response(RequestError(what, "", fix, 401, "invalid_api_key"))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        # All keys are compared, in constant time: how long it takes says nothing about them.
        matches = [hmac.compare_digest(key.strip().encode(), known) for known in self._keys]
        return kind.lower() == "bearer" and any(matches)
