"""An HTTP connection: uvicorn's protocol, with bounds on the head of a request and a patient end."""

import asyncio
import re
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.serve.open_files import most_connections
from cluster.serve.protocol import RequestError

_HEAD_BYTES = 64 << 10
_HEAD_SECONDS = 30.0
"""Time for the head of a request: of a new connection from its beginning, of a later one from its first byte."""
_FAREWELL_SECONDS = 0.5
"""Time for which an idle connection stays open when the server ends: a request may be on its way."""
_UNREAD_SECONDS = 30.0
"""Time in which a client must read something of an answer that waits for it."""
_PROBE_SECONDS = 0.2
"""Time between two interim responses to a client that has ended its sending side."""
_FULL = RequestError("the server has too many connections.", "", "Send the request again in a second.", 503, "overloaded")
_INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"
_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """A connection of a client."""

    def connection_made(self, transport: Any) -> None:
        """Begins the time of the first head; answers 503 and closes where there are too many connections."""
        super().connection_made(transport)
        self._is_in_body = False
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(_HEAD_SECONDS, transport.close)
        self._reading: asyncio.TimerHandle | None = None
        """Until when the client has to read some of its answer."""
        if len(self.connections) > most_connections():
            body = orjson.dumps(_FULL.body())
            head = (
                "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\nconnection: close\r\n"
            )
            transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        self._end_reading()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Passes bytes on to the parser, within the bounds of a head."""
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

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio reads what uvicorn leaves out
        """Keeps the connection of a client that has ended its sending side until its requests are answered.

        A client that has left looks the same, and an answer to it would be work for nobody. An interim response (RFC 9110,
        section 15.2) tells them apart: the system of a client that has left refuses it, and the connection is lost.
        """
        if self.cycle is None or self.cycle.response_complete or self._is_in_body:
            return False
        self.cycle.keep_alive = False
        self._probe()
        return True

    def _probe(self) -> None:
        """Sends interim responses until the answer begins; a client of HTTP/1.0 does not know them."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not (self.pipeline or self.cycle.response_started or self.cycle.scope["http_version"] == "1.0"):
            self.transport.write(_INTERIM)
        self.loop.call_later(_PROBE_SECONDS, self._probe)

    def pause_writing(self) -> None:
        """Begins to watch a client that does not read: an answer of megabytes stays in memory for it."""
        super().pause_writing()
        self._watch_reading(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_reading()

    def _watch_reading(self, left: int) -> None:
        """Ends the connection if the client does not read some of so many bytes in time."""

        def check() -> None:
            now = self.transport.get_write_buffer_size()
            if now < left:
                self._watch_reading(now)
            else:
                self.transport.abort()

        self._reading = self.loop.call_later(_UNREAD_SECONDS, check)

    def shutdown(self) -> None:
        """Ends the connection after its answer, or if no request comes any more."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_FAREWELL_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

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
