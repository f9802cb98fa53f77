"""A server in one process: how it starts and ends, and what its clients measure."""

import asyncio
import json
import threading
from typing import Any

import pytest

from cluster.serve import load
from cluster.serve.config import ServeConfig
from cluster.serve.load import Connection, closed_loop, open_loop
from cluster.serve.process import serve_in_process
from data_pipeline.errors import ClusterError, ModelError

BODY = json.dumps({"model": "embedder", "input": "click the button"}).encode()


def test_no_accepted_request_is_lost_when_the_server_ends(folder: str) -> None:
    """Each of 32 clients is answered until its connection is refused."""
    statuses: list[int] = []
    broken: list[BaseException] = []

    async def client(url: str) -> None:
        connection = Connection(f"{url}/embeddings")
        while True:
            try:
                statuses.append(await connection.post(BODY))
            except ConnectionRefusedError:
                return
            except (OSError, asyncio.IncompleteReadError) as error:
                broken.append(error)
                return

    async def clients(url: str) -> None:
        await asyncio.gather(*[client(url) for _ in range(32)])

    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        thread = threading.Thread(target=lambda: asyncio.run(clients(url)))
        thread.start()
        while len(statuses) < 200 and thread.is_alive():
            pass
    thread.join(30)
    assert not thread.is_alive()
    assert not broken
    assert set(statuses) == {200}


def test_clients_count_requests_and_errors(folder: str) -> None:
    wrong = json.dumps({"model": "other", "input": "click"}).encode()
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        closed = asyncio.run(closed_loop(f"{url}/embeddings", [BODY, BODY, wrong], 3, 0.5))
        arrivals = asyncio.run(open_loop(f"{url}/embeddings", [BODY], rate=50, seconds=1))
    assert 0 < closed.errors < closed.requests
    assert closed.p50 <= closed.p95 <= closed.p99
    assert (arrivals.requests, arrivals.errors) == (50, 0)


def test_a_server_that_is_gone_is_an_error_of_each_request() -> None:
    found = asyncio.run(open_loop("http://127.0.0.1:9/v1/embeddings", [BODY], rate=100, seconds=0.2))
    assert found.errors == found.requests == 20


@pytest.mark.parametrize(("url", "port"), [("http://a/x", 80), ("https://a/x", 443), ("http://a:8000/x", 8000)])
def test_the_port_of_an_address(url: str, port: int) -> None:
    assert load.port(load.urlsplit(url)) == port


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"host": "203.0.113.1"}, ClusterError, r"serve\.host: cannot listen on 203\.0\.113\.1"),
        ({"model": "nowhere"}, ModelError, "nowhere"),
    ],
)
def test_what_prevents_the_start_is_named(folder: str, settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message), serve_in_process(ServeConfig(**{"model": folder, "port": 0} | settings)):
        pass


def test_a_port_in_use_is_named(folder: str) -> None:
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        port = int(url.split(":")[2].removesuffix("/v1"))
        with (
            pytest.raises(ClusterError, match=f"port {port} is in use"),
            serve_in_process(ServeConfig(model=folder, port=port)),
        ):
            pass
