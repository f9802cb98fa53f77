"""Clients that send nonsense, send slowly, do not read, or leave: the server answers the others."""

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cluster.serve import connection, front
from cluster.serve.config import ServeConfig
from cluster.serve.model import ServedModel
from cluster.serve.process import serve_in_process
from tests.serve import hostile
from trainer.embedder import Embedder

BODY = json.dumps({"model": "embedder", "input": "click the button"}).encode()
MANY = json.dumps({"model": "embedder", "input": ["click the button"] * 64}).encode()
PATH = "/v1/embeddings"


@pytest.fixture
def url(folder: str) -> Iterator[str]:
    with serve_in_process(ServeConfig(model=folder, port=0, max_queued_requests=8, cors_origins=("https://a.org",))) as base:
        yield base


async def opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*hostile.address(url), limit=1 << 26)


async def asked(url: str, body: bytes = BODY) -> int:
    """The status that a proper client gets."""
    async with asyncio.timeout(20):
        reader, writer = await opened(url)
        writer.write(hostile.head(PATH, len(body)) + body)
        status, _, _ = await hostile.answer(reader)
        writer.close()
    return status


async def beside(url: str, others: Awaitable[Any]) -> Any:
    """What the others come to, while a proper client is answered again and again."""
    running = asyncio.ensure_future(others)
    while not running.done():
        assert await asked(url) == 200
        await asyncio.sleep(0.01)
    assert await asked(url) == 200
    return await running


def test_no_body_makes_the_server_fail(url: str) -> None:
    async def run() -> list[dict[str, int]]:
        return await beside(url, asyncio.gather(*[hostile.fuzz(url, seed, 150, 20) for seed in range(4)]))

    found = asyncio.run(run())
    assert sum(sum(statuses.values()) for statuses in found) == 600
    assert {"200", "400", "413"} <= set().union(*found)


def test_clients_that_send_slowly_take_no_place(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_BODY_SECONDS", 1.5)

    async def slow() -> int:
        reader, writer = await opened(url)
        writer.write(hostile.head(PATH, len(BODY)) + BODY[:5])
        status, first, _ = await hostile.answer(reader)
        assert b"connection: close" in first.lower()
        writer.close()
        return status

    async def run() -> list[int]:
        return await beside(url, asyncio.gather(*[slow() for _ in range(60)]))

    assert set(asyncio.run(run())) == {408}


def test_idle_connections_keep_nobody_waiting(url: str) -> None:
    async def run() -> None:
        idle = [await opened(url) for _ in range(400)]
        for _ in range(20):
            assert await asked(url) == 200
        for _, writer in idle:
            writer.write(hostile.head(PATH, len(BODY)) + BODY)
        assert [(await hostile.answer(reader))[0] in (200, 429) for reader, _ in idle] == [True] * 400
        for _, writer in idle:
            writer.close()

    asyncio.run(run())


def test_a_body_of_20_mb_is_refused_before_it_is_there(url: str) -> None:
    async def run() -> tuple[int, int]:
        reader, writer = await opened(url)
        writer.write(hostile.head(PATH, 20 << 20))
        sent = 0
        answer = asyncio.ensure_future(hostile.answer(reader))
        while not answer.done() and sent < 20 << 20:
            writer.write(b"a" * 65536)
            sent += 65536
            try:
                await writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0)
        status, _, content = await answer
        assert json.loads(content)["error"]["code"] == "request_too_large"
        return status, sent

    status, sent = asyncio.run(run())
    assert status == 413
    assert sent < 16 << 20


