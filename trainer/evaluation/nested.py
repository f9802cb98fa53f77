"""Retrieval at each width and depth of a nested embedder (Kusupati et al. 2022, arXiv:2205.13147, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation import retrieval
from trainer.evaluation.speed import speed

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.embedder import Embedder


def nested(embedder: Embedder, pairs: Pairs) -> dict[str, Any]:
    """Retrieval and speed, the full embedder first.

    Texts are encoded once a depth: a narrower vector is the first values of the full one, normalised.

    Returns:
        `forms`, one for each depth and width: `layers` (None for all), `dimensions`, `retrieval` in both directions, and
        `texts_per_second` at the depth.
    """
    forms = []
    for layers in (None, *sorted(embedder.spec.layers, reverse=True)):
        rate = speed(embedder, [*pairs.anchors, *pairs.positives], layers)["texts_per_second"]
        anchors = embedder.encode(pairs.queries, layers=layers, prompt_name="query")
        positives = embedder.encode(pairs.positives, layers=layers, prompt_name="document")
        forms += [
            {
                "layers": layers,
                "dimensions": width,
                "retrieval": retrieval.scores(cut(anchors, width), cut(positives, width), pairs)[0],
                "texts_per_second": rate,
            }
            for width in embedder.dimensions
        ]
    return {"forms": forms}


def cut(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The first `width` values of vectors [n, d], as unit vectors; a vector of zeros stays one."""
    narrow = vectors[:, :width]
    return narrow / np.maximum(np.linalg.norm(narrow, axis=1, keepdims=True), 1e-12)
