"""The OpenAPI document allows what the parser allows."""

import json
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.serve import answers, openapi, page, protocol, rerank
from cluster.serve.config import ServeConfig
from cluster.serve.models import Models
from cluster.serve.protocol import RequestError
from data_pipeline.tokenizers.pieces import Pieces
from tests.serve.test_front import ASK, client
from tests.serve.test_protocol import CARD

DOCUMENT = openapi.document([CARD], {}, ServeConfig(max_inputs=4))
MODELS = Models({"tiny": SimpleNamespace(card=CARD)})
VALIDATOR = jsonschema.Draft202012Validator(DOCUMENT["components"]["schemas"]["Request"])


def refusal(keys: dict[str, Any]) -> RequestError | None:
    try:
        MODELS.find(keys.get("model"))
        protocol.parse_request(keys, CARD, 4)
    except RequestError as error:
        return error
    return None


def test_it_has_all_routes_and_keys() -> None:
    paths = {path.replace("{name:path}", "{model}") for path in (route.path for route in client().app.routes)}
    pages = {route.path for route in page.routes()}
    assert set(DOCUMENT["paths"]) == paths - {"/openapi.json", "/v2/rerank"} - pages
    schemas = DOCUMENT["components"]["schemas"]
    assert set(schemas["Request"]["properties"]) == set(protocol.KEYS)
    assert set(schemas["TokenizeRequest"]["properties"]) == set(protocol.TOKENIZE_KEYS)
    assert set(schemas["RerankRequest"]["properties"]) == set(rerank.KEYS)
    for name in ("TokenizeRequest", "RerankRequest"):
        assert all(value.get("description") for value in schemas[name]["properties"].values())
    assert client().get("/openapi.json").json()["openapi"] == "3.1.0"


def test_every_reference_is_resolved() -> None:
    names = {part.split('"')[0] for part in json.dumps(DOCUMENT).split("#/components/schemas/")[1:]}
    assert names == set(DOCUMENT["components"]["schemas"])


def test_answers_have_the_documented_keys() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    pieces = Pieces(pieces=("a",), special=())
    [entry] = json.loads(answers.tokens([[1]], CARD, [(pieces, pieces)]))["data"]
    assert set(entry) - {"object"} == set(schemas["Tokens"]["properties"]["data"]["items"]["properties"])
    entry = json.loads(answers.model(CARD, ServeConfig()))
    assert set(entry) - {"object", "created", "owned_by"} == set(schemas["Model"]["properties"]) - {"root"}
    assert set(client().post("/v1/embeddings", json=ASK).json()) == set(schemas["Embeddings"]["properties"])


TEXTS: list[Any] = [None, "", "a", [], ["a"], ["a", ""], ["a"] * 5, 3, {}]
IDS: list[Any] = [[1, 2], [1] * 7, [[1], [99]], [[1], []], [100], [[-1]], [[1], "a"], [True]]
INPUTS = st.sampled_from(TEXTS + IDS)
VALUES = {
    "encoding_format": ["float", "base64", "int8", 3],
    "dimensions": [32, 8, 4, 9, "8", True, 8.5],
    "user": ["me", 3],
    "truncate": ["end", "none", "start", "left"],
    "layer": [1, 2, 3],
    "output_dtype": ["float", "ubinary", "int8"],
    "normalize": [True, False, "yes"],
    "zzz": [1],
}
OPTIONS = st.fixed_dictionaries({}, optional={key: st.sampled_from([None, *values]) for key, values in VALUES.items()})


OF_TWO_KEYS = ("no multiple of 8", "not calibrated for bytes at this width", "calibrated for the embedder's own vectors")
"""Refusals of a type of values at some dimensions, layers, or with normalize; tests/serve/test_protocol.py has each of them."""


@settings(deadline=None, max_examples=300)
@given(INPUTS, OPTIONS, st.sampled_from(["tiny", "gpt", None]))
def test_a_body_is_valid_where_the_parser_reads_it(value, options, model) -> None:
    """But for what depends on two keys at once, which a schema says with difficulty."""
    keys = {"model": model, "input": value} | options
    error = refusal(keys)
    if error is not None and any(said in error.what for said in OF_TWO_KEYS):
        return
    assert VALIDATOR.is_valid(keys) is (error is None)


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["schemas"]))
def test_every_schema_is_one(name) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])
