"""TransferPlan: which old rows make each new row, and why.

Every initialiser without training is a sparse matrix W (new vocabulary x old vocabulary); the new embeddings are
`W @ E_old`. W is built once and applied to everything that has one row per token: input and output embeddings and the
bias of the language-model head.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from data_pipeline.artifacts import storage
from data_pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import torch


class Provenance(IntEnum):
    """Where a new row comes from. Codes are stored on disk: never renumber."""

    SPECIAL_ROLE = 0
    """The old token with the same role (pad, mask, ...)."""
    EXACT_COPY = 1
    """The old token with the same canonical form."""
    NEIGHBOURS = 2
    """Mixture of old tokens that are near in a space of static vectors."""
    COMPOSITION = 3
    """Mixture of the old pieces that the token's text splits into."""
    ALIGNED = 4
    """Mixture of the old tokens that it is aligned with in parallel text."""
    RANDOM = 5
    """Drawn from the moments of the old rows."""
    MEAN = 6
    """The mean of all old rows."""
    FILLING = 7
    """No token: a gap in the ids, or what fills the matrix up. Never predicted, see `apply.embeddings`."""
    BYTE_COPY = 8
    """The old token of the same bytes, where one of the two stands for raw bytes and the other for text."""
    CASE_COPY = 9
    """The old token that differs in upper and lower case only."""
    START_COPY = 10
    """The old token that differs in whether it begins a word, and perhaps in case."""
    NFKC_COPY = 11
    """The old token of the same text after Unicode's compatibility normalisation (NFKC), case and word start aside."""
    HYBRID = 12
    """Mixture of the pieces of the token's text and of its neighbours."""
    SCRIPT = 13
    """Drawn from the moments of the old rows in the same script."""
    DONOR = 14
    """Mixture of shared tokens whose rows rebuild the token's row in another model, the donor."""
    SAME_ID = 15
    """The old row of the same id, which belonged to another token: what resizing leaves."""


COPIES = (
    Provenance.SPECIAL_ROLE, Provenance.EXACT_COPY, Provenance.BYTE_COPY, Provenance.CASE_COPY, Provenance.START_COPY,
    Provenance.NFKC_COPY, Provenance.SAME_ID,
)  # fmt: skip
"""Rows that are one old row to the last bit."""
DRAWS = (Provenance.RANDOM, Provenance.SCRIPT)
"""Rows without entries that are drawn from the moments of a group of old rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlan:
    """W in compressed rows, and a provenance for each of the V new rows.

    Row t mixes the old rows `indices[indptr[t]:indptr[t+1]]` with `weights` of the same range. Rows of provenance
    RANDOM, SCRIPT and MEAN hold no entries: they depend on many old rows, see `apply.py`.
    """

    indptr: NDArray[np.int64]
    """[V + 1]"""
    indices: NDArray[np.int32]
    weights: NDArray[np.float32]
    provenance: NDArray[np.uint8]
    """[V], codes of `Provenance`"""
    keys: NDArray[np.uint64]
    """[V], a number for each token that is the same in any vocabulary: the key of its random row."""
    group: NDArray[np.uint16]
    """[V], the group of old rows from whose moments a row is drawn; 0 means all of them."""
    source_group: NDArray[np.uint16]
    """[S], the group of each old row."""
    by: NDArray[np.uint8]
    """[V], the place, from 1, of the method that placed a row; 0 for copies, random rows and filling."""
    source_rows: int
    seed: int
    method: str
    """A method's name, or those of a chain with + between."""
    source_tokenizer: str = ""
    """`vocabulary_hash` of the old tokenizer: the plan fits every model that uses it."""
    target_tokenizer: str = ""

    def __len__(self) -> int:
        return len(self.provenance)

    def fates(self) -> dict[str, int]:
        """How many rows have each provenance; sums to V."""
        counts = np.bincount(self.provenance, minlength=len(Provenance))
        return {code.name.lower(): int(counts[code]) for code in Provenance if counts[code]}

    def placed_by_method(self) -> dict[str, int]:
        """How many rows each method of the chain placed, in their order."""
        return {name: int((self.by == place).sum()) for place, name in enumerate(self.method.split("+"), 1)}

    def groups(self) -> dict[str, NDArray[np.int64]]:
        """The rows that are one old row, and those that are not but stand for a token."""
        copies = np.isin(self.provenance, COPIES)
        return {
            "inherited": np.flatnonzero(copies),
            "new": np.flatnonzero(~copies & (self.provenance != Provenance.FILLING)),
        }

    def filling(self) -> NDArray[np.int64]:
        """The rows that stand for no token."""
        return np.flatnonzero(self.provenance == Provenance.FILLING)

    def copies(self) -> NDArray[np.int64]:
        """The rows that are one old row to the last bit."""
        return np.flatnonzero(np.isin(self.provenance, COPIES) & (np.diff(self.indptr) == 1))

    def pad_to(self, rows: int) -> TransferPlan:
        """The same plan with FILLING rows up to `rows`."""
        more = rows - len(self)
        return replace(
            self,
            indptr=np.concatenate([self.indptr, np.full(more, self.indptr[-1])]),
            provenance=np.concatenate([self.provenance, np.full(more, Provenance.FILLING, np.uint8)]),
            keys=np.concatenate([self.keys, np.zeros(more, np.uint64)]),
            group=np.concatenate([self.group, np.zeros(more, np.uint16)]),
            by=np.concatenate([self.by, np.zeros(more, np.uint8)]),
        )

    def dense(self) -> torch.Tensor:
        """W as a float tensor [V, S]; for small plans and tests."""
        import torch

        rows = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        dense = torch.zeros(len(self), self.source_rows)
        where = torch.from_numpy(rows), torch.from_numpy(self.indices).long()
        dense.index_put_(where, torch.from_numpy(self.weights), accumulate=True)
        return dense

    def save(self, uri: str) -> None:
        """Writes `plan.safetensors` and `plan.json` into the folder."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        with storage.local_output(uri) as folder:
            save_file(arrays, f"{folder}/plan.safetensors")
        facts = {name: getattr(self, name) for name in _FACTS} | {"fates": self.fates(), "placed": self.placed_by_method()}
        storage.write_bytes(storage.join(uri, "plan.json"), (json.dumps(facts, indent=2) + "\n").encode())


_ARRAYS = ("indptr", "indices", "weights", "provenance", "keys", "group", "source_group", "by")
_FACTS = ("source_rows", "seed", "method", "source_tokenizer", "target_tokenizer")


def load(uri: str) -> TransferPlan:
    """The plan that `save` wrote.

    Raises:
        ArtifactError: there is none, or its parts do not fit together.
    """
    if not storage.exists(storage.join(uri, "plan.json")):
        raise ArtifactError("no plan.json here.", uri, "Make one with `scion transfer`.")
    facts = json.loads(storage.read_bytes(storage.join(uri, "plan.json")))
    with storage.local_copy(uri) as folder:
        arrays = load_file(f"{folder}/plan.safetensors")
    if set(arrays) != set(_ARRAYS):
        raise ArtifactError("a plan of another version of Scion.", uri, "Make it again with `scion transfer`.")
    plan = TransferPlan(**{name: facts[name] for name in _FACTS}, **arrays)
    if len(plan.indptr) != len(plan) + 1 or plan.indptr[-1] != len(plan.indices) or plan.fates() != facts["fates"]:
        raise ArtifactError("plan.safetensors and plan.json do not belong together.", uri, "Make the plan again.")
    return plan
