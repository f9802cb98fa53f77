"""RAMEN: a new token starts as a mixture of source tokens, weighted by alignment probabilities or by word vectors.

Tran, 2020 (arXiv:2002.07306), "From English to Foreign Languages: Transferring Pre-trained Language Models", section 2.2.
Either from parallel text, whose tokens are aligned, or from vectors v_w of words in one space, with the rank r_w of a word:

    alignment:  p(s|t) = C(s, t) / sum_s' C(s', t)                      C: how often s and t are aligned
    vectors:    a_t = sum_{w in W(t)} v_w / r_w, normalised             p(.|t) = sparsemax_s( cos(a_t, a_s) )
                E_new[t] = sum_s p(s|t) E_old[s]

The head's bias is mixed in the same way.

Differences from the paper: the aligner is our own. Tokens of the source language are aligned too, since the new vocabulary
has pieces of it: a source and a new piece that cover the same characters of an anchor count once.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from data_pipeline.errors import DataError
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.neighbours import top_sparsemax, unit_rows
from trainer.word_alignment import hmm
from trainer.word_vectors import word_space
from trainer.word_vectors.vectors import Vectors
from trainer.word_vectors.word_space import SpaceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RamenConfig:
    """Which of the paper's two variants to use, and the vectors of the second."""

    weights: Literal["alignment", "vectors"] = "alignment"
    """Whether weights come from the alignment of text pairs or from word vectors."""
    space: SpaceConfig = field(default_factory=SpaceConfig)


def place(problem: Problem, config: RamenConfig) -> Placement:
    """Places every new token that is aligned with a source token, or that occurs in a word.

    Raises:
        DataError: there are no text pairs, or the vectors cannot be aligned.
    """
    return _by_vectors(problem, config.space) if config.weights == "vectors" else _by_alignment(problem)


def _by_alignment(problem: Problem) -> Placement:
    """Places each new token as the mean of the source tokens aligned with it in the pairs, weighted by alignment counts."""
    if not problem.texts.anchors:
        raise DataError("there are no pairs to align.", "method=ramen", "Give `pairs`, or set ramen.weights=vectors.")
    counts = links(problem)
    new_ids = set(problem.new.tolist())
    entries = sorted((new, old, count) for (old, new), count in counts.items() if new in new_ids)
    columns = (np.array(column) for column in zip(*entries, strict=True)) if entries else (np.empty(0, np.int64),) * 3
    targets, sources, pair_counts = columns
    ids, starts, sizes = np.unique(targets, return_index=True, return_counts=True)
    totals = np.add.reduceat(pair_counts, starts) if len(ids) else pair_counts
    return Placement(
        ids=ids,
        counts=sizes.astype(np.int64),
        indices=sources,
        weights=(pair_counts / np.repeat(totals, sizes)).astype(np.float32),
        provenance=Provenance.ALIGNED,
    )


def links(problem: Problem) -> Counter[tuple[int, int]]:
    """The number of alignments by (source token, new token)."""
    texts = problem.texts
    anchors = problem.source.backend_tokenizer.encode_batch(texts.anchors, add_special_tokens=False)
    positives = problem.target.backend_tokenizer.encode_batch(texts.positives, add_special_tokens=False)
    anchors_in_target = problem.target.backend_tokenizer.encode_batch(texts.anchors, add_special_tokens=False)
    alignment = hmm.align([text.tokens for text in anchors], [text.tokens for text in positives])
    counts = Counter((anchors[pair].ids[old], positives[pair].ids[new]) for pair, old, new in alignment.tolist())
    for left, right in zip(anchors, anchors_in_target, strict=True):
        counts.update(
            (old, new)
            for old, (start, stop) in zip(left.ids, left.offsets, strict=True)
            for new, (begin, end) in zip(right.ids, right.offsets, strict=True)
            if max(start, begin) < min(stop, end)
        )
    unknown_id = problem.source.unk_token_id
    return Counter({pair: count for pair, count in counts.items() if pair[0] != unknown_id})


def _by_vectors(problem: Problem, space: SpaceConfig) -> Placement:
    source, target = word_space.align_vectors(problem.texts, space, problem.executor)
    source_ids, source_vectors = word_space.token_vectors_by_words(problem.source, source, _zipf_weights(source), (" {}",))
    target_ids, target_vectors = word_space.token_vectors_by_words(problem.target, target, _zipf_weights(target), (" {}",))
    is_new = np.isin(target_ids, problem.new)
    columns, weights = top_sparsemax(unit_rows(target_vectors[is_new]), unit_rows(source_vectors), problem.executor)
    return Placement.from_dense(target_ids[is_new], source_ids[columns], weights, Provenance.NEIGHBOURS)


def _zipf_weights(vectors: Vectors) -> np.ndarray:
    """Weights by Zipf's law instead of counts; `words` is in descending order of frequency."""
    return 1.0 / np.arange(1, len(vectors.words) + 1)
