"""The contract between the transfer job and its methods.

Letters: V = new vocabulary, S = source vocabulary, N = new tokens that match no source token, A = width of static vectors.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.tokenizers.canonical import Token, canonical_tokens, vocabulary_hash
from trainer.executor import Executor, LocalExecutor
from trainer.transfer.overlap import match
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.word_vectors.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Problem:
    """The input of a method."""

    source: PreTrainedTokenizerFast
    target: PreTrainedTokenizerFast
    texts: Texts
    seed: int
    copy_shared: bool = True
    """Whether shared tokens keep their source rows; otherwise the method places them too."""
    levels: tuple[str, ...] = ("exact", "bytes")
    """The comparisons by which tokens are shared, see `overlap.LEVELS`."""
    executor: Executor = field(default_factory=LocalExecutor)
    """Runs the blocks of the kernels."""
    tokens: list[Token | None] = field(init=False)
    """The canonical form of each target id; None for gaps."""
    shared: NDArray[np.int64] = field(init=False)
    """[V]: the source id of the same token, -1 if there is none."""
    shared_provenance: NDArray[np.uint8] = field(init=False)
    """[V]: how the token was matched."""
    already_placed: NDArray[np.int64] = field(init=False, default_factory=lambda: np.empty(0, np.int64))
    """Target ids that earlier methods of the chain placed."""

    def __post_init__(self) -> None:
        tokens = canonical_tokens(self.target)
        shared, how = match(self.source, self.target, tokens, self.levels)
        for name, value in (("tokens", tokens), ("shared", shared), ("shared_provenance", how)):
            object.__setattr__(self, name, value)

    @property
    def source_rows(self) -> int:
        return max(self.source.get_vocab().values()) + 1

    @property
    def new(self) -> NDArray[np.int64]:
        """[N]: the target ids that the method should place."""
        is_new = np.array([token is not None and token.role is None for token in self.tokens])
        is_new &= (self.shared < 0) | (not self.copy_shared)
        is_new[self.already_placed] = False
        return np.flatnonzero(is_new)

    def without(self, ids: NDArray[np.int64]) -> Problem:
        """The problem for the next method of a chain, after `ids` were placed."""
        rest = copy.copy(self)
        object.__setattr__(rest, "already_placed", np.union1d(self.already_placed, ids))
        return rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The result of a method: mixtures for some of `Problem.new`. The other new tokens get random rows."""

    ids: NDArray[np.int64]
    """[n] target ids."""
    counts: NDArray[np.int64]
    """[n] entries of each row."""
    indices: NDArray[np.int64]
    """[sum of counts] source ids."""
    weights: NDArray[np.float32]
    """[sum of counts]"""
    provenance: Provenance | NDArray[np.uint8]
    """One for all rows, or one per row [n]."""
    groups: tuple[NDArray[np.uint16], NDArray[np.uint16]] | None = None
    """For rows drawn from a group of source rows: the group of each row [n], and of each source row [S]."""
    by: NDArray[np.uint8] | None = None
    """[n] the number of the method in the chain that placed the row, from 1; None if a single method placed all."""

    @staticmethod
    def from_dense(ids: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[Any], code: Provenance) -> Placement:
        """A placement from k candidates per row [n, k]; candidates of weight 0 are dropped."""
        used = weights != 0
        return Placement(
            ids=ids, counts=used.sum(axis=1), indices=columns[used], weights=weights[used].astype(np.float32), provenance=code
        )


class Method(Protocol):
    """A method from a paper: places tokens of `problem.new`."""

    def __call__(self, problem: Problem, config: Any) -> Placement: ...


def assemble(problem: Problem, placement: Placement, method: str) -> TransferPlan:
    """Builds the plan: copies, special tokens, the method's placement, and random rows for all other tokens."""
    size = len(problem.tokens)
    provenance = np.full(size, Provenance.RANDOM, np.uint8)
    provenance[[token_id for token_id, token in enumerate(problem.tokens) if token is None]] = Provenance.FILLING
    entries: list[tuple[NDArray[np.int64], NDArray[np.float32]] | None] = [None] * size
    by = np.zeros(size, np.uint8)
    by[placement.ids] = 1 if placement.by is None else placement.by
    to_place = set(problem.new.tolist())
    for token_id in np.flatnonzero(problem.shared >= 0):
        if int(token_id) not in to_place:
            provenance[token_id] = problem.shared_provenance[token_id]
            entries[token_id] = problem.shared[token_id : token_id + 1], np.ones(1, np.float32)
    bounds = np.concatenate([[0], np.cumsum(placement.counts)])
    provenance[placement.ids] = placement.provenance
    group = np.zeros(size, np.uint16)
    group[placement.ids] = 0 if placement.groups is None else placement.groups[0]
    for index, token_id in enumerate(placement.ids):
        block = slice(bounds[index], bounds[index + 1])
        entries[token_id] = placement.indices[block], placement.weights[block]
    nonempty = [entry for entry in entries if entry is not None]
    counts = [0 if entry is None else len(entry[0]) for entry in entries]
    return TransferPlan(
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices=np.concatenate([entry[0] for entry in nonempty]).astype(np.int32),
        weights=np.concatenate([entry[1] for entry in nonempty]).astype(np.float32),
        provenance=provenance,
        keys=np.array([0 if token is None else keyed_random.key(token.key()) for token in problem.tokens], np.uint64),
        group=group,
        source_group=np.zeros(problem.source_rows, np.uint16) if placement.groups is None else placement.groups[1],
        by=by,
        source_rows=problem.source_rows,
        seed=problem.seed,
        method=method,
        source_tokenizer=vocabulary_hash(problem.source),
        target_tokenizer=vocabulary_hash(problem.target),
    )
