"""`scion bench`: the load generator as a command."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from data_pipeline.errors import ClusterError, ConfigError, DataError
from ray_jobs import bench


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, dict]:
    """The table, and the object of the last line."""
    bench.command(list(arguments), Console(width=200))
    *table, last = capsys.readouterr().out.splitlines()
    return "\n".join(table), json.loads(last)


def test_an_endpoint_is_measured(folder: str, tmp_path: Path, capsys, monkeypatch) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("click the button\n\nsave the file\n")
    monkeypatch.setenv("SCION_API_KEYS", "secret")
    monkeypatch.setenv("SCION_API_KEY", "secret")
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        request = "request={dimensions: 8}"
        table, found = run(capsys, url, f"texts={texts}", "clients=[1,3]", "batch=2", "seconds=0.3", request)
        _, poisson = run(capsys, f"{url}/embeddings", "rate=50", "seconds=0.4")
    assert set(found) == {"1 client", "3 clients"}
    assert all(one["errors"] == 0 and one["requests"] > 1 for one in found.values())
    assert "embedder at http" in table
    assert "2 texts a request" in table
    assert poisson["50 requests/s"]["requests"] == 20


def test_a_mistake_is_shown_as_the_endpoint_words_it(folder: str, capsys) -> None:
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        with pytest.raises(ClusterError, match=r"answers 400: .*does not offer 9"):
            bench.command([url, "request={dimensions: 9}"], Console())
        with pytest.raises(ClusterError, match=r"answers 404: .*no model"):
            bench.command([url, "model=gpt"], Console())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "the endpoint is missing"),
        (["seconds=3"], ConfigError, "the endpoint is missing"),
        (["http://127.0.0.1:9/v1", "client=3"], ConfigError, "client"),
        (["http://127.0.0.1:9/v1", "clients=[0]"], ConfigError, "clients: must be above 0, got 0"),
        (["http://127.0.0.1:9/v1", "clients=0"], ConfigError, "clients: must be above 0"),
        (["http://127.0.0.1:9/v1", "seconds=-1"], ConfigError, "seconds: must be above 0, got -1"),
        (["http://127.0.0.1:9/v1", "rate=0.1"], ConfigError, "seconds: at 0.1 requests/s none arrives in 5 s"),
        (["http://127.0.0.1:9/v1", "rate=5", "clients=[1]"], ConfigError, "a rate has no number of clients"),
        (["http://127.0.0.1:9/v1"], ClusterError, "there is no answer"),
        (["nonsense"], ClusterError, "there is no answer"),
        (["http://127.0.0.1:9/v1", "model=m", "texts=nowhere.txt"], DataError, "cannot be read"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        bench.command(arguments, Console())


class Other(BaseHTTPRequestHandler):
    """An endpoint that sends its answers in chunks, or ends them with the connection."""

    protocol_version = "HTTP/1.1"
    models: ClassVar[bytes] = b'{"data": [{"id": "m"}]}'
    is_chunked: ClassVar[bool] = True

    def do_GET(self) -> None:
        self._answer(self.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(b'{"data": []}')

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        if self.is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"1;a=b\r\n%c\r\n" % byte for byte in body) + b"0\r\nx-trailer: 1\r\n\r\n"
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = not self.is_chunked

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.mark.parametrize("is_chunked", [True, False])
def test_any_framing_of_answers_is_read(other: str, is_chunked, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Other, "is_chunked", is_chunked)
    _, closed = run(capsys, other, "clients=[1,2]", "seconds=0.2")
    _, poisson = run(capsys, other, "rate=50", "seconds=0.2")
    for one in (*closed.values(), *poisson.values()):
        assert (one["errors"], one["requests"] > 1) == (0, True)


def test_a_measurement_has_a_request_however_short_it_is(other: str, capsys) -> None:
    _, found = run(capsys, other, "clients=1", "seconds=0.000001")
    assert found["1 client"]["requests"] == 1


@pytest.mark.parametrize("models", [b"<html>", b'{"data": []}', b'{"object": "list"}', b"[]"])
def test_an_endpoint_that_lists_no_model_is_named(other: str, models, monkeypatch) -> None:
    monkeypatch.setattr(Other, "models", models)
    with pytest.raises(ClusterError, match=r"lists no model .* give model=NAME"):
        bench.command([other], Console())
