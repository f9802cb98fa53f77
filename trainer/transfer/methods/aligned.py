"""Aligned: a new token starts as a mixture of the old tokens that it occurs with in aligned pairs.

After Remy et al., COLM 2024 (arXiv:2408.04303), "Trans-Tokenization": E_new[t] = sum_s p(s|t) E_old[s], with p from
parallel text. Ours differs: instead of a word aligner, p comes from counting. A pair is one observation; the old pieces of
its source-language side occur with the new tokens of both of its sides (so that new pieces of the source language align
with their own old pieces). Of the partners s of t the k with the highest Dice are kept:

    p(s|t) = dice(s, t) / sum of the k         dice(s, t) = 2 c(s, t) / (c(s) + c(t))

Tokens that occur with nothing `min_count` times stay unplaced.
"""

from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import ConfigError
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.word_alignment.dice import dice, occurrences


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedConfig:
    """Settings of the alignment by counts."""

    top: int = 3
    """k"""
    min_count: int = 2
    """Pairs in which two tokens must occur together."""

    def __post_init__(self) -> None:
        if self.top < 1 or self.min_count < 1:
            raise ConfigError(f"aligned needs top >= 1 and min_count >= 1, got {self.top} and {self.min_count}.")


def place(problem: Problem, config: AlignedConfig) -> Placement:
    """Mixtures for every new token that the pairs align with something."""
    texts = problem.texts
    old = [text.ids for text in problem.source.backend_tokenizer.encode_batch_fast(texts.anchors, add_special_tokens=False)]
    encode = problem.target.backend_tokenizer.encode_batch_fast
    sides = [encode(side, add_special_tokens=False) for side in (texts.anchors, texts.positives)]
    new = [left.ids + right.ids for left, right in zip(*sides, strict=True)]
    unknown = problem.source.unk_token_id
    old = [[piece for piece in line if piece != unknown] for line in old]
    ids, counts, indices, weights = [], [], [], []
    pairs = dice(occurrences(old, problem.source_rows), occurrences(new, len(problem.tokens)), problem.new, config.min_count)
    for number, partners, score in pairs:
        if len(partners):
            ids.append(number)
            counts.append(len(partners[: config.top]))
            indices.append(partners[: config.top])
            weights.append(score[: config.top] / score[: config.top].sum())
    return Placement(
        ids=np.array(ids, np.int64),
        counts=np.array(counts, np.int64),
        indices=np.concatenate([np.empty(0, np.int64), *indices]),
        weights=np.concatenate([np.empty(0), *weights]).astype(np.float32),
        provenance=Provenance.ALIGNED,
    )
