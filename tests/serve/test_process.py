"""A server in one process: how it starts and ends, and what its clients measure."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.serve import connection, load, process
from cluster.serve.config import ServeConfig
from cluster.serve.load import Connection, closed_loop, open_loop
from cluster.serve.open_files import most_connections
from cluster.serve.process import serve_in_process
from data_pipeline.errors import ClusterError, ConfigError, ModelError

BODY = json.dumps({"model": "embedder", "input": "click the button"}).encode()


def test_no_accepted_request_is_lost_when_the_server_ends(folder: str) -> None:
    """Each client is answered until its connection is refused, also with errors, and on connections of one request."""
    statuses: list[int] = []
    broken: list[BaseException] = []
    bodies = {"embeddings": BODY, "wrong": b"{", "alone": BODY}

    async def client(url: str, kind: str) -> None:
        connection = Connection(f"{url}/embeddings")
        while True:
            try:
                statuses.append((await connection.post(bodies[kind]))[0])
                if kind == "alone":
                    connection.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                if "Connect call failed" not in str(error):  # a connection that is refused has no request
                    broken.append(error)
                return

    async def clients(url: str) -> None:
        await asyncio.gather(*[client(url, kind) for kind in bodies for _ in range(12)])

    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        thread = threading.Thread(target=lambda: asyncio.run(clients(url)))
        thread.start()
        while len(statuses) < 200 and thread.is_alive():
            time.sleep(0.01)
    thread.join(30)
    assert not thread.is_alive()
    assert not broken
    assert set(statuses) == {200, 400}


def raw(url: str, *parts: bytes, pause: float = 0.0, patience: float = 2) -> bytes:
    """What the server answers to these bytes, until it closes the connection or is silent for so many seconds."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=patience) as client:
        answer = b""
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            while received := client.recv(65536):
                answer += received
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
    return answer


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v1/embeddings HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


def test_an_offer_to_speak_http2_does_not_lose_the_body(folder: str) -> None:
    """As Java's HttpClient makes it."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        assert raw(url, post(BODY, *offer)).startswith(b"HTTP/1.1 200")
        text = json.dumps({"model": "embedder", "input": "Upgrade: h2c"}).encode()
        assert raw(url, post(text, *offer)).startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_refused(folder: str) -> None:
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        head = b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000
        pieces = [head[start : start + 40_000] for start in range(0, len(head), 40_000)]
        assert b" 200 " not in raw(url, *pieces, b"\r\n\r\n", pause=0.01)
        assert raw(url, post(BODY, b"X: " + b"a" * 30_000)).startswith(b"HTTP/1.1 200")


def test_a_connection_that_says_nothing_is_closed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.3)
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        for parts in ([b""], [b"GET /health HTTP/1.1\r\n"], [post(BODY), b"GET /hea"]):
            began = time.perf_counter()
            raw(url, *parts, patience=30)
            assert time.perf_counter() - began < 20
        slow = post(BODY)
        assert raw(url, slow[: len(slow) - 5], slow[-5:], pause=0.6).startswith(b"HTTP/1.1 200")


def test_a_server_may_hold_as_many_connections_as_its_system_allows(folder: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        with serve_in_process(ServeConfig(model=folder, port=0)) as url, ExitStack() as stack:
            address = "127.0.0.1", load.port(load.urlsplit(url))
            for _ in range(400):
                stack.enter_context(socket.create_connection(address))
            assert raw(url, post(BODY)).startswith(b"HTTP/1.1 200")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_for_which_there_is_no_room_are_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file that is left for them they would keep the server from all others."""
    monkeypatch.setattr(connection, "most_connections", lambda: 5)
    with serve_in_process(ServeConfig(model=folder, port=0)) as url, ExitStack() as stack:
        address = "127.0.0.1", load.port(load.urlsplit(url))
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(5)]
        head, _, body = raw(url, b"").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(body)["error"]["code"] == "overloaded"
        idle[0].close()
        time.sleep(0.2)
        assert raw(url, post(BODY)).startswith(b"HTTP/1.1 200")


def test_files_are_left_for_a_burst_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in ((1024, 512), (65_536, 63_488), (resource.RLIM_INFINITY, sys.maxsize)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert most_connections() == connections


def test_a_second_interruption_ends_the_server_at_once(folder: str) -> None:
    """The real command: the first one waits for accepted requests, the second one does not."""
    config = Path(folder).parent / "serve.yaml"
    config.write_text("output: unused\n")
    command = [sys.executable, "-m", "ray_jobs.cli", "serve", str(config), f"serve.model={folder}", "serve.port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    url = process.stdout.readline().strip()
    stalled = socket.create_connection(("127.0.0.1", load.port(load.urlsplit(url))))
    stalled.sendall(post(BODY)[:-5])
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    stalled.close()


def test_a_hang_up_ends_no_server_that_starts_or_ends(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a handler SIGHUP ends a process at once, with the requests that it has accepted."""
    reached: list[str] = []
    place = "start"
    before = signal.signal(signal.SIGHUP, lambda *_: reached.append(place))
    make, end = process.Loader, process._end

    def hang_up_and(call: Any, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return call(*arguments)

    monkeypatch.setattr(process, "Loader", partial(hang_up_and, make))
    monkeypatch.setattr(process, "_end", partial(hang_up_and, end))
    try:
        with serve_in_process(ServeConfig(model=folder, port=0)):
            place = "end"
        assert reached == []
        os.kill(os.getpid(), signal.SIGHUP)
        assert reached == ["end"]
    finally:
        signal.signal(signal.SIGHUP, before)


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
        ({"gpu": True}, ConfigError, r"serve\.gpu: there is no GPU"),
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
