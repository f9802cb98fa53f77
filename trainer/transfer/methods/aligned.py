"""Aligned: a new token starts as a mixture of the source tokens that it occurs with in text pairs.

After Remy et al., COLM 2024 (arXiv:2408.04303), "Trans-Tokenization": E_new[t] = sum_s p(s|t) E_old[s], with p from
parallel text.

    p(s|t) = dice(s, t) / sum of the k         dice(s, t) = 2 c(s, t) / (c(s) + c(t))

The sum is over the k partners s of t with the highest Dice.

Differences from the paper: p comes from counts instead of a word aligner. A text pair is one observation: the source pieces
of its anchor co-occur with the new tokens of both sides, so new pieces of the source language align with their own source
pieces. A token without a partner that it occurs with `min_count` times stays unplaced.
"""

from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import ConfigError
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.word_alignment.dice import dice, occurrences


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedConfig:
    """Settings of the alignment by co-occurrence counts."""

    top: int = 3
    """k"""
    min_count: int = 2
    """Minimum number of text pairs in which two tokens occur together."""

    def __post_init__(self) -> None:
        if self.top < 1 or self.min_count < 1:
            raise ConfigError(f"aligned needs top >= 1 and min_count >= 1, got {self.top} and {self.min_count}.")


def place(problem: Problem, config: AlignedConfig) -> Placement:
    """Places every new token that co-occurs with a source token often enough."""
    texts = problem.texts
    source_ids = [
        text.ids for text in problem.source.backend_tokenizer.encode_batch_fast(texts.anchors, add_special_tokens=False)
    ]
    encode = problem.target.backend_tokenizer.encode_batch_fast
    encoded_sides = [encode(side, add_special_tokens=False) for side in (texts.anchors, texts.positives)]
    target_ids = [left.ids + right.ids for left, right in zip(*encoded_sides, strict=True)]
    unknown_id = problem.source.unk_token_id
    source_ids = [[piece for piece in line if piece != unknown_id] for line in source_ids]
    ids, counts, indices, weights = [], [], [], []
    partners_by_token = dice(
        occurrences(source_ids, problem.source_rows),
        occurrences(target_ids, len(problem.tokens)),
        problem.new,
        config.min_count,
    )
    for token_id, partners, scores in partners_by_token:
        if len(partners):
            ids.append(token_id)
            counts.append(len(partners[: config.top]))
            indices.append(partners[: config.top])
            weights.append(scores[: config.top] / scores[: config.top].sum())
    return Placement(
        ids=np.array(ids, np.int64),
        counts=np.array(counts, np.int64),
        indices=np.concatenate([np.empty(0, np.int64), *indices]),
        weights=np.concatenate([np.empty(0), *weights]).astype(np.float32),
        provenance=Provenance.ALIGNED,
    )
