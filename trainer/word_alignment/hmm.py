"""Which words of two parallel texts translate each other: IBM Model 1, then an HMM, in both directions.

Brown et al., Computational Linguistics 1993 (Model 1); Vogel, Ney and Tillmann, COLING 1996 (HMM); Och and Ney,
Computational Linguistics 2003 (the HMM's empty word, and the schedule: some iterations of EM of one, then of the other).
The words e_1..e_I and an empty word e_0 explain the words f_1..f_J, each of them one:

    Model 1    p(f | e) = prod_j 1/(I+1) sum_i t(f_j | e_i)
    HMM        p(f, a | e) = prod_j  p0 t(f_j | e_0)  or  (1 - p0) p(i | k, I) t(f_j | e_i)
               p(i | k, I) = c(i - k) / sum_i' c(i' - k)        k: the last i before that is not 0; 0 at the beginning

Ours differs in two things. c is a number for each width of a jump, all from 5 on in one (Liang, Taskar and Klein, NAACL
2006); since what a jump competes with depends on k and I, dividing expected counts by their sum can lower the likelihood,
so c takes the step of Hunter, Annals of Statistics 2004, which cannot. And the directions are joined by posteriors, as
Liang et al. do: a link is a cell where the product of both is high. Unlike best paths they leave no ties to break.

In fp64 and without random numbers. Time: I J operations a pair and iteration for Model 1, I^2 J for the HMM. Memory: 4 bytes
a cell (I J of them a pair) and some 50 for any two words that occur together; one direction after the other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ITERATIONS = 5
"""Of each model; as Och and Ney."""
TO_EMPTY = 0.2
"""p0; as Och and Ney."""
MIN_PRODUCT = 0.25
"""Of the posteriors of a link in both directions."""
_FARTHEST = 5
"""Jumps of this width and wider ones share a probability."""
_BATCH_CELLS = 1 << 20
"""A batch needs some 80 bytes of scratch a cell."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs of equal I, in N rows: one for each word f, all first words before all second words.

    The pair with most words f comes first, so the rows of a position continue the first rows of the position before.
    """

    pair: Ints
    """[N]"""
    position: Ints
    """[N], j from 0"""
    cells: NDArray[np.int32]
    """[N, I + 1], places in the table t of f_j and each e_i; column 0 is the empty word."""

    def steps(self) -> list[slice]:
        """The rows of each position."""
        bounds = np.concatenate([[0], np.cumsum(np.bincount(self.position))]).tolist()
        return [slice(start, stop) for start, stop in pairwise(bounds)]


@dataclass(frozen=True, slots=True)
class Bitext:
    """Pairs in batches, and the P places of a table t(f | e): words that occur together."""

    batches: list[Batch]
    given: Ints
    """[P], number of e by first appearance, from 1; 0 is the empty word."""
    word: Ints
    """[P], number of f by first appearance, from 0."""

    def table(self, counts: Floats) -> Floats:
        """t in proportion to `counts` [P]; it sums to 1 for each e."""
        return counts / np.bincount(self.given, counts)[self.given]


def align(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Ints:
    """Links between words that translate each other, learned from these very pairs.

    Args:
        sources, targets: the words of both sides of each pair; an empty side has no links.

    Returns:
        [links, 3], ascending: pair, position in the source, position in the target.
    """
    forward, there = _likely(sources, targets)
    backward, back = _likely(targets, sources)
    shape = (len(sources), *(max(map(len, side), default=0) for side in (sources, targets)))
    keys = np.ravel_multi_index(forward.T, shape), np.ravel_multi_index(backward[:, [0, 2, 1]].T, shape)
    both, one, other = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return np.stack(np.unravel_index(both[there[one] * back[other] > MIN_PRODUCT], shape), axis=1)


def _likely(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> tuple[Ints, Floats]:
    """Of one direction all (pair, source, target) [n, 3] that can be part of a link, and their posteriors [n]."""
    text = bitext(sources, targets)
    table = text.table(np.ones(len(text.given)))
    for _ in range(ITERATIONS):
        table, _ = model1_step(text, table)
    jumps = np.ones(2 * _FARTHEST + 1)
    for _ in range(ITERATIONS):
        table, jumps, _ = hmm_step(text, table, jumps)
    places, found = [np.empty((0, 3), np.int64)], [np.empty(0)]
    for batch in text.batches:
        posterior, _, _ = hmm_posteriors(table[batch.cells], batch.steps(), jumps)
        row, source = np.nonzero(posterior[:, 1:] > MIN_PRODUCT)
        places.append(np.stack([batch.pair[row], source, batch.position[row]], axis=1))
        found.append(posterior[row, source + 1])
    return np.concatenate(places), np.concatenate(found)


def bitext(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Bitext:
    """Numbers the words and batches the pairs; those with an empty side are left out."""
    given, given_start, given_length = _numbered(sources)
    word, word_start, word_length = _numbered(targets)
    words = int(word.max(initial=0)) + 1
    batches, found = [], [np.empty(0, np.int64)]
    for pairs in _equal_sources(given_length, word_length):
        left = np.arange(given_length[pairs[0]])
        position, which = np.nonzero(np.arange(word_length[pairs[0]])[:, None] < word_length[pairs])
        e = np.pad(given[given_start[pairs][:, None] + left] + 1, ((0, 0), (1, 0)))
        f = word[word_start[pairs][which] + position]
        keys, cells = np.unique(e[which] * words + f[:, None], return_inverse=True)
        found.append(keys)
        batches.append(Batch(pairs[which], position, cells.astype(np.int32)))
    ordered = np.sort(np.concatenate(found))
    places = ordered[np.diff(ordered, prepend=-1) > 0]  # np.unique hashes, which takes 10 times as long (numpy 2.4)
    for batch, keys in zip(batches, found[1:], strict=True):
        batch.cells[:] = np.searchsorted(places, keys).astype(np.int32)[batch.cells]
    return Bitext(batches, places // words, places % words)


def _numbered(sentences: Sequence[Sequence[str]]) -> tuple[Ints, Ints, Ints]:
    """All words as numbers in order of first appearance, and where each sentence starts, and its length."""
    numbers: dict[str, int] = {}
    flat = [numbers.setdefault(word, len(numbers)) for sentence in sentences for word in sentence]
    length = np.array([len(sentence) for sentence in sentences], np.int64)
    return np.array(flat, np.int64), np.cumsum(length) - length, length


def _equal_sources(source: Ints, target: Ints) -> Iterator[Ints]:
    """Pairs without an empty side, those with equally many source words together, the longest target first."""
    order = np.lexsort((-target, source))
    order = order[(source[order] > 0) & (target[order] > 0)]
    if not len(order):
        return
    for group in np.split(order, np.flatnonzero(np.diff(source[order])) + 1):
        cells = int(target[group].sum() * (source[group[0]] + 1))
        parts = min(len(group), math.ceil(cells / _BATCH_CELLS))
        yield from (group[part::parts] for part in range(parts))


def model1_step(text: Bitext, table: Floats) -> tuple[Floats, float]:
    """One iteration of EM: the next table, and the log-likelihood of this one but for the constant 1/(I+1)."""
    counts, likelihood = np.zeros_like(table), 0.0
    for batch in text.batches:
        joint = table[batch.cells]
        total = joint.sum(axis=1, keepdims=True)
        np.add.at(counts, batch.cells.ravel(), (joint / total).ravel())
        likelihood += float(np.log(total).sum())
    return text.table(counts), likelihood


def hmm_step(text: Bitext, table: Floats, jumps: Floats) -> tuple[Floats, Floats, float]:
    """One iteration of EM: the next t [P] and c [11], and the log-likelihood of these."""
    counts, likelihood = np.zeros_like(table), 0.0
    made, could = np.zeros_like(jumps), np.zeros_like(jumps)
    for batch in text.batches:
        posterior, moves, log = hmm_posteriors(table[batch.cells], batch.steps(), jumps)
        np.add.at(counts, batch.cells.ravel(), posterior.ravel())
        width = _widths(len(moves))
        rivals = moves.sum(axis=1, keepdims=True) / jumps[width].sum(axis=1, keepdims=True)
        made += np.bincount(width.ravel(), moves.ravel(), len(jumps))
        could += np.bincount(width.ravel(), np.broadcast_to(rivals, width.shape).ravel(), len(jumps))
        likelihood += log
    # What no sentence is long enough for keeps its value; what never happens must not make a sum of 0.
    jumps = np.divide(made, could, out=jumps.copy(), where=could > 0)
    return text.table(counts), np.maximum(jumps / jumps.sum(), 1e-12), likelihood


def hmm_posteriors(emission: Floats, steps: list[slice], jumps: Floats) -> tuple[Floats, Floats, float]:
    """Forward and backward through all sentences of a batch at once.

    Args:
        emission: [N, I + 1], t of each row's word for each source word; column 0 is the empty word.
        steps: the rows of each position.
        jumps: c [11].

    Returns:
        The posterior of each cell [N, I + 1], the expected moves from each k to each i [I + 1, I], and the log-likelihood.
    """
    move = jumps[_widths(emission.shape[1])]
    move /= move.sum(axis=1, keepdims=True)
    empty, word = TO_EMPTY * emission[:, :1], (1 - TO_EMPTY) * emission[:, 1:]
    before = np.zeros_like(emission)  # p(k | the words before), for each row
    after = np.ones_like(emission)  # how much likelier the words behind are if k follows; 1 at a sentence's end
    scale = np.empty((len(emission), 1))  # p(the row's word | the words before)
    before[steps[0], 0] = 1.0
    for here, there in zip(steps, [*steps[1:], slice(0, 0)], strict=True):
        state = before[here] * empty[here]
        state[:, 1:] += before[here] @ move * word[here]
        scale[here] = state.sum(axis=1, keepdims=True)
        going_on = there.stop - there.start
        before[there] = state[:going_on] / scale[here][:going_on]
    for here, there in zip(steps[-2::-1], steps[:0:-1], strict=True):
        state = after[there] * empty[there] + (after[there, 1:] * word[there]) @ move.T
        after[here][: len(state)] = state / scale[there]
    arrival = word * after[:, 1:] / scale
    none = (before * after).sum(axis=1, keepdims=True) * empty / scale
    posterior = np.concatenate([none, before @ move * arrival], axis=1)
    return posterior, move * (before.T @ arrival), float(np.log(scale).sum())


def _widths(places: int) -> Ints:
    """Which of the 11 widths leads from k to i, [I + 1, I]."""
    width = np.arange(1, places)[None, :] - np.arange(places)[:, None]
    return np.clip(width, -_FARTHEST, _FARTHEST) + _FARTHEST
