"""The HTTP front end with a backend that needs no model."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient

from cluster.serve.config import ServeConfig
from cluster.serve.front import Front
from cluster.serve.protocol import ModelCard, TokenIds

CARD = ModelCard(name="tiny", dimensions=(2,), max_length=6, vocabulary=200)
ASK = {"model": "tiny", "input": "a"}


async def ones(rows: TokenIds, dimensions: int | None) -> np.ndarray:
    return np.ones((len(rows), 2), dtype=np.float32)


class Stub:
    """A model whose tokens are characters."""

    card = CARD

    def __init__(self, encode: Callable) -> None:
        self.encode = encode

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> TokenIds:
        return [[ord(c) for c in text.strip()] for text in texts]


def client(encode: Callable = ones, **settings: int) -> TestClient:
    return TestClient(Front(ServeConfig(**settings), Stub(encode)).api())


def test_a_request_is_answered() -> None:
    answer = client().post("/v1/embeddings", json=ASK)
    assert answer.status_code == 200
    assert answer.json()["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, 1.0]}]


def test_the_routes_are_these_three() -> None:
    """Adding one is a decision."""
    routes = {(route.path, *sorted(route.methods)) for route in client().app.routes}
    assert routes == {("/v1/embeddings", "POST"), ("/v1/models", "GET", "HEAD"), ("/health", "GET", "HEAD")}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/embedding", 404, "unknown_url"),
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/v1/embeddings", 405, "method_not_supported"),
        ("POST", "/health", 405, "method_not_supported"),
    ],
)
def test_a_wrong_path_or_method_names_the_right_ones(method, path, status, code) -> None:
    answer = client().request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert "Known: POST /v1/embeddings" in answer.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused() -> None:
    answer = client(max_body_bytes=50).post("/v1/embeddings", json=ASK | {"input": "a" * 50})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert "more than 50 bytes" in answer.json()["error"]["message"]
    assert client(max_body_bytes=50).post("/v1/embeddings", json=ASK).status_code == 200


def test_a_text_without_tokens_is_refused() -> None:
    answer = client().post("/v1/embeddings", json=ASK | {"input": ["a", " "]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[1]"


def test_a_failing_model_is_a_server_error_without_details() -> None:
    async def failing(rows: TokenIds, dimensions: int | None) -> np.ndarray:
        raise RuntimeError("secret detail")

    answer = client(failing).post("/v1/embeddings", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


def test_a_full_server_sends_the_client_away_and_takes_the_next_one_later() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def slow(rows: TokenIds, dimensions: int | None) -> np.ndarray:
        started.set()
        await release.wait()
        return await ones(rows, dimensions)

    with client(slow, max_queued_requests=1) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, "/v1/embeddings", json=ASK)
        server.portal.call(started.wait)
        refused = server.post("/v1/embeddings", json=ASK)
        server.portal.call(release.set)
        assert first.result().status_code == 200
        assert server.post("/v1/embeddings", json=ASK).status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"
