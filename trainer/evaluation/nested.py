"""Retrieval at each width and depth of a nested embedder (Kusupati et al. 2022, arXiv:2205.13147, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.evaluation import retrieval
from trainer.evaluation.encoder import EncodesOnce, unit_rows
from trainer.evaluation.speed import speed

if TYPE_CHECKING:
    from data_pipeline.pairs.text_pairs import Pairs
    from trainer.embedder import Embedder


def nested(embedder: Embedder, once: EncodesOnce, pairs: Pairs) -> dict[str, Any]:
    """Retrieval and speed, the full embedder first.

    Texts are encoded once a depth: a narrower vector is the first values of the full one, normalised.

    Args:
        once: encodes by the embedder, and knows the vectors of the metrics before.

    Returns:
        `forms`, one for each depth and width: `layers` (None for all), `dimensions`, `retrieval` in both directions, and
        `texts_per_second` at the depth.
    """
    forms = []
    for layers in (None, *sorted(embedder.spec.layers, reverse=True)):
        rate = speed(embedder, [*pairs.anchors, *pairs.positives], layers)["texts_per_second"]
        anchors = once.encode(pairs.queries, layers=layers, prompt_name="query")
        positives = once.encode(pairs.positives, layers=layers, prompt_name="document")
        forms += [
            {
                "layers": layers,
                "dimensions": width,
                "retrieval": retrieval.scores(unit_rows(anchors[:, :width]), unit_rows(positives[:, :width]), pairs)[0],
                "texts_per_second": rate,
            }
            for width in embedder.dimensions
        ]
    return {"forms": forms}
