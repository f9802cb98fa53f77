"""The drift matrix: how well the queries of each version of an embedder retrieve from the index of each earlier one.

After Goswami et al. 2025 (arXiv:2506.00037). `stale` uses the queries as they are, `compensated` moves them back; the
index of the same version is that of an embedder that encodes all documents anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer import query_drift
from trainer.evaluation.measured import by_language
from trainer.evaluation.retrieval import metrics, ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_pipeline.pairs.text_pairs import Pairs

Vectors = query_drift.Vectors


def matrix(
    queries: Mapping[str, Vectors], documents: Mapping[str, Vectors], training: Mapping[str, Vectors], pairs: Pairs, kind: str
) -> list[dict[str, Any]]:
    """A row for each version of the index and each version of the queries that is not older.

    Each row names both, and holds accuracy at 1 and MRR at 10 of `stale` and `compensated` queries, by language too if there
    are several; where both versions are the same, `compensated` is None.

    Args:
        queries, documents: unit vectors of the sides of the pairs by version, the oldest first.
        training: unit vectors of training queries by version, on which the compensation is fitted.
        kind: one of `query_drift.KINDS`.
    """
    versions: Sequence[str] = list(queries)
    rows = []
    for place, index in enumerate(versions):
        for version in versions[place:]:
            moved = None
            if version != index:
                moved = query_drift.fit(kind, training[version], training[index]).queries(queries[version])
            rows.append(
                {
                    "index": index,
                    "queries": version,
                    "stale": _scores(queries[version], documents[index], pairs),
                    "compensated": None if moved is None else _scores(moved, documents[index], pairs),
                }
            )
    return rows


def _scores(queries: Vectors, documents: Vectors, pairs: Pairs) -> dict[str, Any]:
    """Accuracy at 1 and MRR at 10 from anchors to positives, of all pairs and by language if there are several."""

    def among(places: NDArray[np.int64]) -> dict[str, Any]:
        left, right = ([texts[place] for place in places] for texts in (pairs.anchors, pairs.positives))
        one_way = metrics(ranks(queries[places], documents[places], left, right))
        return {"accuracy_at_1": one_way.accuracy_at_1, "mrr_at_10": one_way.mrr_at_10}

    of_each = by_language(pairs.langs, among)
    return among(np.arange(len(pairs))) | ({"by_language": of_each} if of_each else {})


def recovered(row: Mapping[str, Any], fresh: Mapping[str, Any]) -> float | None:
    """The share of what a new index would gain that the compensation gains: (compensated - stale) / (fresh - stale).

    None where a new index gains nothing.

    Args:
        row: a row of `matrix`.
        fresh: the row in which the version of the queries has an index of its own.
    """
    stale, new = row["stale"]["mrr_at_10"], fresh["stale"]["mrr_at_10"]
    if row["compensated"] is None or new <= stale:
        return None
    return float((row["compensated"]["mrr_at_10"] - stale) / (new - stale))
