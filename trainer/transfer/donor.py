"""A donor: another model that has trained embeddings for tokens of the new vocabulary.

Only its matrix of input embeddings is used, so any architecture and width will do. Its tokenizer may be the new one or of
another family: tokens are matched by canonical form. Two kinds of rows are left out: those of special tokens, which mean
something else in each model, and those that were hardly ever trained, which weight decay has made short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError, DataError, ModelError
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from trainer.transfer.overlap import match
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TRAINED = 0.1
"""Part of the median length that a trained row has at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """What a donor knows of a problem: N = new tokens with a row in it, O = tokens that all three models have."""

    new_ids: NDArray[np.int64]
    """[N] target ids."""
    new_embeddings: torch.Tensor
    """float32 [N, D], D the donor's own width."""
    shared_ids: NDArray[np.int64]
    """[O] target ids."""
    source_ids: NDArray[np.int64]
    """[O] the same tokens' old ids, each once."""
    shared_embeddings: torch.Tensor
    """float32 [O, D]"""

    def mixtures(self, columns: NDArray[np.int64], weights: NDArray[np.float32], code: Provenance) -> Placement:
        """Rows that mix shared tokens, given as places in `old` [N, k]; a token without a weight is left unplaced."""
        placed = weights.any(axis=1)
        return Placement.from_dense(self.new_ids[placed], self.source_ids[columns[placed]], weights[placed], code)


def load(problem: Problem, spec: str | None, method: str) -> Donor:
    """The donor `spec`, a folder or a hub name, for a method that is set by `transfer.methods.<method>.donor`.

    Raises:
        ConfigError: no donor is set.
        ModelError: it has no model, no tokenizer, or no row for some of its tokens.
        DataError: its vocabulary has nothing in common with both others, or no new token.
    """
    from trainer.models import loading

    if not spec:
        raise ConfigError(
            f"{method} needs a donor, a model that was trained on the new language.",
            f"transfer.methods.{method}.donor",
            "Set it to a folder or a hub name.",
        )
    with model_folder(spec) as folder:
        tokenizer = train.load(folder)
        found, _ = match(tokenizer, problem.target, problem.tokens)
        table = _embeddings(loading.encoder(folder), max(tokenizer.get_vocab().values()) + 1, spec)
    ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    lengths = table.norm(dim=1)
    trained = (lengths > _TRAINED * lengths.median()).numpy()
    row_of = np.where(ordinary & (found >= 0) & trained[found], found, -1)
    new = problem.new[row_of[problem.new] >= 0]
    shared = _shared(problem, row_of)
    _check_overlap(len(problem.new), len(new), len(shared), spec)
    return Donor(
        new_ids=new,
        new_embeddings=table[row_of[new]],
        shared_ids=shared,
        source_ids=problem.shared[shared],
        shared_embeddings=table[row_of[shared]],
    )


def _embeddings(model: PreTrainedModel, ids: int, spec: str) -> torch.Tensor:
    """The model's input embeddings, float32 [rows, D], with a row for each of the tokenizer's ids."""
    import torch

    where = f"donor {spec}"
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, torch.nn.Embedding):
        raise ModelError(f"{type(model).__name__} has no token embeddings.", where, "Take a language model as donor.")
    table = embedding.weight.detach().float()
    if len(table) < ids:
        raise ModelError(
            f"the embeddings have {len(table):,} rows, the tokenizer has ids up to {ids - 1:,}.",
            where,
            "Model and tokenizer do not belong together: save both into one folder.",
        )
    if not table.isfinite().all():
        raise ModelError("the embeddings hold numbers that are not finite.", where, "Take another checkpoint.")
    return table


def _shared(problem: Problem, row_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Target ids that the source and the donor have; of those that share an old token the one that is most like it."""
    shared = np.flatnonzero((problem.shared >= 0) & (row_of >= 0))
    by_likeness = shared[np.argsort(problem.shared_provenance[shared], kind="stable")]
    _, first = np.unique(problem.shared[by_likeness], return_index=True)
    return np.sort(by_likeness[first])


def _check_overlap(wanted: int, new: int, shared: int, spec: str) -> None:
    if not shared:
        raise DataError(
            "it has no ordinary token that the source and the new vocabulary share.",
            f"donor {spec}",
            "Take a donor whose tokenizer is for text in the new language.",
        )
    if wanted and not new:
        raise DataError(
            f"it has a row for none of the {wanted:,} new tokens.",
            f"donor {spec}",
            "Take a donor whose tokenizer is the new one, or close to it.",
        )
