"""Queries of a newer embedder for an index of an older one: query drift compensation (Goswami et al. 2025, arXiv:2506.00037).

Training moves the vectors of queries and documents. The documents of an index stay where the old model put them, so the queries
are moved back, by a map that is fitted on the vectors of training queries, X by the new model and Y by the old one:

    q' = q M + c

    mean         M = I, c = mean(Y - X)                       the paper, section 3.3
    ridge        M, c = argmin |X M + 1 c - Y|^2 + lambda n |M - I|^2
    procrustes   M orthogonal, for centred X and Y            Schönemann 1966

The paper adds up the drifts of all trainings since the index was made. Here the map is fitted between the two versions
directly, which for `mean` and one set of queries is the same. `ridge` and `procrustes` are not in the paper: they also undo
what a mean cannot, such as a rotation.

The scores are q' . d = q . (d M^T) + c . d, so the index may be moved instead of the queries (`documents`): for `mean`, each
document keeps its vector and gets a bias.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError, ModelError, reason

Vectors = NDArray[np.float32]
FILE = "query_drift.safetensors"
"""The compensations of an embedder, in its folder."""
_RIDGE = 0.1


@dataclass(frozen=True, slots=True)
class Compensation:
    """A map of the new model's queries to the old model's space."""

    matrix: NDArray[np.float64] | None
    """[d, d]; None is the identity."""
    shift: NDArray[np.float64]
    """[d]"""

    def queries(self, vectors: Vectors) -> Vectors:
        """The queries for the old index, unit vectors [n, d]."""
        moved = vectors.astype(np.float64)
        moved = (moved if self.matrix is None else moved @ self.matrix) + self.shift
        return (moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def documents(self, vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The index for the new model's queries as they are: vectors [n, d], and a bias [n] to add to their scores.

        It ranks as `queries` does: the length of a query, which `queries` normalises, does not change its ranking.
        """
        wide = vectors.astype(np.float64)
        return wide if self.matrix is None else wide @ self.matrix.T, wide @ self.shift


Key = tuple[str, int, int | None]
"""A version, a width, and the number of layers, None for all."""


def unmoved(width: int) -> Compensation:
    """That of an embedder's own index."""
    return Compensation(None, np.zeros(width))


def mean(new: NDArray[np.float64], old: NDArray[np.float64]) -> Compensation:
    return Compensation(None, (old - new).mean(axis=0))


def ridge(new: NDArray[np.float64], old: NDArray[np.float64]) -> Compensation:
    """The least squares map, drawn towards the identity by `_RIDGE` times the mean variance of a dimension."""
    x, y = new - new.mean(axis=0), old - old.mean(axis=0)
    covariance = x.T @ x / len(x)
    strength = _RIDGE * np.trace(covariance) / len(covariance) + 1e-12
    penalty = strength * np.eye(len(covariance))
    matrix = np.linalg.solve(covariance + penalty, x.T @ y / len(x) + penalty)
    return Compensation(matrix, old.mean(axis=0) - new.mean(axis=0) @ matrix)


def procrustes(new: NDArray[np.float64], old: NDArray[np.float64]) -> Compensation:
    """The rotation that moves the centred queries of one onto those of the other."""
    left, _, right = np.linalg.svd((new - new.mean(axis=0)).T @ (old - old.mean(axis=0)))
    matrix = left @ right
    return Compensation(matrix, old.mean(axis=0) - new.mean(axis=0) @ matrix)


KINDS: Mapping[str, Callable[[NDArray[np.float64], NDArray[np.float64]], Compensation]] = {
    "mean": mean,
    "ridge": ridge,
    "procrustes": procrustes,
}


def fit(kind: str, new: Vectors, old: Vectors) -> Compensation:
    """The compensation from the vectors of the same queries by both models, [n, d] each.

    Raises:
        ConfigError: there are no queries, or the models have other widths.
    """
    if new.shape != old.shape or not len(new):
        raise ConfigError(
            f"a map needs vectors of the same queries and width, got {new.shape} and {old.shape}.",
            "drift.versions",
            "Give versions of one width, and pairs= with their training queries.",
        )
    return KINDS[kind](new.astype(np.float64), old.astype(np.float64))


def save(folder: str, compensations: Mapping[Key, Compensation]) -> None:
    """Writes all compensations of an embedder to its folder; nothing if there are none."""
    from safetensors.numpy import save_file

    tensors = {}
    for (version, width, layers), compensation in compensations.items():
        name = f"{version}/{width}/{layers or 'all'}"
        tensors[f"{name}/shift"] = compensation.shift
        if compensation.matrix is not None:
            tensors[f"{name}/matrix"] = compensation.matrix
    if tensors:
        save_file(tensors, os.path.join(folder, FILE))


def load(folder: str) -> dict[Key, Compensation]:
    """The compensations of the embedder in a folder; empty if it has none, ModelError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = os.path.join(folder, FILE)
    if not os.path.exists(path):
        return {}
    compensations = {}
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{FILE} is damaged ({reason(error)}).", f"model {folder}", "Save the embedder again.") from error
    for name in filter(lambda name: name.endswith("/shift"), tensors):
        version, width, layers, _ = name.rsplit("/", 3)
        key = version, int(width), None if layers == "all" else int(layers)
        compensations[key] = Compensation(tensors.get(name.replace("/shift", "/matrix")), tensors[name])
    return compensations