def test_a_client_that_sends_all_of_a_large_body_reads_why_it_is_refused(url: str) -> None:
    """It is not reset in the midst, where it would lose the answer."""
    content = hostile.head(PATH, 20 << 20) + b"a" * (20 << 20)
    for _ in range(5):
        with socket.create_connection(hostile.address(url), timeout=20) as client:
            client.sendall(content)
            time.sleep(0.1)
            assert client.recv(65536).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("body", [BODY, MANY])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_client_that_ends_its_sending_side_is_answered(url: str, slow_model: None, body: bytes, version: bytes) -> None:
    async def run() -> None:
        reader, writer = await opened(url)
        writer.write((hostile.head(PATH, len(body)) + body).replace(b"HTTP/1.1", version))
        writer.write_eof()
        async with asyncio.timeout(20):
            status, first, _ = await hostile.answer(reader)
            assert await reader.read() == b""
        assert status == 200
        assert b"connection: close" in first.lower()
        writer.close()

    asyncio.run(run())


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes of half a second."""
    pooled = Embedder.pooled

    def slow(self: Embedder, *arguments: Any) -> Any:
        time.sleep(0.5)
        return pooled(self, *arguments)

    monkeypatch.setattr(Embedder, "pooled", slow)


def test_a_client_that_leaves_is_told_from_one_that_only_ends_its_sending_side(folder, slow_model) -> None:
    """Texts of the one are not encoded, those of the other are."""
    many = json.dumps({"model": "embedder", "input": ["click the button " * 5] * 100}).encode()
    with serve_in_process(ServeConfig(model=folder, port=0, max_batch_tokens=100)) as url:

        async def run() -> None:
            _, writer = await opened(url)
            writer.write(hostile.head(PATH, len(many)) + many)
            await asyncio.sleep(0.7)
            writer.close()
            async with asyncio.timeout(15):
                while 'status="499"' not in await asyncio.to_thread(metrics, url):
                    await asyncio.sleep(0.1)
            assert await asked(url) == 200

        asyncio.run(run())


def metrics(url: str) -> str:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=20) as page:
        return page.read().decode()


def test_a_web_page_asks_before_it_sends(url: str) -> None:
    def preflight(origin: bytes) -> bytes:
        lines = [b"OPTIONS /v1/embeddings HTTP/1.1", b"Host: a", b"Origin: " + origin, b"Access-Control-Request-Method: POST"]
        return b"\r\n".join([*lines, b"Access-Control-Request-Headers: authorization,content-type", b"", b""])

    async def run() -> None:
        reader, writer = await opened(url)
        writer.write(preflight(b"https://a.org"))
        status, first, _ = await hostile.answer(reader)
        assert status == 200
        assert b"access-control-allow-origin: https://a.org" in first
        writer.write(preflight(b"https://b.org"))
        status, first, content = await hostile.answer(reader)
        assert status == 400
        assert b"access-control-allow-origin" not in first
        assert content == b"Disallowed CORS origin"
        writer.close()

    asyncio.run(run())


def test_requests_in_one_packet_are_answered_in_their_order(url: str) -> None:
    async def run() -> None:
        reader, writer = await opened(url)
        bodies = [json.dumps({"model": "embedder", "input": ["click"] * count}).encode() for count in range(1, 41)]
        writer.write(b"".join(hostile.head(PATH, len(body)) + body for body in bodies))
        writer.write_eof()
        answers = [await hostile.answer(reader) for _ in bodies]
        assert [len(json.loads(content)["data"]) for _, _, content in answers] == list(range(1, 41))
        assert await reader.read() == b""
        writer.close()

    asyncio.run(run())


def test_a_client_that_does_not_read_is_not_read_from_and_then_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 1.0)

    async def stubborn() -> int:
        """Sends requests and reads nothing until the server ends the connection; the bytes that it could send."""
        reader, writer = await opened(url)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        try:
            async with asyncio.timeout(30):
                while True:
                    writer.write(hostile.head(PATH, len(MANY)) + MANY)
                    await writer.drain()
                    sent += len(MANY)
        except ConnectionError:
            return sent

    async def run() -> list[int]:
        return await beside(url, asyncio.gather(*[stubborn() for _ in range(5)]))

    assert max(asyncio.run(run())) < 16 << 20


def test_a_slow_reader_gets_all_of_its_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 0.3)
    body = json.dumps({"model": "embedder", "input": ["click the button"] * 2048}).encode()

    async def run() -> int:
        reader, writer = await asyncio.open_connection(*hostile.address(url), limit=4096)
        writer.write(hostile.head(PATH, len(body)) + body)
        first = await reader.readuntil(b"\r\n\r\n")
        left = int(first.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        assert left > 500_000
        while left:
            piece = await reader.read(min(left, 16384))
            assert piece
            left -= len(piece)
            await asyncio.sleep(0.01)
        writer.close()
        return int(first.split(b" ")[1])

    async def within() -> int:
        async with asyncio.timeout(30):
            return await run()

    assert asyncio.run(within()) == 200


@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_addresses_are_served(folder: str, host: str) -> None:
    with serve_in_process(ServeConfig(model=folder, host=host, port=0)) as url:
        assert url.startswith("http://[::1]:")
        assert asyncio.run(asked(url)) == 200
        if host == "::":
            assert asyncio.run(asked(url.replace("[::1]", "127.0.0.1"))) == 200


def test_many_vectors_are_finished_beside_the_event_loop(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are, other requests are answered."""
    finish: Callable[..., Any] = ServedModel._finished

    def slow(self: ServedModel, pooled: np.ndarray, output: Any) -> Any:
        time.sleep(1.5 if len(pooled) == 2048 else 0)
        return finish(self, pooled, output)

    monkeypatch.setattr(ServedModel, "_finished", slow)
    many = json.dumps({"model": "embedder", "input": ["a"] * 2048}).encode()

    async def run(url: str) -> float:
        large = asyncio.ensure_future(asked(url, many))
        longest = 0.0
        while not large.done():
            began = time.perf_counter()
            assert await asked(url) == 200
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.02)
        assert await large == 200
        return longest

    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        assert asyncio.run(run(url)) < 1.2
