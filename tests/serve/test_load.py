"""The load generator reads the answers of any server of HTTP/1.1, and opens a connection again that was closed meanwhile."""

import asyncio
from collections.abc import Callable

import pytest

from cluster.serve.load import Connection, Measured, closed_loop

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nans\r\n3;name=x\r\nwer\r\n0\r\nField: x\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nServer: other\r\n\r\nanswer"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nanswer"


async def with_server(answers: list[bytes], closes_after: float | None, client: Callable):
    """What a client of its URL returns, where each request of a connection gets the next answer."""
    number = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        try:
            while await reader.readuntil(b"{}"):
                answer = answers[number % len(answers)]
                number += 1
                writer.write(answer)
                if answer in (TO_THE_END, LAST):
                    break
                if closes_after is not None:
                    await asyncio.sleep(closes_after)
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(20):
        return await client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/embeddings")


def test_answers_of_each_form_are_read_whole() -> None:
    async def client(url: str) -> list[tuple[int, bytes]]:
        connection = Connection(url)
        return [await connection.post(b"{}") for _ in range(8)]

    answers = asyncio.run(with_server([LENGTH, CHUNKED, TO_THE_END, LAST], None, client))
    assert answers == [(200, b"answer")] * 8


def test_a_connection_that_the_server_closed_while_idle_is_opened_again() -> None:
    async def client(url: str) -> tuple[list[tuple[int, bytes]], int]:
        connection, found = Connection(url), []
        for _ in range(3):
            found.append(await connection.post(b"{}"))
            await asyncio.sleep(0.1)
        return found, connection.closed_idle

    assert asyncio.run(with_server([LENGTH], 0.01, client)) == ([(200, b"answer")] * 3, 2)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 no\r\n\r\nanswer", b""])
def test_what_is_no_answer_counts_as_an_error(answer: bytes) -> None:
    async def client(url: str) -> Measured:
        return await closed_loop(url, [b"{}"], 3, 0.2)

    found = asyncio.run(with_server([answer or LAST[:40]], 0.0, client))
    assert found.errors == found.requests > 0
