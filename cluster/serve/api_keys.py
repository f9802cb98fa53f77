"""API keys: a request needs one of the keys in SCION_API_KEYS, where that names any."""

import hmac
import os
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.serve import page
from cluster.serve.protocol import RequestError
from cluster.serve.responses import error_response
from data_pipeline.errors import ConfigError

ENVIRONMENT = "SCION_API_KEYS"
"""Not a setting of a configuration, which is printed, saved and sent around."""
_OPEN = ("/health", "/ready", *page.OPEN_PATHS)
"""Paths that need no key, beside the assets of the page: orchestrators and browsers ask them."""


def read_keys() -> tuple[str, ...]:
    """The keys in the environment, which are separated by commas.

    Raises:
        ConfigError: the variable is set and names no key: without one the server would be open.
    """
    given = os.environ.get(ENVIRONMENT)
    keys = tuple(filter(None, (key.strip() for key in (given or "").split(","))))
    if given is not None and not keys:
        raise ConfigError("it names no key.", ENVIRONMENT, "Unset it to serve without keys, or write KEY,KEY.")
    return keys


class RequireKey:
    """Answers requests without a known key with 401."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [os.fsencode(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope) and not self._is_known(scope):
            what, fix = "the API key is missing or wrong.", "Send the header `Authorization: Bearer KEY`."
            response = error_response(RequestError(what, "", fix, 401, "invalid_api_key"))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.replace(b"\t", b" ").partition(b" ")
        # All keys are compared, in constant time: how long it takes says nothing about them.
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return bool(kind.lower() == b"bearer" and any(matches))


def _is_open(scope: Scope) -> bool:
    """Whether the path needs no key."""
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"  # the server may be below a path of a proxy
    return path in _OPEN or path.startswith(page.ASSETS)
