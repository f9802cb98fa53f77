"""The contract between the transfer job and its methods.

Letters: V = new vocabulary, S = old vocabulary, N = new tokens that no old token equals, A = width of static vectors.
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
    """Everything known before a method begins."""

    source: PreTrainedTokenizerFast
    target: PreTrainedTokenizerFast
    texts: Texts
    seed: int
    copy_shared: bool = True
    """Whether a token that both vocabularies have keeps its old row; else the method makes a row for it too."""
    levels: tuple[str, ...] = ("exact", "bytes")
    """Comparisons by which tokens count as shared, see `overlap.LEVELS`."""
    executor: Executor = field(default_factory=LocalExecutor)
    """Where kernels run their blocks."""
    tokens: list[Token | None] = field(init=False)
    shared: NDArray[np.int64] = field(init=False)
    """[V]: the old id of the same token, -1 where there is none."""
    shared_provenance: NDArray[np.uint8] = field(init=False)
    already_placed: NDArray[np.int64] = field(init=False, default_factory=lambda: np.empty(0, np.int64))
    """Target ids that methods before have placed."""

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
        """[N]: the target ids that a method shall place."""
        wanted = np.array([token is not None and token.role is None for token in self.tokens])
        wanted &= (self.shared < 0) | (not self.copy_shared)
        wanted[self.already_placed] = False
        return np.flatnonzero(wanted)

    def without(self, ids: NDArray[np.int64]) -> Problem:
        """The same problem for the next method of a chain, once `ids` are placed."""
        rest = copy.copy(self)
        object.__setattr__(rest, "already_placed", np.union1d(self.already_placed, ids))
        return rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a method answers: mixtures for some of `Problem.new`; tokens that it leaves out are drawn at random."""

    ids: NDArray[np.int64]
    """[n] target ids."""
    counts: NDArray[np.int64]
    """[n] entries of each row."""
    indices: NDArray[np.int64]
    """[sum of counts] old ids."""
    weights: NDArray[np.float32]
    provenance: Provenance | NDArray[np.uint8]
    """One for all rows, or one a row [n]."""
    groups: tuple[NDArray[np.uint16], NDArray[np.uint16]] | None = None
    """For rows that are drawn from a part of the old rows: the group of each row [n], and of each old row [S]."""
    by: NDArray[np.uint8] | None = None
    """The place [n], from 1, of the method of a chain that placed the row; one method did where not given."""

    @staticmethod
    def from_dense(ids: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[Any], code: Provenance) -> Placement:
        """Rows of equally many candidates [n, k]; candidates of weight 0 are dropped."""
        used = weights != 0
        return Placement(
            ids=ids, counts=used.sum(axis=1), indices=columns[used], weights=weights[used].astype(np.float32), provenance=code
        )  # fmt: skip


class Method(Protocol):
    """A paper: `rows` says what becomes of the tokens in `problem.new`."""

    def __call__(self, problem: Problem, config: Any) -> Placement: ...


def assemble(problem: Problem, rows: Placement, method: str) -> TransferPlan:
    """One plan from copies, special tokens, the method's rows and random rows for all that is left."""
    size = len(problem.tokens)
    provenance = np.full(size, Provenance.RANDOM, np.uint8)
    provenance[[number for number, token in enumerate(problem.tokens) if token is None]] = Provenance.FILLING
    entries: list[tuple[NDArray[np.int64], NDArray[np.float32]] | None] = [None] * size
    by = np.zeros(size, np.uint8)
    by[rows.ids] = 1 if rows.by is None else rows.by
    own = set(problem.new.tolist())
    for number in np.flatnonzero(problem.shared >= 0):
        if int(number) not in own:
            provenance[number] = problem.shared_provenance[number]
            entries[number] = problem.shared[number : number + 1], np.ones(1, np.float32)
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    provenance[rows.ids] = rows.provenance
    group = np.zeros(size, np.uint16)
    group[rows.ids] = 0 if rows.groups is None else rows.groups[0]
    for place, number in enumerate(rows.ids):
        part = slice(bounds[place], bounds[place + 1])
        entries[number] = rows.indices[part], rows.weights[part]
    filled = [entry for entry in entries if entry is not None]
    counts = [0 if entry is None else len(entry[0]) for entry in entries]
    return TransferPlan(
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        indices=np.concatenate([entry[0] for entry in filled]).astype(np.int32),
        weights=np.concatenate([entry[1] for entry in filled]).astype(np.float32),
        provenance=provenance,
        keys=np.array([0 if token is None else keyed_random.key(token.key()) for token in problem.tokens], np.uint64),
        group=group,
        source_group=np.zeros(problem.source_rows, np.uint16) if rows.groups is None else rows.groups[1],
        by=by,
        source_rows=problem.source_rows,
        seed=problem.seed,
        method=method,
        source_tokenizer=vocabulary_hash(problem.source),
        target_tokenizer=vocabulary_hash(problem.target),
    )
