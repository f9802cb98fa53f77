"""Requests that no client should send, and the connections to send them by."""

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PATHS = ("/v1/embeddings", "/v1/rerank", "/tokenize")
NESTED = 50_000
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    10**400,
    "",
    "\x00",
    "\ud800",
    [],
    {},
    [[]],
    [[[1]]],
    [None],
    {"a": {}},
    ["a", 1],
    [2**63],
)
"""Values in the place of proper ones."""
PARTS = (
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\x00",
    b"\\ud800",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\xf0\x9f",
    b'"',
    b"[",
    b"}",
    b"\\u0000",
)
"""Bytes to put into a body."""


def valid(rng: random.Random, path: str) -> dict[str, Any]:
    """A request that is answered with 200, if `click` and its like are in the vocabulary."""
    words = [
        rng.choice(["click the button", "open", "Πατήστε", "😀", "a\u0301\u200d", "x" * rng.randrange(400)]) or "a"
        for _ in range(3)
    ]
    if path == "/v1/rerank":
        return {"model": "embedder", "query": "save the file", "documents": words, "top_n": rng.randrange(1, 4)}
    options = [{}, {"dimensions": 8}, {"encoding_format": "base64"}, {"truncate": "start"}, {"user": "u"}, {"normalize": False}]
    return {"model": "embedder", "input": rng.choice([words, words[0], words[1:]]), **rng.choice(options)}


def flipped(rng: random.Random, body: bytes) -> bytes:
    """The body with a few bytes changed, left out, or put in."""
    changed = bytearray(body)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(changed))
        part = rng.choice([bytes([rng.randrange(256)]), *PARTS])
        changed[place : place + rng.randrange(3)] = part
    return bytes(changed)


def retyped(rng: random.Random, content: dict[str, Any]) -> bytes:
    """The content with a value of a wrong kind, or with an unknown key."""
    key = rng.choice(
        [*content, "unknown", "input", "documents", "layer", "dimensions", "input_type", "output_dtype", "index_version"]
    )
    value = rng.choice(WRONG)
    return json.dumps(content | {key: value}).encode()


def nested(rng: random.Random, content: dict[str, Any]) -> bytes:
    deep = rng.choice([b"[" * NESTED + b"]" * NESTED, b'{"a":' * NESTED + b"1" + b"}" * NESTED, b"[" * NESTED])
    return b'{"model": "embedder", "input": ' + deep + b"}"


def repeated(rng: random.Random, content: dict[str, Any]) -> bytes:
    """Keys that occur twice."""
    body = json.dumps(content)
    return f"{body[:-1]}, {json.dumps({rng.choice([*content]): rng.choice(WRONG[:6])})[1:]}".encode()


def endless_number(rng: random.Random, content: dict[str, Any]) -> bytes:
    return b'{"model": "embedder", "input": [' + b"9" * rng.choice([20, 400, 100_000]) + b"]}"


def request(rng: random.Random) -> tuple[str, bytes, bytes]:
    """Path, further lines of the head, and body of a hostile request."""
    path = rng.choice(PATHS)
    content = valid(rng, path)
    body = json.dumps(content, ensure_ascii=rng.random() < 0.5).encode()
    changes: list[Callable[[], bytes]] = [
        lambda: flipped(rng, body),
        lambda: flipped(rng, flipped(rng, body)),
        lambda: retyped(rng, content),
        lambda: retyped(rng, content),
        lambda: nested(rng, content),
        lambda: repeated(rng, content),
        lambda: endless_number(rng, content),
        lambda: body[: rng.randrange(len(body))],
        lambda: rng.randbytes(rng.randrange(2000)),
        lambda: body,
    ]
    changed = rng.choice(changes)()
    packed = rng.random()
    if packed < 0.1:
        return path, b"Content-Encoding: gzip\r\n", flipped(rng, gzip.compress(changed, 1))
    if packed < 0.15:
        return path, b"Content-Encoding: deflate\r\n", zlib.compress(changed)
    if packed < 0.17:  # a bomb: a few KB that unpack to 8 MB
        return path, b"Content-Encoding: gzip\r\n", gzip.compress(b'{"input": "' + b"a" * (8 << 20), 6)
    return path, b"", changed


def head(path: str, length: int, further: bytes = b"") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n".encode()
        + further
        + b"\r\n"
    )


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of the next answer; answers with status 1xx are skipped."""
    while (first := await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 1"):
        pass
    length = next(line for line in first.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(first.split(b" ", 2)[1]), first, await reader.readexactly(int(length.partition(b":")[2]))


async def fuzz(url: str, seed: int, count: int, seconds: float) -> dict[str, int]:
    """Sends so many hostile requests on one connection after another; how many were answered with each status.

    Raises:
        AssertionError: an answer has status 5xx, or an error has not OpenAI's form.
        TimeoutError: a request has no answer within so many seconds.
    """
    rng, statuses = random.Random(seed), dict[str, int]()
    streams = None
    for _ in range(count):
        path, further, body = request(rng)
        async with asyncio.timeout(seconds):
            streams = streams or await asyncio.open_connection(*address(url), limit=1 << 26)
            streams[1].write(head(path, len(body), further) + body)
            status, first, content = await answer(streams[0])
        assert status < 500, (path, body[:300], content)
        assert status == 200 or set(json.loads(content)["error"]) == {"message", "type", "param", "code"}, (
            path,
            body[:300],
            content,
        )
        json.loads(content)
        statuses[str(status)] = statuses.get(str(status), 0) + 1
        if b"connection: close" in first.lower():
            streams[1].close()
            streams = None
    if streams is not None:
        streams[1].close()
    return statuses
