"""`POST /v1/rerank`: documents by their similarity to a query, as Cohere's and Jina's clients ask for it. Pure functions.

The score is the cosine of the two vectors: an embedder reads a query and a document apart, unlike a cross-encoder.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.serve import protocol
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, RequestError, TokenIds, kind_of

_OF_VECTORS = ("dimensions", "layer", "truncate", "user")
"""Keys that mean what they mean in a request for vectors."""
KEYS = ("model", "query", "documents", "top_n", "return_documents", *_OF_VECTORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """A checked request."""

    query: EmbeddingRequest
    documents: EmbeddingRequest
    top_n: int
    """Documents of the answer."""
    returns_documents: bool

    @property
    def output(self) -> Output:
        return self.query.output


def parse_request(content: dict[str, Any], card: ModelCard, max_inputs: int) -> RerankRequest:
    """Checks the body of a request to the model of the card.

    Raises:
        RequestError: the request is invalid.
    """
    protocol.check_keys(content, KEYS)
    documents: Any = content.get("documents")
    if not isinstance(documents, list):
        what = "is missing." if documents is None else f"must be a list, got {kind_of(documents)}."
        raise RequestError(what, "documents", 'Send a list of texts, or of {"text": ...}.')
    if not documents:
        raise RequestError("is an empty list.", "documents", "Send at least one document.")
    texts: list[Any] = [one.get("text") if isinstance(one, dict) else one for one in documents]
    sides: dict[str, list[Any]] = {"query": [content.get("query")], "documents": texts}
    for key, some in sides.items():
        for index, text in enumerate(some):
            if not isinstance(text, str):
                where = key if key == "query" else f"{key}[{index}]"
                raise RequestError(f"must be a text, got {kind_of(text)}.", where, "Send a string.")
    top_n, returns = content.get("top_n"), content.get("return_documents")
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        raise RequestError("must be a whole number of at least 1.", "top_n", "Leave it out for all documents.")
    if not isinstance(returns, bool | None):
        raise RequestError(f"must be true or false, got {kind_of(returns)}.", "return_documents", "Send a boolean.")
    return RerankRequest(
        query=_side(content, card, "query", sides["query"], max_inputs),
        documents=_side(content, card, "documents", texts, max_inputs),
        top_n=len(texts) if top_n is None else min(top_n, len(texts)),
        returns_documents=bool(returns),
    )


def _side(content: dict[str, Any], card: ModelCard, key: str, texts: list[str], max_inputs: int) -> EmbeddingRequest:
    """The request for the vectors of the texts of one key; its errors name that key."""
    asked = {name: content[name] for name in _OF_VECTORS if name in content}
    with _renamed("input[0]" if key == "query" else "input", key):
        return protocol.parse_request({"input": texts, "input_type": key.removesuffix("s"), **asked}, card, max_inputs)


@contextmanager
def _renamed(inner: str, key: str) -> Iterator[None]:
    """Errors of the block name the key of this request in place of the one of a request for vectors."""
    try:
        yield
    except RequestError as error:
        where = error.where.replace(inner, key, 1) if error.where.startswith(inner) else error.where
        raise RequestError(error.what, where, error.fix, error.status, error.code) from None


def tokenize(asked: RerankRequest, tokenizer: Callable[[EmbeddingRequest], TokenIds], card: ModelCard) -> TokenIds:
    """Token ids of the query, then of the documents; RequestError for a text that has none, or too many."""
    query, documents = tokenizer(asked.query), tokenizer(asked.documents)
    with _renamed("input[0]", "query"):
        protocol.check_tokenized(query, card)
    with _renamed("input", "documents"):
        protocol.check_tokenized(documents, card)
    return [*query, *documents]


def answer(vectors: NDArray[np.float32], rows: TokenIds, asked: RerankRequest, card: ModelCard) -> bytes:
    """The answer by the vectors of the query and of the documents: the nearest first, those of one score as they came."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores = unit[1:] @ unit[0]
    results = []
    for index in np.argsort(-scores, kind="stable")[: asked.top_n].tolist():
        result = {"index": index, "relevance_score": float(scores[index])}
        if asked.returns_documents:
            result["document"] = {"text": asked.documents.texts[index]}
        results.append(result)
    tokens = sum(map(len, rows))
    return orjson.dumps({"model": card.id, "results": results, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
