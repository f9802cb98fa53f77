"""Compares two plans for the same vocabulary."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from data_pipeline.errors import ArtifactError
from trainer.transfer.plan import DRAWS, Provenance, TransferPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Embedding rows that the plans make differently."""

    rows: NDArray[np.int64]
    """Target ids, by descending distance."""
    distance: NDArray[np.float64]
    """Per row, the sum of |weight in one - weight in the other|: 2 for mixtures that share no old row, 0 for rows that
    differ only in their random draw."""
    moves: dict[tuple[str, str], int]
    """Number of rows by (provenance in one, provenance in the other), the most frequent first; for chains a provenance
    includes the method that placed the row."""


def diff(one: TransferPlan, other: TransferPlan) -> Difference:
    """Compares the plans row by row.

    Raises:
        ArtifactError: the plans are for different vocabularies.
    """
    sides = [("source", "source_tokenizer"), ("target", "target_tokenizer")]
    for side, attribute in sides:
        if getattr(one, attribute) != getattr(other, attribute) or len(one) != len(other):
            raise ArtifactError(
                f"the plans are for different {side} tokenizers.", "diff", "Compare plans for the same two tokenizers."
            )
    distance = np.asarray(abs(_sparse(one) - _sparse(other)).sum(axis=1)).ravel()
    both_drawn = np.isin(one.provenance, DRAWS) & np.isin(other.provenance, DRAWS)
    is_changed = (one.provenance != other.provenance) | (both_drawn & ((one.seed != other.seed) | (one.group != other.group)))
    rows = np.flatnonzero((distance > 0) | is_changed)
    rows = rows[np.argsort(-distance[rows], kind="stable")]
    names = [(_name(one, row), _name(other, row)) for row in rows.tolist()]
    return Difference(rows=rows, distance=distance[rows], moves=dict(Counter(names).most_common()))


def _sparse(plan: TransferPlan) -> scipy.sparse.csr_matrix:
    shape = (len(plan), plan.source_rows)
    return scipy.sparse.csr_matrix((plan.weights.astype(np.float64), plan.indices, plan.indptr), shape=shape)


def _name(plan: TransferPlan, row: int) -> str:
    """The row's provenance and, in a chain, the method that placed it."""
    name, methods = Provenance(plan.provenance[row]).name.lower(), plan.method.split("+")
    return f"{name} by {methods[plan.by[row] - 1]}" if plan.by[row] and len(methods) > 1 else name
