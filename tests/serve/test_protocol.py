"""Requests, and a message for every kind of invalid one."""

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serve import protocol
from cluster.serve.protocol import ModelCard, Output, RequestError
from data_pipeline.pairs.text_form import TokenizedText

CARD = ModelCard(
    name="tiny",
    dimensions=(32, 8, 4),
    max_length=6,
    vocabulary=100,
    layers=(1, 2),
    indexes=(("old", 32, None), ("older", 8, 1)),
    calibrated=((32, None),),
)


def read(body: bytes, card: ModelCard, max_inputs: int) -> protocol.EmbeddingRequest:
    return protocol.parse_request(protocol.read_object(body), card, max_inputs)


def parse(**keys: Any) -> protocol.EmbeddingRequest:
    return read(json.dumps({"model": "tiny", **keys}).encode(), CARD, 4)


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
    assert read(body, card, 4).input_type == "sts"
    assert protocol.input_types(card) == ("query", "document", "sts")


def test_missing_and_null_options_have_openais_defaults() -> None:
    assert parse(input="a") == parse(input="a", dimensions=None, encoding_format=None, user=None)
    assert parse(input="a").output == Output()


def test_known_options_are_read() -> None:
    options = {"dimensions": 8, "layer": 1, "normalize": True, "output_dtype": "ubinary", "index_version": "older"}
    request = parse(input="a", encoding_format="base64", user="me", prompt_name="query", truncate="none", **options)
    expected = Output(dimensions=8, layers=1, index="older", is_normalized=True, dtype="ubinary", is_base64=True)
    assert request.output == expected
    assert (request.input_type, request.truncate) == ("query", "none")


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({"index_version": "older"}, "Known at these dimensions and layers: old."),
        ({"index_version": "new", "dimensions": 8, "layer": 1}, "Known at these dimensions and layers: older."),
        ({"index_version": "old", "layer": 2}, "Make it with `scion drift`."),
        ({"index_version": ["old"]}, "Known at these dimensions and layers: old."),
    ],
)
def test_an_index_that_cannot_be_searched_is_a_conflict_that_names_the_others(options, known) -> None:
    with pytest.raises(RequestError, match="there is no index") as caught:
        parse(input="a", **options)
    assert (caught.value.status, caught.value.code, caught.value.where) == (409, "unknown_index_version", "index_version")
    assert caught.value.fix == known


def test_ids_are_refused_where_they_do_not_say_what_is_pooled() -> None:
    with pytest.raises(RequestError, match="pools a part of the tokens"):
        read(b'{"model": "tiny", "input": [1, 2]}', replace(CARD, takes_ids=False), 4)
    with pytest.raises(RequestError, match="not all tokens of such a text are pooled"):
        protocol.check_sendable([TokenizedText([1, 2, 3], 0), TokenizedText([1, 2, 3], 1)])


@pytest.mark.parametrize("key", ["truncate", "encoding_format", "input_type", "output_dtype", "index_version", "user"])
def test_a_value_of_any_size_is_refused_in_a_short_message(key) -> None:
    deep: Any = "a"
    for _ in range(300):
        deep = [deep]
    for value in (deep, "x" * 100_000):
        if key == "user" and isinstance(value, str):
            continue
        body = {"model": "tiny", "input": "a", key: value}
        with pytest.raises(RequestError) as caught:
            read(json.dumps(body).encode(), CARD, 4)
        assert len(json.dumps(caught.value.body())) < 1000
    with pytest.raises(RequestError) as caught:
        parse(**{"input": "a", "k" * 100_000: 1})
    assert len(json.dumps(caught.value.body())) < 1000


