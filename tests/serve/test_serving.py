"""The served embedder, queried by the clients of users."""

import json
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest

from cluster.serve.app import serve_on_ray
from cluster.serve.check import compare, request_vectors
from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from trainer.embedder import Embedder


@pytest.fixture(scope="module", params=[serve_in_process, serve_on_ray])
def url(request: pytest.FixtureRequest, ray_session: None, folder: str) -> Iterator[str]:
    """Limits so low that requests are split, and a budget below the longest row."""
    config = ServeConfig(model=folder, name="tiny", port=0, max_batch_tokens=20, max_inputs=300, max_body_bytes=100_000)
    with request.param(config) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    return np.array([entry.embedding for entry in answer.data], dtype=np.float32)


def send(url: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer, errors included."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_client_gets_the_vectors_of_encode(url, embedder, english) -> None:
    result = compare(url, embedder, english[:100])
    assert result["requests"] == 8
    assert result["max_abs_diff"] <= 1e-5


@pytest.mark.parametrize("floats", [True, False])
def test_a_text_too_long_is_cut_as_encode_cuts_it(url, embedder, floats) -> None:
    texts = ["click the button " * 50, "click"]
    assert np.abs(request_vectors(url, "tiny", texts, floats=floats) - embedder.encode(texts)).max() <= 1e-5


def test_an_input_type_puts_its_prompt_in_front(client, embedder, english) -> None:
    """Also where the prompt is not pooled, which token ids alone do not say."""
    for name in ("query", "sts", "document"):
        answer = client.embeddings.create(model="tiny", input=english[:40], extra_body={"input_type": name})
        assert np.abs(vectors(answer) - embedder.encode(english[:40], prompt_name=name)).max() <= 1e-5
    assert np.abs(embedder.encode(english[:40], prompt_name="query") - embedder.encode(english[:40])).max() > 1e-3


def test_token_ids_give_the_vectors_of_their_texts(client, embedder, english) -> None:
    ids = embedder.tokenize(english[:10])
    several = vectors(client.embeddings.create(model="tiny", input=ids))
    one = vectors(client.embeddings.create(model="tiny", input=ids[3]))
    expected = embedder.encode(english[:10])
    assert np.abs(several - expected).max() <= 1e-5
    assert np.abs(one - expected[3]).max() <= 1e-5


def test_fewer_dimensions_are_cut_and_normalised(client, embedder, english) -> None:
    short = vectors(client.embeddings.create(model="tiny", input=english[:5], dimensions=8))
    whole = embedder.encode(english[:5])[:, :8]
    assert np.abs(short - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() <= 1e-5


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"layer": 1}, {"layers": 1}),
        ({"layer": 1, "dimensions": 8}, {"layers": 1, "dimensions": 8}),
        ({"index_version": "old", "input_type": "query"}, {"index": "old", "prompt_name": "query"}),
        ({"index_version": "old", "layer": 1, "dimensions": 8}, {"index": "old", "layers": 1, "dimensions": 8}),
        ({"prompt_name": "sts"}, {"prompt_name": "sts"}),
    ],
)
def test_options_give_the_vectors_that_encode_gives_for_them(client, embedder, english, asked, options) -> None:
    width = {key: asked[key] for key in asked if key == "dimensions"}
    extra = {key: value for key, value in asked.items() if key != "dimensions"}
    answer = client.embeddings.create(model="tiny", input=english[:40], extra_body=extra, **width)
    assert np.abs(vectors(answer) - embedder.encode(english[:40], **options)).max() <= 1e-5
    assert np.abs(vectors(answer) - embedder.encode(english[:40], options.get("dimensions"))).max() > 1e-3


def test_depths_at_the_same_time_get_their_own_vectors(client, embedder, english) -> None:
    def call(layers: int | None) -> float:
        answer = client.embeddings.create(model="tiny", input=english[:30], extra_body={"layer": layers})
        return float(np.abs(vectors(answer) - embedder.encode(english[:30], layers=layers)).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(call, [None, 1] * 10)) <= 1e-5


def test_vectors_may_keep_their_length(client, embedder, english) -> None:
    answer = vectors(client.embeddings.create(model="tiny", input=english[:5], extra_body={"normalize": False}))
    lengths = np.linalg.norm(answer, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.01
    assert np.abs(answer / lengths - embedder.encode(english[:5])).max() <= 1e-5


def test_bits_are_the_signs_of_the_vectors(client, embedder, english) -> None:
    extra = {"output_dtype": "ubinary"}
    answer = client.embeddings.create(model="tiny", input=english[:9], encoding_format="float", extra_body=extra)
    packed = np.array([entry.embedding for entry in answer.data], dtype=np.uint8)
    assert np.array_equal(np.unpackbits(packed, axis=1), embedder.encode(english[:9]) > 0)


@pytest.mark.parametrize(("dtype", "layer"), [("int8", None), ("uint8", 1)])
def test_bytes_are_those_of_encode_but_for_the_rounding_of_the_batch(client, embedder, english, dtype, layer) -> None:
    extra = {"output_dtype": dtype, "layer": layer}
    answer = client.embeddings.create(model="tiny", input=english[:30], encoding_format="float", extra_body=extra)
    values = np.array([entry.embedding for entry in answer.data])
    difference = values - embedder.encode(english[:30], layers=layer, output_dtype=dtype).astype(int)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def test_a_text_is_cut_at_its_start_where_asked(client, embedder) -> None:
    text = "click the button " * 50 + "and save the file"
    for name in (None, "query"):
        extra = {"truncate": "start", "input_type": name}
        answer = vectors(client.embeddings.create(model="tiny", input=[text], extra_body=extra))
        ids = embedder.tokenize([text], name, truncate="start")
        end = embedder.tokenize(["and save the file"], name)[0][-5:]
        assert len(ids[0]) == 24
        assert ids[0][-5:] == end
        assert ids[0][:3] == embedder.tokenize([text], name)[0][:3]
        assert np.abs(answer - embedder.encode_ids(ids)).max() <= 1e-5


def test_a_text_that_is_too_long_is_refused_where_it_is_not_to_be_cut(client) -> None:
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]: has \d+ tokens, more than 24"):
        client.embeddings.create(model="tiny", input=["click", "click the button " * 50], extra_body={"truncate": "none"})


