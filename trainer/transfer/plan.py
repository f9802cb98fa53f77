"""TransferPlan: which source rows make each new row, and why.

Every training-free initialiser is a sparse matrix W (new vocabulary x source vocabulary); the new embeddings are
`W @ E_source`. W is built once and applied to everything that has one row per token: input embeddings, output embeddings and
the bias of the language-model head.
"""

from __future__ import annotations

import json
import os
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
    """Where a new row comes from. Codes are stored on disk: never renumber them."""

    SPECIAL_ROLE = 0
    """The source token with the same role (pad, mask, ...)."""
    EXACT_COPY = 1
    """The source token with the same canonical form."""
    NEIGHBOURS = 2
    """Mixture of the nearest source tokens in a space of static vectors."""
    COMPOSITION = 3
    """Mixture of the source pieces that the token's text splits into."""
    ALIGNED = 4
    """Mixture of the source tokens that the token is aligned with in parallel text."""
    RANDOM = 5
    """Drawn from the moments of the source rows."""
    MEAN = 6
    """The mean of all source rows."""
    FILLING = 7
    """No token: a gap in the ids, or padding of the matrix. Never predicted, see `apply.embeddings`."""
    BYTE_COPY = 8
    """The source token with the same bytes, if one of the two tokens stands for raw bytes and the other for text."""
    CASE_COPY = 9
    """The source token that differs only in case."""
    START_COPY = 10
    """The source token that differs in whether it begins a word, and perhaps in case."""
    NFKC_COPY = 11
    """The source token with the same text after Unicode compatibility normalisation (NFKC), ignoring case and word start."""
    HYBRID = 12
    """Mixture of the pieces of the token's text and of its neighbours."""
    SCRIPT = 13
    """Drawn from the moments of the source rows in the same script."""
    DONOR = 14
    """Mixture of shared tokens whose rows reconstruct the token's row in another model, the donor."""
    SAME_ID = 15
    """The source row with the same id, which belonged to another token: what resizing leaves."""


