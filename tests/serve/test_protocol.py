"""Requests, responses, and a message for every kind of invalid request."""

import base64
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serve import protocol
from cluster.serve.protocol import ModelCard, RequestError

CARD = ModelCard(name="tiny", dimensions=(32, 8), max_length=6, vocabulary=100)


def parse(**keys: Any) -> protocol.EmbeddingRequest:
    return protocol.parse_request(json.dumps({"model": "tiny", **keys}).encode(), CARD, 4)


@pytest.mark.parametrize(
    ("value", "texts", "rows"),
    [
        ("a", ("a",), ()),
        (["a", "b"], ("a", "b"), ()),
        ([1, 2], (), ((1, 2),)),
        ([[1, 2], [99]], (), ((1, 2), (99,))),
        ("Καλημέρα \U0001f600", ("Καλημέρα \U0001f600",), ()),
    ],
)
def test_every_form_of_input_is_read(value, texts, rows) -> None:
    request = parse(input=value)
    assert (request.texts, request.token_ids) == (texts, rows)


def test_an_input_type_is_a_side_of_a_search_or_a_prompt_of_the_embedder() -> None:
    assert parse(input="a").input_type is None
    assert parse(input="a", input_type="query").input_type == "query"
    with pytest.raises(RequestError, match=r"\"sts\" is not known. Ask for one of query, document, or leave it out."):
        parse(input="a", input_type="sts")
    with pytest.raises(RequestError, match="list of token ids has its prompt already"):
        parse(input=[1, 2], input_type="query")
    with pytest.raises(RequestError, match="is not known"):
        parse(input="a", input_type=["query"])
    card = ModelCard(name="tiny", dimensions=(32,), max_length=6, vocabulary=100, prompts=("query", "sts"))
    body = json.dumps({"model": "tiny", "input": "a", "input_type": "sts"}).encode()
    assert protocol.parse_request(body, card, 4).input_type == "sts"
    assert protocol.models_body(card)["data"][0]["input_types"] == ["query", "document", "sts"]


def test_missing_and_null_options_have_openais_defaults() -> None:
    assert parse(input="a") == parse(input="a", dimensions=None, encoding_format=None, user=None)
    assert not parse(input="a").is_base64
    assert parse(input="a").dimensions is None


def test_known_options_are_read_and_unknown_keys_ignored() -> None:
    request = parse(input="a", dimensions=8, encoding_format="base64", user="me", input_type="query")
    assert request.dimensions == 8
    assert request.is_base64


@pytest.mark.parametrize(
    ("keys", "param", "message"),
    [
        ({"input": ""}, "input", "is an empty string"),
        ({"input": []}, "input", "is an empty list"),
        ({}, "input", "is missing"),
        ({"input": 5}, "input", "must be a string or a list, got number"),
        ({"input": {"a": 1}}, "input", "got object"),
        ({"input": ["a", ""]}, "input[1]", "is an empty string"),
        ({"input": ["a", 1]}, "input[1]", "is a number, must be a text or a list of token ids like input[0], a string"),
        ({"input": ["a", [1]]}, "input[1]", "is a list"),
        ({"input": [[1], "a"]}, "input[1]", "is a string"),
        ({"input": [None]}, "input[0]", "is a null, must be a text or a list of token ids."),
        ({"input": [True]}, "input[0]", "is a boolean"),
        ({"input": [1.5]}, "input[0]", "is a number"),
        ({"input": [1, "a"]}, "input[1]", "is a string, must be a token id"),
        ({"input": [[1, True]]}, "input[0][1]", "is a boolean, must be a token id"),
        ({"input": [[1], []]}, "input[1]", "is an empty list of token ids"),
        ({"input": [[1], [5, 100]]}, "input[1][1]", "token id 100 is not within 0 and 99"),
        ({"input": [-1]}, "input[0]", "token id -1 is not within 0 and 99"),
        ({"input": [[1] * 7]}, "input[0]", "has 7 token ids, more than 6"),
        ({"input": ["a"] * 5}, "input", "has 5 inputs, more than 4"),
        ({"input": "a", "dimensions": 9}, "dimensions", "has no 9 dimensions. Ask for one of 32, 8."),
        ({"input": "a", "dimensions": "8"}, "dimensions", "must be a whole number, got string"),
        ({"input": "a", "dimensions": True}, "dimensions", "got boolean"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "\"int8\" is not known. Ask for 'float'"),
        ({"input": "a", "encoding_format": ["float"]}, "encoding_format", "is not known"),
        ({"input": "a", "user": 3}, "user", "must be a string, got number"),
        ({"input": "a", "model": None}, "model", "is missing. Send 'tiny'"),
        ({"input": "a", "model": 3}, "model", "must be a string, got number"),
    ],
)
def test_a_wrong_request_is_refused_with_the_place_and_the_remedy(keys, param, message) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**keys)
    body = caught.value.body()["error"]
    assert caught.value.status == 400
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert body["param"] == param
    assert message in body["message"]
    assert caught.value.fix


def test_an_unknown_model_is_not_found_and_the_served_one_named() -> None:
    with pytest.raises(RequestError, match=r"there is no model 'gpt'\. Served here: tiny") as caught:
        parse(input="a", model="gpt")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"input": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_not_json_is_refused(body) -> None:
    with pytest.raises(RequestError, match="the body is not JSON") as caught:
        protocol.parse_request(body, CARD, 4)
    assert caught.value.status == 400


def test_a_body_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(RequestError, match="must be an object, got list"):
        protocol.parse_request(b"[]", CARD, 4)


_text = st.text("aβ \0", max_size=4)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_text, inner, max_size=3),
)


@settings(deadline=None)
@given(keys=st.dictionaries(st.sampled_from(["model", "input", "dimensions", "encoding_format", "user", "x"]), _json))
def test_any_json_is_either_read_or_refused(keys) -> None:
    body = json.dumps({"model": "tiny"} | keys).encode()
    try:
        request = protocol.parse_request(body, CARD, 4)
    except RequestError as error:
        json.dumps(error.body()).encode()
    else:
        assert bool(request.texts) != bool(request.token_ids)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match=r"input\[1\]: the tokenizer leaves no token"):
        protocol.check_tokenized([[1], []])


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_an_answer_has_every_vector_in_order_and_the_tokens_used(encoding) -> None:
    vectors = np.array([[0.1, -2.5], [1e-8, 3.0]], dtype=np.float32)
    request = parse(input=["a", "b"], encoding_format=encoding)
    response = json.loads(protocol.response_body(vectors, [[2, 3], [2, 9, 3]], request, CARD))
    assert response["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (response["object"], response["model"]) == ("list", "tiny")
    assert [entry["index"] for entry in response["data"]] == [0, 1]
    embeddings = [entry["embedding"] for entry in response["data"]]
    if encoding == "base64":
        embeddings = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in embeddings]
    assert np.array_equal(np.array(embeddings, dtype=np.float32), vectors)


def test_the_list_of_models_says_what_may_be_asked() -> None:
    [model] = protocol.models_body(CARD)["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert (model["dimensions"], model["max_length"]) == ([32, 8], 6)
    assert isinstance(model["created"], int)


def test_an_error_survives_the_trip_between_processes() -> None:
    error = RequestError("is wrong.", "input", "Correct it.", 413, "too_large")
    again = pickle.loads(pickle.dumps(error))
    assert (again.body(), again.status) == (error.body(), 413)
