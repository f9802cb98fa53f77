"""How many documents fit d dimensions if a query may ask for any two: free embeddings, and vectors that solve the task exactly.

Free embeddings (Weller et al. 2025, arXiv:2508.21038) are vectors of documents and queries that gradient descent moves freely.
They bound what a model of that width can learn: the number of documents up to which all pairs are retrieved grows as a cubic.
Differences from the authors' code: vectors have unit length from the start, and numbers of documents are tried one by one.

The bound is one of optimisation, not of dimensions: `circle` retrieves all pairs of any number of documents in four dimensions
if its vectors are exact. What fails first is the precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float64]

_TEMPERATURE, _RATE = 0.1, 0.01
_MOST_STEPS, _CHECKED_EACH = 100_000, 50
_PATIENCE, _LEAST_GAIN = 1_000, 1e-5
"""Training ends after so many steps in which the loss fell by less."""


def circle(n: int) -> tuple[Vectors, Vectors, NDArray[np.int64]]:
    """Documents [n, 4], queries [C(n, 2), 4], and the two documents of each query, such that exactly these score highest.

    Document t is at the angle x = 2 pi t / n, and its vector is (cos x, sin x, cos 2x, sin 2x) / sqrt(2). The polynomial
    -(1 - cos(x - a)) (1 - cos(x - b)) is 0 at a and b and negative elsewhere; its Fourier coefficients without the constant
    are the query for a and b: cos(x - a) + cos(x - b) - cos(2x - a - b) / 2.
    """
    angles = 2 * np.pi * np.arange(n) / n
    documents = np.stack([np.cos(angles), np.sin(angles), np.cos(2 * angles), np.sin(2 * angles)], axis=1) / np.sqrt(2)
    pairs = np.array(list(combinations(range(n), 2)))
    a, b = angles[pairs].T
    queries = np.stack([np.cos(a) + np.cos(b), np.sin(a) + np.sin(b), -np.cos(a + b) / 2, -np.sin(a + b) / 2], axis=1)
    return documents, queries / np.linalg.norm(queries, axis=1, keepdims=True), pairs


def share_retrieved(documents: NDArray[np.floating], queries: NDArray[np.floating], pairs: NDArray[np.int64]) -> float:
    """The share of the queries whose two documents score higher than all others. A tie counts against them."""
    correct = 0
    for start in range(0, len(queries), 1024):
        block = pairs[start : start + 1024]
        scores = queries[start : start + 1024] @ documents.T
        least = np.take_along_axis(scores, block, axis=1).min(axis=1, keepdims=True)
        correct += int(((scores >= least).sum(axis=1) == 2).sum())
    return correct / len(queries)


def _int8(vectors: Vectors) -> Vectors:
    """256 levels between the extremes of each dimension, as sentence-transformers' `quantize_embeddings`."""
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    return np.round((vectors - low) / (high - low) * 255) / 255 * (high - low) + low


PRECISIONS: Mapping[str, Callable[[Vectors], Vectors]] = MappingProxyType(
    {
        "fp64": lambda vectors: vectors,
        "fp32": lambda vectors: vectors.astype(np.float32).astype(np.float64),
        "fp16": lambda vectors: vectors.astype(np.float16).astype(np.float64),
        "int8": _int8,
        "binary": lambda vectors: np.where(vectors > 0, 1.0, -1.0),
    }
)
"""Documents and queries as they come back from an index that stores them so; scores are computed in fp64."""


def critical_n(dimensions: int, start: int, seed: int = 0) -> tuple[int, dict[int, float]]:
    """The largest number of documents up to which every pair is retrieved, and the share retrieved by number tried.

    Tries each number from `start` upwards until two in a row fail, and below it until one succeeds. A larger number may
    succeed where a smaller one fails: the optimisation is not monotone.
    """
    shares: dict[int, float] = {}

    def solves(n: int) -> bool:
        shares[n] = shares.get(n) or free_embeddings(dimensions, n, seed)
        return shares[n] == 1.0

    n = start
    while n > 2 and not solves(n):
        n -= 1
    while solves(n + 1) or solves(n + 2):
        n += 1
    return max(n for n, share in shares.items() if share == 1.0), dict(sorted(shares.items()))


def free_embeddings(dimensions: int, n: int, seed: int = 0) -> float:
    """The share of all pairs of n documents that free unit vectors retrieve after training.

    Adam on the contrastive loss of all queries, averaged over the two documents of each; ends once every pair is retrieved.
    """
    import torch

    def normal(purpose: str, rows: int) -> torch.Tensor:
        numbers = keyed_random.normals(keyed_random.key("free", purpose, dimensions, n, seed), np.arange(rows * dimensions))
        vectors = torch.from_numpy(numbers.astype(np.float32)).reshape(rows, dimensions)
        return torch.nn.functional.normalize(vectors, dim=1).requires_grad_()

    pairs = torch.tensor(list(combinations(range(n), 2)))
    parameters = [normal("queries", len(pairs)), normal("documents", n)]
    optimizer = torch.optim.Adam(parameters, lr=_RATE)
    best, best_step, share = float("inf"), 0, 0.0
    for step in range(_MOST_STEPS):
        scores = parameters[0] @ parameters[1].T
        if step % _CHECKED_EACH == 0:
            share = share_retrieved(parameters[1].detach().numpy(), parameters[0].detach().numpy(), pairs.numpy())
        loss = -torch.log_softmax(scores / _TEMPERATURE, dim=1).gather(1, pairs).mean()
        if loss.item() < best - _LEAST_GAIN:
            best, best_step = loss.item(), step
        if share == 1.0 or step - best_step >= _PATIENCE:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for vectors in parameters:
                vectors.copy_(torch.nn.functional.normalize(vectors, dim=1))
    return share