COPIES = (
    Provenance.SPECIAL_ROLE, Provenance.EXACT_COPY, Provenance.BYTE_COPY, Provenance.CASE_COPY, Provenance.START_COPY,
    Provenance.NFKC_COPY, Provenance.SAME_ID,
)  # fmt: skip
"""Rows that equal one source row bit for bit."""
DRAWS = (Provenance.RANDOM, Provenance.SCRIPT)
"""Rows without entries that are drawn from the moments of a group of source rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlan:
    """W in compressed sparse rows, and the provenance of each of the V new rows.

    Row t mixes the source rows `indices[indptr[t]:indptr[t+1]]` with the `weights` of the same range. Rows of provenance
    RANDOM, SCRIPT and MEAN have no entries: they depend on many source rows, see `apply.py`.
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
    """[V], the group of source rows from whose moments a row is drawn; 0 means all rows."""
    source_group: NDArray[np.uint16]
    """[S], the group of each source row."""
    by: NDArray[np.uint8]
    """[V], the number of the method in the chain that placed the row, from 1; 0 for copies, random rows and filling."""
    source_rows: int
    seed: int
    method: str
    """The name of a method, or of a chain: method names joined by +."""
    source_tokenizer: str = ""
    """`vocabulary_hash` of the source tokenizer: the plan fits every model that uses it."""
    target_tokenizer: str = ""
    source_model: str = ""
    """Folder or hub name of the source model, where no artefact names it: in a folder that `GraftedModel.save` wrote."""

    @classmethod
    def load(cls, uri: str | os.PathLike[str]) -> TransferPlan:
        """Loads a plan that `save` wrote.

        Raises:
            ArtifactError: there is no plan, or its files do not belong together.
        """
        uri = os.fspath(uri)
        if not storage.exists(storage.join(uri, "plan.json")):
            raise ArtifactError("no plan.json here.", uri, "Make one with `scion transfer`.")
        metadata = json.loads(storage.read_bytes(storage.join(uri, "plan.json")))
        with storage.local_copy(uri) as folder:
            arrays = load_file(f"{folder}/plan.safetensors")
        if set(arrays) != set(ARRAYS):
            raise ArtifactError("the plan is of another version of Scion.", uri, "Make it again with `scion transfer`.")
        plan = cls(**{name: metadata[name] for name in _METADATA if name in metadata}, **arrays)
        if len(plan.indptr) != len(plan) + 1 or plan.indptr[-1] != len(plan.indices) or plan.fates() != metadata["fates"]:
            raise ArtifactError(
                "plan.safetensors and plan.json do not belong together.", uri, "Make the plan again with `scion transfer`."
            )
        return plan

    def __repr__(self) -> str:
        fates = ", ".join(f"{name}={count}" for name, count in self.fates().items())
        return f"TransferPlan({self.method}: {len(self)} x {self.source_rows}; {fates})"

    def __len__(self) -> int:
        return len(self.provenance)

    def row(self, token: int) -> list[tuple[int, float]]:
        """The source rows that a new row mixes, with their weights; empty where it is drawn, the mean, or filling."""
        entries = slice(self.indptr[token], self.indptr[token + 1])
        return list(zip(self.indices[entries].tolist(), self.weights[entries].tolist(), strict=True))

    def fates(self) -> dict[str, int]:
        """The number of rows by provenance; the sum is V."""
        counts = np.bincount(self.provenance, minlength=len(Provenance))
        return {code.name.lower(): int(counts[code]) for code in Provenance if counts[code]}

    def placed_by_method(self) -> dict[str, int]:
        """The number of rows that each method of the chain placed, in the order of the chain."""
        return {name: int((self.by == number).sum()) for number, name in enumerate(self.method.split("+"), 1)}

    def groups(self) -> dict[str, NDArray[np.int64]]:
        """The `inherited` rows, which copy a source row, and the `new` rows, which do not but stand for a token."""
        copies = np.isin(self.provenance, COPIES)
        return {
            "inherited": np.flatnonzero(copies),
            "new": np.flatnonzero(~copies & (self.provenance != Provenance.FILLING)),
        }

    def filling(self) -> NDArray[np.int64]:
        """The rows without a token."""
        return np.flatnonzero(self.provenance == Provenance.FILLING)

    def copies(self) -> NDArray[np.int64]:
        """The rows that equal one source row bit for bit."""
        return np.flatnonzero(np.isin(self.provenance, COPIES) & (np.diff(self.indptr) == 1))

    def pad_to(self, rows: int) -> TransferPlan:
        """Pads the plan with FILLING rows to `rows`."""
        missing = rows - len(self)
        return replace(
            self,
            indptr=np.concatenate([self.indptr, np.full(missing, self.indptr[-1])]),
            provenance=np.concatenate([self.provenance, np.full(missing, Provenance.FILLING, np.uint8)]),
            keys=np.concatenate([self.keys, np.zeros(missing, np.uint64)]),
            group=np.concatenate([self.group, np.zeros(missing, np.uint16)]),
            by=np.concatenate([self.by, np.zeros(missing, np.uint8)]),
        )

    def dense(self) -> torch.Tensor:
        """W as a dense float tensor [V, S]; for small plans and tests."""
        import torch

        rows = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        dense = torch.zeros(len(self), self.source_rows)
        where = torch.from_numpy(rows), torch.from_numpy(self.indices).long()
        dense.index_put_(where, torch.from_numpy(self.weights), accumulate=True)
        return dense

    def save(self, uri: str) -> None:
        """Writes `plan.safetensors` and `plan.json` to the folder."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        with storage.local_output(uri) as folder:
            save_file(arrays, f"{folder}/plan.safetensors")
        metadata = {name: getattr(self, name) for name in _METADATA} | {
            "fates": self.fates(),
            "placed": self.placed_by_method(),
        }
        storage.write_bytes(storage.join(uri, "plan.json"), (json.dumps(metadata, indent=2) + "\n").encode())


ARRAYS = ("indptr", "indices", "weights", "provenance", "keys", "group", "source_group", "by")
"""Tensors in plan.safetensors, by the fields of `TransferPlan`."""
_METADATA = ("source_rows", "seed", "method", "source_tokenizer", "target_tokenizer", "source_model")
