"""An HTTP connection: uvicorn's protocol, with bounds on the head of a request and a patient end."""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 64 << 10
_HEAD_SECONDS = 30.0
"""Time for the head of a request: of a new connection from its beginning, of a later one from its first byte."""
_FAREWELL_SECONDS = 0.5
"""Time for which an idle connection stays open when the server ends: a request may be on its way."""
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """A connection of a client."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._is_in_body = False
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(_HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_in_body and b"h2c" in data:
            data = without_h2c(data)
        super().data_received(data)
        if self._deadline is not None and self.parser is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        self._end_deadline()
        self._is_in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def shutdown(self) -> None:
        """Ends the connection after its answer, or if no request comes any more."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_FAREWELL_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def without_h2c(data: bytes) -> bytes:
    """The head of a request without its offer to speak HTTP/2: the parser drops the body of a request with one.

    Java's HttpClient makes the offer in its first request to a server. A server may ignore it (RFC 9110, section 7.8).
    """
    head, separator, rest = data.partition(b"\r\n\r\n")
    return _H2C.sub(b"\r\nx-upgrade: h2c", head) + separator + rest
