"""Bodies of responses."""

import base64
import json

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from cluster.serve import answers
from cluster.serve.config import ServeConfig
from cluster.serve.protocol import EmbeddingRequest, Output
from tests.serve.test_protocol import CARD
from trainer.quantization import quantize

ROWS = [[2, 3], [2, 9, 3]]


def entries(vectors: np.ndarray, **output: object) -> list[object]:
    asked = EmbeddingRequest(texts=("a", "b"), token_ids=(), output=Output(**output))
    answer = json.loads(answers.embeddings(vectors, ROWS, asked, CARD))
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    return [entry["embedding"] for entry in answer["data"]]


@pytest.mark.parametrize("is_base64", [False, True])
def test_an_answer_has_every_vector_in_order_and_the_tokens_used(is_base64) -> None:
    vectors = np.array([[0.1, -2.5], [1e-8, 3.0]], dtype=np.float32)
    found = entries(vectors, is_base64=is_base64)
    if is_base64:
        found = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in found]
    assert np.array_equal(np.array(found, dtype=np.float32), vectors)


def test_vectors_cut_to_fewer_dimensions_are_written_as_they_are() -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    assert np.array_equal(np.array(entries(vectors[:, :4]), dtype=np.float32), vectors[:, :4])


@pytest.mark.parametrize("is_base64", [False, True])
@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_bits_are_packed_as_sentence_transformers_packs_them(dtype, is_base64) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    vectors[0, 0] = 0.0
    theirs = quantize_embeddings(vectors, precision=dtype)
    found = entries(quantize(vectors, dtype), is_base64=is_base64)
    if is_base64:
        found = [np.frombuffer(base64.b64decode(text), dtype=theirs.dtype) for text in found]
    assert np.array_equal(np.array(found), theirs)


def test_the_list_of_models_says_what_may_be_asked() -> None:
    [model] = json.loads(answers.models([CARD], {}, ServeConfig(max_inputs=7)))["data"]
    assert model == json.loads(answers.model(CARD, ServeConfig(max_inputs=7)))
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert (model["dimensions"], model["max_length"], model["layers"]) == ([32, 8, 4], 6, [1, 2])
    assert model["index_versions"][1] == {"index_version": "older", "dimensions": 8, "layer": 1}
    assert isinstance(model["created"], int)
    assert (model["max_inputs"], model["max_body_bytes"]) == (7, 2 * 1024 * 1024)


def test_tokens_are_listed_as_requests_take_them() -> None:
    content = json.loads(answers.tokens(ROWS, CARD))
    assert [entry["tokens"] for entry in content["data"]] == ROWS
