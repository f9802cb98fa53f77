"""RAMEN: a new token starts as a mixture of old ones by the odds that a word aligner gives, or by vectors of its words.

Tran, 2020 (arXiv:2002.07306), "From English to Foreign Languages: Transferring Pre-trained Language Models", section 2.2.
From parallel text, whose tokens are aligned; or, with v_w the vectors of words in one space and r_w a word's rank:

    alignment:  p(s|t) = C(s, t) / sum_s' C(s', t)                      C: how often old s and new t are aligned
    vectors:    a_t = sum_{w in W(t)} v_w / r_w  at length 1            p(.|t) = sparsemax_s( cos(a_t, a_s) )
                E_new[t] = sum_s p(s|t) E_old[s]

The head's bias is mixed alike. Ours differs: the aligner is our own; tokens of the source language are aligned too, since
the new vocabulary has pieces of it: an old and a new piece that share characters of the same text count once.
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
    """Which of the paper's two ways, and the vectors of the second."""

    weights: Literal["alignment", "vectors"] = "alignment"
    """Whether weights come from aligned pairs or from word vectors."""
    space: SpaceConfig = field(default_factory=SpaceConfig)


def place(problem: Problem, config: RamenConfig) -> Placement:
    """Mixtures for every new token that is aligned with something, or that occurs in a word.

    Raises:
        DataError: there are no pairs, or the vectors cannot be aligned.
    """
    return _by_vectors(problem, config.space) if config.weights == "vectors" else _by_alignment(problem)


def _by_alignment(problem: Problem) -> Placement:
    if not problem.texts.anchors:
        raise DataError("there are no pairs to align.", "method=ramen", "Give `pairs`, or ramen.weights=vectors.")
    counts = links(problem)
    wanted = set(problem.new.tolist())
    pairs = sorted((new, old, count) for (old, new), count in counts.items() if new in wanted)
    new, old, count = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else (np.empty(0, np.int64),) * 3
    ids, first, sizes = np.unique(new, return_index=True, return_counts=True)
    totals = np.add.reduceat(count, first) if len(ids) else count
    return Placement(
        ids=ids,
        counts=sizes.astype(np.int64),
        indices=old,
        weights=(count / np.repeat(totals, sizes)).astype(np.float32),
        provenance=Provenance.ALIGNED,
    )


def links(problem: Problem) -> Counter[tuple[int, int]]:
    """How often an old and a new token are aligned."""
    texts = problem.texts
    anchors = problem.source.backend_tokenizer.encode_batch(texts.anchors, add_special_tokens=False)
    positives = problem.target.backend_tokenizer.encode_batch(texts.positives, add_special_tokens=False)
    same = problem.target.backend_tokenizer.encode_batch(texts.anchors, add_special_tokens=False)
    found = hmm.align([text.tokens for text in anchors], [text.tokens for text in positives])
    counts = Counter((anchors[pair].ids[old], positives[pair].ids[new]) for pair, old, new in found.tolist())
    for left, right in zip(anchors, same, strict=True):
        counts.update(
            (old, new)
            for old, (start, stop) in zip(left.ids, left.offsets, strict=True)
            for new, (begin, end) in zip(right.ids, right.offsets, strict=True)
            if max(start, begin) < min(stop, end)
        )
    unknown = problem.source.unk_token_id
    return Counter({pair: count for pair, count in counts.items() if pair[0] != unknown})


def _by_vectors(problem: Problem, space: SpaceConfig) -> Placement:
    source, target = word_space.align_vectors(problem.texts, space, problem.executor)
    old_ids, old = word_space.token_vectors_by_words(problem.source, source, _by_rank(source), (" {}",))
    known, vectors = word_space.token_vectors_by_words(problem.target, target, _by_rank(target), (" {}",))
    new = np.isin(known, problem.new)
    columns, weights = top_sparsemax(unit_rows(vectors[new]), unit_rows(old), problem.executor)
    return Placement.from_dense(known[new], old_ids[columns], weights, Provenance.NEIGHBOURS)


def _by_rank(vectors: Vectors) -> np.ndarray:
    """Zipf's law in place of counts; `words` comes in descending order of frequency."""
    return 1.0 / np.arange(1, len(vectors.words) + 1)
