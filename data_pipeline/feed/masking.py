"""Masked-LM inputs from packed rows. Which tokens are masked depends on seed, epoch and row alone (Devlin et al. 2019).

Of a row's ordinary tokens a fixed number is masked, the share `probability` rounded, so that every row of a batch has
about as many targets. Of those 80 % become the mask token, 10 % a random ordinary token, 10 % stay.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from data_pipeline import keyed_random
from data_pipeline.shards.format import token_ids
from data_pipeline.shards.pack import segments


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch:
    """B packed rows of L tokens; M targets in all."""

    input_ids: torch.Tensor
    """int [B, L], masked"""
    segments: torch.Tensor
    """int [B, L]: which document of the row, -1 for padding; attention stays within a document"""
    positions: torch.Tensor
    """int [B, L]: place within the document"""
    places: torch.Tensor
    """int [M]: places of the targets in the flattened rows"""
    labels: torch.Tensor
    """int [M]: the ids that were there"""

    @property
    def targets(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "MaskedBatch":
        return MaskedBatch(**{name: getattr(self, name).to(device, non_blocking=True) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Masker:
    """Turns rows of the feed into masked batches."""

    length: int
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    """Random replacements are drawn below this."""
    probability: float
    seed: int

    def __call__(self, table: pa.Table) -> MaskedBatch:
        """Rows as the feed gives them; rows of weight 0 get no targets."""
        ids = token_ids(table["input_ids"], self.length)
        n_tokens, starts = table["n_tokens"].to_numpy(), table["doc_starts"].to_pylist()
        laid = [segments(np.array(s, np.int32), int(n), self.length) for s, n in zip(starts, n_tokens, strict=True)]
        segment = np.stack([part[0] for part in laid])
        candidates = (segment >= 0) & ~np.isin(ids, self.special_ids) & (table["weight"].to_numpy() > 0)[:, None]
        keys = self._keys(table)
        # The share of tokens with the lowest random numbers is masked: an exact count, in any order of rows.
        chance = keyed_random.uniforms(keys[:, None], np.arange(self.length)[None])
        chance[~candidates] = 2.0
        count = np.rint(candidates.sum(axis=1) * self.probability).astype(np.int64)
        rank = chance.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        masked = rank < count[:, None]
        places = np.flatnonzero(masked)
        labels = ids.ravel()[places]
        return MaskedBatch(
            input_ids=torch.from_numpy(self._replaced(ids, places, keys)),
            segments=torch.from_numpy(segment),
            positions=torch.from_numpy(np.stack([part[1] for part in laid])),
            places=torch.from_numpy(places),
            labels=torch.from_numpy(labels),
        )

    def _keys(self, table: pa.Table) -> np.ndarray:
        columns = (table[name].to_pylist() for name in ("stream", "epoch", "row"))
        return np.array([keyed_random.key("mask", self.seed, *row) for row in zip(*columns, strict=True)], np.uint64)

    def _replaced(self, ids: np.ndarray, places: np.ndarray, keys: np.ndarray) -> np.ndarray:
        row, column = places // self.length, places % self.length
        action = keyed_random.uniforms(keys[row], column + self.length)
        draw = keyed_random.uniforms(keys[row], column + 2 * self.length)
        ordinary = np.setdiff1d(np.arange(self.vocab_size), self.special_ids)
        changed = ids.copy().ravel()
        changed[places[action < 0.8]] = self.mask_id
        swap = (action >= 0.8) & (action < 0.9)
        changed[places[swap]] = ordinary[(draw[swap] * len(ordinary)).astype(np.int64)]
        return changed.reshape(ids.shape)
