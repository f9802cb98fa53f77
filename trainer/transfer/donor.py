"""A donor: another model that has trained embeddings for tokens of the new vocabulary.

Only its input embeddings are used, so any architecture and width will do. Its tokenizer may be the new one or of another
family: tokens are matched by canonical form. Two kinds of embedding rows are ignored: those of special tokens, which mean
something else in each model, and those that were hardly trained, which weight decay has made short.
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
"""Minimum length of a trained row, as a share of the median length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """The embeddings that a donor has for a problem.

    Letters: N = new tokens that the donor has, O = tokens that the donor and both vocabularies have.
    """

    new_ids: NDArray[np.int64]
    """[N] target ids."""
    new_embeddings: torch.Tensor
    """float32 [N, D], where D is the donor's width."""
    shared_ids: NDArray[np.int64]
    """[O] target ids."""
    source_ids: NDArray[np.int64]
    """[O] source ids of the same tokens, each once."""
    shared_embeddings: torch.Tensor
    """float32 [O, D]"""

    def mixtures(self, columns: NDArray[np.int64], weights: NDArray[np.float32], code: Provenance) -> Placement:
        """Places new tokens as mixtures of shared tokens; a token whose weights are all 0 stays unplaced.

        Args:
            columns: indices into `source_ids` [N, k].
        """
        has_weight = weights.any(axis=1)
        return Placement.from_dense(self.new_ids[has_weight], self.source_ids[columns[has_weight]], weights[has_weight], code)


def load(problem: Problem, spec: str | None, method: str) -> Donor:
    """Loads the donor that `transfer.methods.<method>.donor` names.

    Args:
        spec: a folder or a hub name.

    Raises:
        ConfigError: no donor is set.
        ModelError: the donor has no model, no tokenizer, or no row for some of its tokens.
        DataError: the donor shares no token with both vocabularies, or has no new token.
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
        matches, _ = match(tokenizer, problem.target, problem.tokens)
        table = _embeddings(loading.encoder(folder), max(tokenizer.get_vocab().values()) + 1, spec)
    is_ordinary = np.array([token is not None and token.role is None for token in problem.tokens])
    lengths = table.norm(dim=1)
    is_trained = (lengths > _TRAINED * lengths.median()).numpy()
    row_of = np.where(is_ordinary & (matches >= 0) & is_trained[matches], matches, -1)
    new_ids = problem.new[row_of[problem.new] >= 0]
    shared_ids = _shared(problem, row_of)
    _check_overlap(len(problem.new), len(new_ids), len(shared_ids), spec)
    return Donor(
        new_ids=new_ids,
        new_embeddings=table[row_of[new_ids]],
        shared_ids=shared_ids,
        source_ids=problem.shared[shared_ids],
        shared_embeddings=table[row_of[shared_ids]],
    )


def _embeddings(model: PreTrainedModel, ids: int, spec: str) -> torch.Tensor:
    """The model's input embeddings, float32 [rows, D], checked to have a row for each id of the tokenizer."""
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
            f"the embeddings have {len(table):,} rows, but the tokenizer has ids up to {ids - 1:,}.",
            where,
            "Model and tokenizer do not belong together: save a matching pair into one folder.",
        )
    if not table.isfinite().all():
        raise ModelError("the embeddings contain infinities or NaN.", where, "Take another checkpoint.")
    return table


def _shared(problem: Problem, row_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Target ids of tokens that the source and the donor have; of several with the same source token, the closest match."""
    shared = np.flatnonzero((problem.shared >= 0) & (row_of >= 0))
    closest_first = shared[np.argsort(problem.shared_provenance[shared], kind="stable")]
    _, first = np.unique(problem.shared[closest_first], return_index=True)
    return np.sort(closest_first[first])


def _check_overlap(new_tokens: int, placeable: int, shared: int, spec: str) -> None:
    """Checks that the donor shares ordinary tokens with both vocabularies and has a new token; else raises DataError."""
    if not shared:
        raise DataError(
            "it has no ordinary token that the source and the new vocabulary also have.",
            f"donor {spec}",
            "Take a donor whose tokenizer is for text in the new language.",
        )
    if new_tokens and not placeable:
        raise DataError(
            f"it has none of the {new_tokens:,} new tokens.",
            f"donor {spec}",
            "Take a donor whose tokenizer is the new one, or similar to it.",
        )
