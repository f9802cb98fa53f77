"""Measures an endpoint under load: so many clients that each send their next request after an answer, or a fixed rate."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import SplitResult, urlsplit

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What clients saw. Times are of whole requests, in milliseconds."""

    requests: int
    errors: int
    """Requests without an answer of status 200."""
    per_second: float
    p50: float
    p95: float
    p99: float


class Connection:
    """A connection that sends one request after another, with as little work as possible beside the server's."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = urlsplit(url)
        self._key = "" if key is None else f"Authorization: Bearer {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.closed_idle = 0
        """How often the server closed it between two requests; the next request opens it again, as httpx and urllib3 do."""

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer to a JSON body.

        Raises:
            OSError: the server cannot be reached.
            asyncio.IncompleteReadError: it closed the connection without an answer.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()
            self.closed_idle += 1
        if self._streams is None:
            is_https = self._url.scheme == "https"
            self._streams = await asyncio.open_connection(self._url.hostname, port(self._url), ssl=is_https)
        reader, writer = self._streams
        lines = f"POST {self._url.path} HTTP/1.1\r\nHost: {self._url.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{lines}{self._key}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, content, is_last = await read_answer(reader)
        if is_last:
            self.close()
        return status, content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status and body of an answer of HTTP/1.1, and whether it is the last one of the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status, is_last = int(head.split(b" ", 2)[1]), b"\r\nconnection: close" in head
    _, has_length, rest = head.partition(b"\r\ncontent-length:")
    if has_length:
        return status, await reader.readexactly(int(rest.partition(b"\r\n")[0])), is_last
    if b"\r\ntransfer-encoding: chunked" not in head:
        return status, await reader.read(), True
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailing fields
    return status, b"".join(parts), is_last


def port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


async def closed_loop(url: str, bodies: Sequence[bytes], clients: int, seconds: float, key: str | None = None) -> Measured:
    """Each client sends its next request when it has the answer to the last one; with an API key where there is one."""
    times: list[float] = []
    errors = 0
    began = time.perf_counter()

    async def client(number: int) -> None:
        """Sends all bodies again and again, beginning at one of its own."""
        nonlocal errors
        connection = Connection(url, key)
        for body in cycle([*bodies[number % len(bodies) :], *bodies[: number % len(bodies)]]):
            sent = time.perf_counter()
            if times and sent - began > seconds:
                break
            is_answered = await _answered(connection, body)
            errors += not is_answered  # in a line of its own: other clients count while this one waits
            times.append(time.perf_counter() - sent)
        connection.close()

    await asyncio.gather(*map(client, range(clients)))
    return _measured(times, errors, time.perf_counter() - began)


async def open_loop(
    url: str, bodies: Sequence[bytes], rate: float, seconds: float, key: str | None = None, seed: int = 0
) -> Measured:
    """Requests at random moments (Poisson), whether or not earlier ones are answered.

    Args:
        rate: requests/s on average.
        key: the API key, where there is one.
    """
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    idle: list[Connection] = []
    times: list[float] = []
    errors = 0
    began = time.perf_counter()

    async def request(moment: float, body: bytes) -> None:
        """Sends a body at its moment, by a connection that waits for none."""
        nonlocal errors
        await asyncio.sleep(began + moment - time.perf_counter())
        connection = idle.pop() if idle else Connection(url, key)
        is_answered = await _answered(connection, body)
        errors += not is_answered
        times.append(time.perf_counter() - began - moment)
        idle.append(connection)

    await asyncio.gather(*[request(moment, bodies[n % len(bodies)]) for n, moment in enumerate(moments)])
    for connection in idle:
        connection.close()
    return _measured(times, errors, time.perf_counter() - began)


async def _answered(connection: Connection, body: bytes) -> bool:
    """Whether the request was answered with status 200; a broken connection is opened again for the next one."""
    try:
        return (await connection.post(body))[0] == 200
    except (OSError, asyncio.IncompleteReadError):
        connection.close()
        return False


def _measured(times: list[float], errors: int, seconds: float) -> Measured:
    p50, p95, p99 = (round(1000 * float(value), 2) for value in np.percentile(times, [50, 95, 99]))
    count = len(times)
    return Measured(requests=count, errors=errors, per_second=round(count / seconds, 1), p50=p50, p95=p95, p99=p99)