def test_ids_of_another_tokenizer_are_refused_where_its_special_tokens_tell() -> None:
    card = replace(CARD, prefix=(2,), suffix=(3,))
    for ids, is_ours in (([2, 7, 3], True), ([2, 3], True), ([7, 8], False), ([2, 7], False), ([7, 3], False), ([3], False)):
        body = json.dumps({"model": "tiny", "input": [[2, 5, 3], ids]}).encode()
        if is_ours:
            assert read(body, card, 4).token_ids[1] == tuple(ids)
            continue
        with pytest.raises(RequestError, match=r"input\[1\]: does not begin with \[2\] and end with \[3\]") as caught:
            read(body, card, 4)
        assert caught.value.code == "other_tokenizer"


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
        ({"input": "a", "dimensions": 9}, "dimensions", "does not offer 9. Ask for one of 32, 8, 4."),
        ({"input": "a", "dimensions": "8"}, "dimensions", "must be a whole number, got string"),
        ({"input": "a", "dimensions": True}, "dimensions", "got boolean"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "\"int8\" is not known. Ask for 'float' or 'base64'"),
        ({"input": "a", "encoding_format": ["float"]}, "encoding_format", "is not known"),
        ({"input": "a", "user": 3}, "user", "must be a string, got number"),
        ({"input": "a", "layer": 3}, "layer", "does not offer 3. Ask for one of 1, 2."),
        ({"input": "a", "layer": "1"}, "layer", "must be a whole number"),
        ({"input": "a", "truncate": "left"}, "truncate", "\"left\" is not known. Ask for 'end' or 'start' or 'none'"),
        ({"input": "a", "output_dtype": "int4"}, "output_dtype", "\"int4\" is not known. Ask for 'float' or 'int8'"),
        ({"input": "a", "output_dtype": "int8", "dimensions": 8}, "output_dtype", "not calibrated for bytes at this width"),
        (
            {"input": "a", "output_dtype": "int8", "normalize": True},
            "output_dtype",
            "calibrated for the embedder's own vectors",
        ),
        ({"input": "a", "output_dtype": "uint8", "index_version": "old"}, "output_dtype", "leave index_version and normalize"),
        ({"input": "a", "output_dtype": "binary", "dimensions": 4}, "output_dtype", "4 are no multiple of 8"),
        ({"input": "a", "normalize": "yes"}, "normalize", "must be true or false, got string"),
        ({"input": "a", "prompt_name": "x"}, "prompt_name", '"x" is not known'),
        ({"input": "a", "prompt_name": "query", "input_type": "document"}, "prompt_name", "names another prompt"),
        ({"input": "a", "index_version": "old", "input_type": "document"}, "index_version", "Leave it out for documents"),
        ({"input": "a", "index_version": "old", "normalize": False}, "index_version", "moves unit vectors"),
        ({"input": "a", "dimension": 8}, "dimension", "is not known. Did you mean dimensions?"),
        ({"input": "a", "zzz": 8}, "zzz", "is not known. Known: model, input"),
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


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"input": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_not_json_is_refused(body) -> None:
    with pytest.raises(RequestError, match="the body is not JSON") as caught:
        read(body, CARD, 4)
    assert caught.value.status == 400


def test_a_body_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(RequestError, match="must be an object, got list"):
        read(b"[]", CARD, 4)


_text = st.text("aβ \0", max_size=4)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_text, inner, max_size=3),
)


@settings(deadline=None)
@given(keys=st.dictionaries(st.sampled_from([*protocol.KEYS, "x"]), _json))
def test_any_json_is_either_read_or_refused(keys) -> None:
    body = json.dumps({"model": "tiny"} | keys).encode()
    try:
        request = read(body, CARD, 4)
    except RequestError as error:
        json.dumps(error.body()).encode()
    else:
        assert bool(request.texts) != bool(request.token_ids)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match=r"input\[1\]: the tokenizer leaves no token"):
        protocol.check_tokenized([[1], []], CARD)
    with pytest.raises(RequestError, match=r"input\[1\]: has 7 tokens, more than 6"):
        protocol.check_tokenized([[1], [1] * 7], CARD)


def test_an_error_survives_the_trip_between_processes() -> None:
    error = RequestError("is wrong.", "input", "Correct it.", 413, "too_large")
    again = pickle.loads(pickle.dumps(error))
    assert (again.body(), again.status) == (error.body(), 413)


def test_pieces_are_not_those_of_a_text_that_is_cut_at_its_start() -> None:
    keys = {"model": "tiny", "input": "a", "pieces": True, "truncate": "start"}
    with pytest.raises(RequestError, match="from its start on") as caught:
        protocol.parse_request(keys, CARD, 4, protocol.TOKENIZE_KEYS)
    assert caught.value.where == "pieces"
    assert protocol.parse_request(keys | {"truncate": "end"}, CARD, 4, protocol.TOKENIZE_KEYS).has_pieces
