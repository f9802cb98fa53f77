"""W @ E: from a plan to rows, for anything that has one row or one number per token."""

import numpy as np
import torch

from data_pipeline import keyed_random
from data_pipeline.errors import ModelError
from trainer.transfer.plan import DRAWN, Provenance, TransferPlan

_BLOCK = 4096


def embeddings(plan: TransferPlan, old: torch.Tensor) -> torch.Tensor:
    """The new matrix [V, D] in the type of the old one [S, D].

    Copied rows are the old rows to the last bit; mixtures are summed in fp32 (fp64 for fp64); random rows are normal with
    the mean and standard deviation of each old column, keyed on the token, so that a token has the same random row in any
    vocabulary; zero rows are zero.

    Raises:
        ModelError: the plan was made for a larger vocabulary than `old` has rows.
    """
    _check(plan, len(old))
    wide = torch.promote_types(old.dtype, torch.float32)
    known = old[: plan.source_rows].to(wide)
    new = torch.zeros(len(plan), old.shape[1], dtype=old.dtype)
    for start in range(0, len(plan), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(plan)))
        new[part] = _mixtures(plan, old, part, wide)
    new[torch.from_numpy(plan.provenance == Provenance.MEAN)] = known.mean(dim=0).to(old.dtype)
    drawn = np.isin(plan.provenance, DRAWN)
    for group in np.unique(plan.group[drawn]):
        rows = np.flatnonzero(drawn & (plan.group == group))
        of_group = known if group == 0 else known[torch.from_numpy(plan.source_group == group)]
        new[torch.from_numpy(rows)] = _random(plan, rows, of_group).to(old.dtype)
    copies = plan.copies()
    new[torch.from_numpy(copies)] = old[torch.from_numpy(plan.indices[plan.indptr[copies]]).long()]
    return new


def bias(plan: TransferPlan, old: torch.Tensor) -> torch.Tensor:
    """The new bias [V] from the old one [S]: mixtures like the rows, the old mean where the row is not a mixture."""
    _check(plan, len(old))
    known = old[: plan.source_rows, None].double()
    new = _mixtures(plan, known, slice(0, len(plan)), torch.float64)[:, 0]
    new[np.isin(plan.provenance, (*DRAWN, Provenance.MEAN))] = known.mean()
    return new.to(old.dtype)


def _check(plan: TransferPlan, rows: int) -> None:
    if plan.source_rows > rows:
        raise ModelError(
            f"the source tokenizer has ids up to {plan.source_rows - 1:,}, the model's embeddings only {rows:,} rows.",
            "transfer",
            "Use the tokenizer that belongs to the model.",
        )


def _mixtures(plan: TransferPlan, old: torch.Tensor, part: slice, dtype: torch.dtype) -> torch.Tensor:
    first, last = plan.indptr[part.start], plan.indptr[part.stop]
    places: np.ndarray = plan.indices[first:last].astype(np.int64)
    if old.dtype != dtype:
        used, places = np.unique(places, return_inverse=True)
        old = old[torch.from_numpy(used)]
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(places),
        old.to(dtype),
        torch.from_numpy(plan.indptr[part.start : part.stop] - first),
        mode="sum",
        per_sample_weights=torch.from_numpy(plan.weights[first:last]).to(dtype),
    )


def _random(plan: TransferPlan, rows: np.ndarray, known: torch.Tensor) -> torch.Tensor:
    base = np.array([keyed_random.key("row", plan.seed, int(number)) for number in plan.keys[rows]], np.uint64)
    noise = torch.from_numpy(keyed_random.normals(base[:, None], np.arange(known.shape[1])[None]))
    return known.mean(dim=0) + noise.to(known.dtype) * known.std(dim=0, correction=0)
