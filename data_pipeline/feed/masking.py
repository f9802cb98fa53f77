"""Masked-LM inputs from packed rows (Devlin et al. 2019). The masks depend on seed, epoch and row alone.

A row masks a fixed number of its ordinary tokens, the share `probability` rounded, so that all rows of a batch have about
as many targets. Of these 80 % become the mask token, 10 % a random ordinary token, 10 % stay.

Masked next-token prediction (BehnamGhader et al. 2024, arXiv:2404.05961, section 2.1) masks in the same way; the place before
a masked token predicts it, as the model's head has learned in causal training. So a document's first token is never masked.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline import keyed_random
from data_pipeline.feed.target_batch import TargetBatch, target_batch, unpack_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Masker:
    """Turns the feed's rows into masked batches."""

    length: int
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    """Random replacements are drawn below this."""
    probability: float
    seed: int
    predicts_next: bool = False
    """Whether the place before a masked token predicts it, in place of its own."""

    def __call__(self, table: pa.Table) -> TargetBatch:
        """Masks a table of the feed; rows of weight 0 get no targets."""
        ids, segment, positions = unpack_rows(table, self.length)
        candidates = (segment >= 0) & ~np.isin(ids, self.special_ids) & (table["weight"].to_numpy() > 0)[:, None]
        if self.predicts_next:
            candidates &= positions > 0
        keys = self._keys(table)
        # Masks the tokens with the lowest random numbers: an exact count, whatever the order of rows.
        chance = keyed_random.uniforms(keys[:, None], np.arange(self.length)[None])
        chance[~candidates] = 2.0
        count = np.rint(candidates.sum(axis=1) * self.probability).astype(np.int64)
        rank = chance.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        is_masked = rank < count[:, None]
        places = np.flatnonzero(is_masked)
        labels = ids.ravel()[places]
        inputs = self._replace_tokens(ids, places, keys)
        return target_batch(table, inputs, (segment, positions), places - self.predicts_next, labels, causal=False)

    def _keys(self, table: pa.Table) -> np.ndarray:
        columns = (table[name].to_pylist() for name in ("stream", "epoch", "row"))
        return np.array([keyed_random.key("mask", self.seed, *row) for row in zip(*columns, strict=True)], np.uint64)

    def _replace_tokens(self, ids: np.ndarray, places: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """A copy of the ids [n, L] whose chosen `places` hold the mask token (80 %), a random one (10 %) or their own."""
        row, column = places // self.length, places % self.length
        action = keyed_random.uniforms(keys[row], column + self.length)
        draw = keyed_random.uniforms(keys[row], column + 2 * self.length)
        ordinary = _ordinary_ids(self.vocab_size, self.special_ids)
        masked = ids.copy().ravel()
        masked[places[action < 0.8]] = self.mask_id
        swap = (action >= 0.8) & (action < 0.9)
        masked[places[swap]] = ordinary[(draw[swap] * len(ordinary)).astype(np.int64)]
        return masked.reshape(ids.shape)


@cache
def _ordinary_ids(vocab_size: int, special_ids: tuple[int, ...]) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(vocab_size), special_ids)
