"""An HTTP proxy in front of an object store that fails as one does: errors, slow answers, answers that are lost."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_SECONDS = 0.3
_BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@dataclass
class Faults:
    """What happens to requests: to a share of all at random, and to the next ones of a method."""

    share: float = 0.0
    """Of requests, by turns of the kinds below."""
    kinds: tuple[str, ...] = ("busy", "slow", "lost")
    next_ones: dict[str, list[str]] = field(default_factory=dict)
    """Kinds for the next requests, by method."""
    seen: Counter[str] = field(default_factory=Counter)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    lock: Any = field(default_factory=threading.Lock)

    def of(self, method: str) -> str:
        """What happens to a request; empty for nothing."""
        with self.lock:
            kind = ""
            if self.next_ones.get(method):
                kind = self.next_ones[method].pop(0)
            elif self.rng.random() < self.share:
                kind = self.rng.choice(self.kinds)
            self.seen[kind or "fine"] += 1
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    store: tuple[str, int]

    def handle_one(self) -> None:
        """Passes a request on, or fails."""
        body = self._body()
        kind = self.faults.of(self.command)
        if kind == "busy":
            self._answer(503, {"Content-Type": "application/xml"}, _BUSY)
            return
        if kind == "slow":
            time.sleep(SLOW_SECONDS)
        connection = http.client.HTTPConnection(*self.store, timeout=60)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "content-length")
        }
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if kind == "lost":  # the store has done it, and the client does not hear of it
            self.close_connection = True
            return
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in ("transfer-encoding", "connection")}
        self._answer(answer.status, kept, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        elif "Content-Length" not in headers:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def faulty_proxy(host: str, port: int) -> Iterator[tuple[str, Faults]]:
    """A proxy of the store at an address: its URL, and its faults, which the test sets."""
    faults = Faults()
    handler = type("Handler", (_Handler,), {"faults": faults, "store": (host, port)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
