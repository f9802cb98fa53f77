"""Documents in the order of their similarity to a query."""

import gzip
import json
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serve import rerank
from cluster.serve.compression import unpacked
from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from cluster.serve.protocol import RequestError
from tests.serve.test_front import ASK, client
from tests.serve.test_protocol import CARD
from tests.serve.test_serving import send


def parse(**keys: object) -> rerank.RerankRequest:
    return rerank.parse_request({"model": "tiny", "query": "a", "documents": ["b", "c"], **keys}, CARD, 4)


def test_query_and_documents_have_the_prompts_of_their_sides() -> None:
    asked = parse(documents=["b", {"text": "c"}], dimensions=8, layer=1, truncate="none")
    assert (asked.query.texts, asked.query.input_type) == (("a",), "query")
    assert (asked.documents.texts, asked.documents.input_type) == (("b", "c"), "document")
    assert (asked.output.dimensions, asked.output.layers, asked.query.truncate) == (8, 1, "none")
    assert (asked.top_n, asked.returns_documents) == (2, False)
    assert parse(top_n=9).top_n == 2


@pytest.mark.parametrize(
    ("keys", "param", "message"),
    [
        ({"query": None}, "query", "must be a text, got null"),
        ({"query": ""}, "query", "is an empty string"),
        ({"query": [1, 2]}, "query", "must be a text, got list"),
        ({"documents": None}, "documents", "is missing"),
        ({"documents": "b"}, "documents", "must be a list, got string"),
        ({"documents": []}, "documents", "is an empty list"),
        ({"documents": ["b"] * 5}, "documents", "has 5 inputs, more than 4"),
        ({"documents": ["b", ""]}, "documents[1]", "is an empty string"),
        ({"documents": ["b", [1]]}, "documents[1]", "must be a text, got list"),
        ({"documents": ["b", {"title": "c"}]}, "documents[1]", "must be a text, got null"),
        ({"top_n": 0}, "top_n", "at least 1"),
        ({"top_n": True}, "top_n", "whole number"),
        ({"return_documents": "yes"}, "return_documents", "must be true or false"),
        ({"dimensions": 9}, "dimensions", "does not offer 9"),
        ({"top_k": 3}, "top_k", "Did you mean top_n?"),
    ],
)
def test_a_wrong_request_is_refused_with_its_own_keys(keys, param, message) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**keys)
    assert caught.value.where == param
    assert message in str(caught.value)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_nearest_comes_first_and_equal_ones_as_they_came(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).integers(-2, 3, size=(count + 1, 3)).astype(np.float32)
    asked = rerank.parse_request({"query": "q", "documents": [f"d{n}" for n in range(count)]}, CARD, 20)
    results = json.loads(rerank.answer(vectors, [[1]] * (count + 1), asked, CARD))["results"]
    norms = np.linalg.norm(vectors, axis=1)
    cosines = [float(v @ vectors[0] / max(n * norms[0], 1e-12)) for v, n in zip(vectors[1:], norms[1:], strict=True)]
    assert [round(one["relevance_score"], 5) for one in results] == sorted((round(c, 5) + 0.0 for c in cosines), reverse=True)
    for before, after in pairwise(results):
        assert before["relevance_score"] > after["relevance_score"] or before["index"] < after["index"]


def test_the_endpoint_ranks_as_encode_does(folder: str, embedder, english) -> None:
    documents = english[:30]
    body = {"model": "embedder", "query": "click the button", "documents": documents, "top_n": 5, "return_documents": True}
    with serve_in_process(ServeConfig(model=folder, port=0)) as url:
        status, content = send(url, "/rerank", json.dumps(body).encode())
        assert send(url, "/rerank", json.dumps(body | {"documents": ["", "a"]}).encode())[0] == 400
        assert send(url.removesuffix("/v1"), "/info")[1]["models"][0]["id"] == "embedder"
    scores = embedder.encode(documents, prompt_name="document") @ embedder.encode([body["query"]], prompt_name="query")[0]
    order = np.argsort(-scores, kind="stable")[:5].tolist()
    assert status == 200
    assert [one["index"] for one in content["results"]] == order
    assert [one["relevance_score"] for one in content["results"]] == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert [one["document"]["text"] for one in content["results"]] == [documents[index] for index in order]


@pytest.mark.parametrize(
    ("encoding", "packed"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_body_is_read(encoding, packed) -> None:
    headers = {"Content-Encoding": encoding}
    answer = client().post("/v1/embeddings", content=packed(json.dumps(ASK).encode()), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b"x" * 1000), "gzip", 413),
        (gzip.compress(bytes(10**8)), "gzip", 413),
        (b"{}", "br", 415),
        (b"{}", "gzip", 400),
        (gzip.compress(b"{}")[:-3], "gzip", 400),
        (gzip.compress(b"{}") * 2, "gzip", 400),
    ],
)
def test_a_compressed_body_cannot_exceed_the_limits(body, encoding, status) -> None:
    with pytest.raises(RequestError) as caught:
        unpacked(body, encoding, 500)
    assert caught.value.status == status


def test_answers_are_compressed_where_it_is_asked_for() -> None:
    body = ASK | {"input": ["a"] * 200}
    headers = {"Accept-Encoding": "gzip"}
    packed, plain = (client(gzip=on).post("/v1/embeddings", json=body, headers=headers) for on in (True, False))
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()
