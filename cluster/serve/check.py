"""Compares the vectors that a client receives with those of `Embedder.encode`."""

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from openai import OpenAI, omit

from trainer.embedder import Embedder

_SIZES = (1, 3, 32, 256)
"""Texts of successive requests: a single one, a few, and more than fit in one forward pass."""


def request_vectors(base_url: str, model_name: str, texts: Sequence[str], *, floats: bool = False) -> NDArray[np.float32]:
    """Requests the vectors [n, d] of n texts with OpenAI's client, in requests of several sizes.

    Args:
        floats: whether to request numbers; by default the client requests and decodes base64.

    Raises:
        openai.APIError: the server refused or cannot be reached.
    """
    client = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    vectors: list[list[float]] = []
    for part in _parts(texts):
        response = client.embeddings.create(model=model_name, input=part, encoding_format="float" if floats else omit)
        vectors += [entry.embedding for entry in response.data]
    return np.array(vectors, dtype=np.float32)


def compare(base_url: str, embedder: Embedder, texts: Sequence[str]) -> dict[str, float]:
    """Requests every text in both encodings. Returns the number of requests and the largest difference from `encode`.

    Raises:
        openai.APIError: the server refused or cannot be reached.
    """
    name = OpenAI(base_url=base_url, api_key="none", max_retries=0).models.list().data[0].id
    expected = embedder.encode(texts)
    worst = max(
        float(np.abs(request_vectors(base_url, name, texts, floats=floats) - expected).max()) for floats in (False, True)
    )
    return {"requests": 2 * len(list(_parts(texts))), "max_abs_diff": worst}


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    start = 0
    for size in cycle(_SIZES):
        if start >= len(texts):
            return
        yield list(texts[start : start + size])
        start += size