def test_ids_of_another_tokenizer_are_refused(client) -> None:
    with pytest.raises(openai.BadRequestError, match="this model's special tokens"):
        client.embeddings.create(model="tiny", input=[[9, 10, 11]])


def test_usage_counts_the_tokens_after_the_cut(client, embedder) -> None:
    texts = ["click the button " * 50, "click"]
    answer = client.embeddings.create(model="tiny", input=texts)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, embedder.tokenize(texts)))


def test_callers_at_the_same_time_get_their_own_vectors(client, embedder, english) -> None:
    """Requests of many sizes and widths share batches; refused ones among them do not affect the others."""
    rng = random.Random(0)

    def call(number: int) -> float:
        if number % 5 == 0:
            with pytest.raises(openai.BadRequestError, match="token id 99999"):
                client.embeddings.create(model="tiny", input=[[2, 3], [2, 99999, 3]])
            return 0.0
        texts = rng.sample(english, rng.choice([1, 2, 7, 40]))
        width = rng.choice([8, 32])
        answer = vectors(client.embeddings.create(model="tiny", input=texts, dimensions=width))
        return float(np.abs(answer - embedder.encode(texts, width)).max())

    with ThreadPoolExecutor(12) as pool:
        assert max(pool.map(call, range(60))) <= 1e-5


@pytest.mark.parametrize(
    ("keys", "status", "param", "code"),
    [
        ({"input": ""}, 400, "input", None),
        ({"input": []}, 400, "input", None),
        ({"input": ["a", 1]}, 400, "input[1]", None),
        ({"input": ["a"] * 301}, 400, "input", None),
        ({"input": [[5] * 25]}, 400, "input[0]", None),
        ({"input": [5, 10**9]}, 400, "input[1]", None),
        ({"input": "a", "dimensions": 16}, 400, "dimensions", None),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format", None),
        ({"input": "a", "model": "gpt"}, 404, "model", "model_not_found"),
        ({"input": "a" * 100_000}, 413, None, "request_too_large"),
    ],
)
def test_a_wrong_request_gets_openais_error(url, keys, status, param, code) -> None:
    actual, answer = send(url, "/embeddings", json.dumps({"model": "tiny"} | keys).encode())
    assert actual == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code)


def test_a_body_that_is_not_json_and_an_unknown_route_get_openais_error(url) -> None:
    for path, body, status in (("/embeddings", b"{", 400), ("/embedding", None, 404), ("/embeddings", None, 405)):
        actual, answer = send(url, path, body)
        assert actual == status
        assert answer["error"]["type"] == "invalid_request_error"


def test_models_and_health_are_answered(client, url) -> None:
    [model] = client.models.list().data
    assert (model.id, model.max_length, model.dimensions) == ("tiny", 24, [32, 8])
    assert send(url.removesuffix("/v1"), "/health") == (200, {"status": "ok"})


def test_the_embedder_of_the_folder_is_the_one_that_is_compared(embedder: Embedder) -> None:
    """A canary: two texts differ by far more than what the tests above allow."""
    one, two = embedder.encode(["click the button", "open the file"])
    assert np.abs(one - two).max() > 1e-2


@pytest.mark.parametrize(("path", "kind"), [("/", "text/html"), ("/docs", "text/html"), ("/page/main.js", "text/javascript")])
def test_both_servers_have_the_page(url, path, kind) -> None:
    with urllib.request.urlopen(url.removesuffix("/v1") + path, timeout=60) as answer:
        assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.read()


def test_pieces_join_to_the_text(url) -> None:
    asked = {"model": "tiny", "input": ["click the button"], "pieces": True}
    _, answer = send(url.removesuffix("/v1"), "/tokenize", json.dumps(asked).encode())
    [entry] = answer["data"]
    assert "".join(entry["pieces"][1:-1]) == "click the button"
    assert entry["special_pieces"] == [0, len(entry["tokens"]) - 1]
    asked["input_type"] = "query"  # its prompt is not pooled, which ids do not say
    assert send(url.removesuffix("/v1"), "/tokenize", json.dumps(asked).encode())[0] == 400


def test_small_requests_in_the_midst_of_large_ones_get_the_same_vectors(client, embedder, english) -> None:
    expected = embedder.encode(english[:200])

    def large(_: int) -> float:
        return float(np.abs(vectors(client.embeddings.create(model="tiny", input=english[:200])) - expected).max())

    def small(number: int) -> float:
        return float(np.abs(vectors(client.embeddings.create(model="tiny", input=english[number])) - expected[number]).max())

    with ThreadPoolExecutor(8) as pool:
        results = pool.map(large, range(3)), pool.map(small, range(100))
        assert max(max(one) for one in results) <= 1e-5
