"""The HTTP front end with a backend that needs no model."""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from cluster.serve import front, page
from cluster.serve.answers import TextPieces
from cluster.serve.api_keys import read_keys
from cluster.serve.config import ServeConfig
from cluster.serve.front import Front
from cluster.serve.models import Models, Shelf
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, TokenIds
from data_pipeline.errors import ConfigError
from data_pipeline.tokenizers.pieces import Pieces

CARD = ModelCard(name="org/tiny", dimensions=(2,), max_length=6, vocabulary=200)
ASK = {"model": "org/tiny", "input": "a"}


async def ones(rows: TokenIds, output: Output) -> np.ndarray:
    return np.ones((len(rows), 2), dtype=np.float32)


class Stub:
    """A model whose tokens are characters."""

    card = CARD
    is_stuck = False

    def __init__(self, encode: Callable) -> None:
        self.encode = encode

    def tokenize(self, asked: EmbeddingRequest) -> TokenIds:
        return [[ord(c) for c in text.strip()] for text in asked.texts]

    def pieces(self, asked: EmbeddingRequest) -> list[TextPieces]:
        return [(Pieces(pieces=tuple(text), special=()), None) for text in asked.texts]


def client(encode: Callable = ones, keys: Sequence[str] = (), **settings: Any) -> TestClient:
    return TestClient(Front(ServeConfig(**settings), shelf(Stub(encode)), keys).api())


def shelf(model: Stub) -> Shelf:
    return Shelf(Models({model.card.name: model}))


def test_a_request_is_answered() -> None:
    answer = client().post("/v1/embeddings", json=ASK)
    assert answer.status_code == 200
    assert answer.json()["data"] == [{"object": "embedding", "index": 0, "embedding": [1.0, 1.0]}]


def test_the_routes_are_these() -> None:
    """Adding one is a decision."""
    routes = {(route.path, *sorted(route.methods)) for route in client().app.routes}
    asked = {"/v1/models", "/v1/models/{name:path}", "/openapi.json", "/info", "/health", "/ready", "/metrics"}
    asked |= {route.path for route in page.routes()}
    sent = ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/tokenize")
    assert routes == {(path, "POST") for path in sent} | {(path, "GET", "HEAD") for path in asked}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/embedding", 404, "unknown_url"),
        ("GET", "/page/none.js", 404, "unknown_url"),
        ("POST", "/", 405, "method_not_supported"),
        ("GET", "/v1/embeddings", 405, "method_not_supported"),
        ("POST", "/health", 405, "method_not_supported"),
    ],
)
def test_a_wrong_path_or_method_names_the_right_ones(method, path, status, code) -> None:
    answer = client().request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert "Known: POST /v1/embeddings" in answer.json()["error"]["message"]
    assert ("allow" in answer.headers) is (status == 405)


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


def test_a_failing_tokenizer_is_a_server_error_in_openais_format() -> None:
    class Broken(Stub):
        def tokenize(self, asked: EmbeddingRequest) -> TokenIds:
            raise RuntimeError("secret detail")

    app = Front(ServeConfig(), shelf(Broken(ones))).api()
    for path in ("/v1/embeddings", "/tokenize"):
        answer = TestClient(app, raise_server_exceptions=False).post(path, json=ASK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in answer.text


def test_large_bodies_do_not_wait_for_the_tokenizer_of_the_source() -> None:
    """The first requests for pieces may take as long as its download."""
    is_there = threading.Event()

    class Waiting(Stub):
        def pieces(self, asked: EmbeddingRequest) -> list[TextPieces]:
            is_there.wait(10)
            return super().pieces(asked)

    large = ASK | {"input": ["a"] * 9000}
    with TestClient(Front(ServeConfig(max_inputs=9000), shelf(Waiting(ones))).api()) as asked, ThreadPoolExecutor(4) as pool:
        loading = [pool.submit(asked.post, "/tokenize", json=ASK | {"pieces": True}) for _ in range(3)]
        answer = pool.submit(asked.post, "/v1/embeddings", json=large)
        try:
            assert answer.result(5).status_code == 200
        finally:
            is_there.set()
        assert [one.result(5).status_code for one in loading] == [200] * 3


def test_tokenizing_takes_a_place_too() -> None:
    server = Front(ServeConfig(max_queued_requests=1), shelf(Stub(ones)))
    with server._place():
        assert TestClient(server.api()).post("/tokenize", json=ASK).status_code == 429
    assert TestClient(server.api()).post("/tokenize", json=ASK).status_code == 200


def test_a_request_that_an_ending_server_gives_up_is_sent_elsewhere() -> None:
    async def slow(rows: TokenIds, output: Output) -> np.ndarray:
        await asyncio.sleep(30)
        return await ones(rows, output)

    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        bodies = iter([{"type": "http.request", "body": json.dumps(ASK).encode()}])

        async def receive() -> dict[str, Any]:
            return next(bodies, None) or await asyncio.sleep(30, {})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}
        task = asyncio.ensure_future(client(slow).app(scope, receive, send))
        await asyncio.sleep(0.2)
        task.cancel()
        await task
        return sent

    first, second = asyncio.run(run())
    assert first["status"] == 503
    assert json.loads(second["body"])["error"]["code"] == "shutting_down"


def test_a_failing_model_is_a_server_error_without_details() -> None:
    async def failing(rows: TokenIds, output: Output) -> np.ndarray:
        raise RuntimeError("secret detail")

    answer = client(failing).post("/v1/embeddings", json=ASK)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


def test_a_full_server_sends_the_client_away_and_takes_the_next_one_later() -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def slow(rows: TokenIds, output: Output) -> np.ndarray:
        started.set()
        await release.wait()
        return await ones(rows, output)

    with client(slow, max_queued_requests=1) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, "/v1/embeddings", json=ASK)
        server.portal.call(started.wait)
        refused = server.post("/v1/embeddings", json=ASK)
        server.portal.call(release.set)
        assert first.result().status_code == 200
        assert server.post("/v1/embeddings", json=ASK).status_code == 200
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"


def test_one_model_is_shown_and_another_not_found() -> None:
    assert client().get("/v1/models/org/tiny").json()["id"] == "org/tiny"
    answer = client().get("/v1/models/gpt")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_texts_are_tokenized_as_they_would_be_embedded() -> None:
    answer = client().post("/tokenize", json=ASK | {"input": ["a", "bc"]})
    assert [entry["tokens"] for entry in answer.json()["data"]] == [[97], [98, 99]]
    assert client().post("/tokenize", json=ASK | {"input": ""}).status_code == 400


def test_pieces_are_answered_where_they_are_asked_for() -> None:
    asked = ASK | {"input": ["a", "bc"], "pieces": True}
    [first, second] = client().post("/tokenize", json=asked).json()["data"]
    assert (first["pieces"], second["pieces"], second["special_pieces"]) == (["a"], ["b", "c"], [])
    assert "source_pieces" not in first
    for pieces in (False, None):
        assert "pieces" not in client().post("/tokenize", json=asked | {"pieces": pieces}).json()["data"][0]
    for wrong in ({"pieces": 1}, {"input": [1, 2]}):
        assert client().post("/tokenize", json=asked | wrong).json()["error"]["param"] == "pieces"
    refused = client().post("/v1/embeddings", json=asked)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer no", 401),
        ("Bearer b", 200),
        ("bearer a", 200),
        ("Basic a", 401),
        ("Bearer κλει", 401),
        ("Bearer κλειδί", 200),
        ("a", 401),
    ],
)
def test_where_there_are_keys_a_request_needs_one(header, status) -> None:
    server = client(keys=("a", "b", "κλειδί"))
    headers = {} if header is None else {"Authorization": header.encode()}
    for answer in (server.post("/v1/embeddings", json=ASK, headers=headers), server.get("/v1/models", headers=headers)):
        assert answer.status_code == status
    assert server.get("/health").status_code == server.get("/ready").status_code == 200


def test_a_missing_key_is_refused_in_openais_format() -> None:
    answer = client(keys=("a",)).get("/v1/models")
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_keys_are_read_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("SCION_API_KEYS", " one, two,,")
    assert read_keys() == ("one", "two")
    monkeypatch.delenv("SCION_API_KEYS")
    assert read_keys() == ()
    monkeypatch.setenv("SCION_API_KEYS", " ,")
    with pytest.raises(ConfigError, match="it names no key"):
        read_keys()


def test_web_pages_of_named_origins_may_ask_also_where_there_are_keys() -> None:
    server = client(cors_origins=("https://a.example",), keys=("k",))
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, is_allowed in (("https://a.example", True), ("https://b.example", False)):
        answer = server.options("/v1/embeddings", headers={"Origin": origin} | asking)
        assert (answer.headers.get("access-control-allow-origin") == origin) is is_allowed
        assert (answer.status_code == 200) is is_allowed


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(front, "_BODY_SECONDS", 0.05)

    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(30)
            return {}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await client().app({"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}, receive, send)
        return sent

    assert asyncio.run(run())[0]["status"] == 408


def test_the_texts_of_a_client_that_left_are_not_encoded() -> None:
    was_cancelled = asyncio.Event()

    async def slow(rows: TokenIds, output: Output) -> np.ndarray:
        try:
            await asyncio.sleep(30)
        finally:
            was_cancelled.set()
        return await ones(rows, output)

    async def run() -> None:
        messages = iter([{"type": "http.request", "body": json.dumps(ASK).encode()}, {"type": "http.disconnect"}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            assert message.get("status", 499) == 499

        await client(slow).app({"type": "http", "path": "/v1/embeddings", "method": "POST", "headers": []}, receive, send)
        await asyncio.sleep(0)
        assert was_cancelled.is_set()

    asyncio.run(asyncio.wait_for(run(), 10))
