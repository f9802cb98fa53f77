"""Aligns the words of parallel texts: IBM Model 1, then an HMM, in both directions.

Brown et al., Computational Linguistics 1993 (Model 1); Vogel, Ney and Tillmann, COLING 1996 (HMM); Och and Ney,
Computational Linguistics 2003 (the HMM's empty word, and the schedule: EM iterations of the first model, then of the second).
Each of the words f_1..f_J is explained by one of the words e_1..e_I or by an empty word e_0:

    Model 1    p(f | e) = prod_j 1/(I+1) sum_i t(f_j | e_i)
    HMM        p(f, a | e) = prod_j  p0 t(f_j | e_0)  or  (1 - p0) p(i | k, I) t(f_j | e_i)
               p(i | k, I) = c(i - k) / sum_i' c(i' - k)        k: the last previous i that is not 0; 0 at the beginning

Differences from the papers:

- c has one value for each jump width, and a single one for all widths from 5 on (Liang, Taskar and Klein, NAACL 2006). The
  normaliser of a jump depends on k and I, so dividing expected counts by their sum can lower the likelihood. The update of
  Hunter, Annals of Statistics 2004, cannot, so c uses that.
- The two directions are combined by posteriors, as in Liang et al.: a link is a cell with a high product of both. Unlike best
  paths, posteriors leave no ties to break.

Computed in fp64 without random numbers. Time per text pair and iteration: I J operations for Model 1, I^2 J for the HMM.
Memory: 4 bytes a cell (I J cells per text pair) and about 50 for each two words that co-occur; one direction at a time.
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
"""EM iterations of each model, as in Och and Ney."""
TO_EMPTY = 0.2
"""p0, as in Och and Ney."""
MIN_PRODUCT = 0.25
"""Minimum product of a link's posteriors in the two directions."""
_FARTHEST = 5
"""Jumps of this width or wider share one value of c."""
BATCH_CELLS = 1 << 20
"""Cells of a batch; it needs about 80 bytes of scratch a cell."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Text pairs of equal I as N rows: one row for each word f, all first words before all second words.

    Pairs are in descending order of J, so the rows of a position continue the first rows of the previous position.
    """

    pair: Ints
    """[N]"""
    position: Ints
    """[N], j from 0"""
    cells: NDArray[np.int32]
    """[N, I + 1], indices into the table t for f_j and each e_i; column 0 is the empty word."""

    def steps(self) -> list[slice]:
        """The rows of each position."""
        bounds = np.concatenate([[0], np.cumsum(np.bincount(self.position))]).tolist()
        return [slice(start, stop) for start, stop in pairwise(bounds)]


@dataclass(frozen=True, slots=True)
class Bitext:
    """Text pairs in batches, and the P entries of a table t(f | e): words that co-occur."""

    batches: list[Batch]
    source_word: Ints
    """[P], number of e by first appearance, from 1; 0 is the empty word."""
    target_word: Ints
    """[P], number of f by first appearance, from 0."""

    def table(self, counts: Floats) -> Floats:
        """t in proportion to `counts` [P], normalised to sum to 1 for each e."""
        return counts / np.bincount(self.source_word, counts)[self.source_word]


def align(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Ints:
    """Aligns words, with models trained on these text pairs.

    Args:
        sources, targets: the words of each side of each text pair; an empty side has no links.

    Returns:
        [links, 3], ascending: (text pair, position in the source, position in the target).
    """
    forward, forward_posterior = _link_candidates(sources, targets)
    backward, backward_posterior = _link_candidates(targets, sources)
    shape = (len(sources), *(max(map(len, side), default=0) for side in (sources, targets)))
    keys = np.ravel_multi_index(forward.T, shape), np.ravel_multi_index(backward[:, [0, 2, 1]].T, shape)
    common, in_forward, in_backward = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return np.stack(
        np.unravel_index(common[forward_posterior[in_forward] * backward_posterior[in_backward] > MIN_PRODUCT], shape), axis=1
    )


def _link_candidates(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> tuple[Ints, Floats]:
    """The candidates of links in one direction, (pair, source, target) [n, 3], and their posteriors [n]."""
    text = bitext(sources, targets)
    table = text.table(np.ones(len(text.source_word)))
    for _ in range(ITERATIONS):
        table, _ = model1_step(text, table)
    jumps = np.ones(2 * _FARTHEST + 1)
    for _ in range(ITERATIONS):
        table, jumps, _ = hmm_step(text, table, jumps)
    links, posteriors = [np.empty((0, 3), np.int64)], [np.empty(0)]
    for batch in text.batches:
        posterior, _, _ = hmm_posteriors(table[batch.cells], batch.steps(), jumps)
        row, source = np.nonzero(posterior[:, 1:] > MIN_PRODUCT)
        links.append(np.stack([batch.pair[row], source, batch.position[row]], axis=1))
        posteriors.append(posterior[row, source + 1])
    return np.concatenate(links), np.concatenate(posteriors)


def bitext(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> Bitext:
    """Numbers the words and batches the text pairs, without pairs that have an empty side."""
    source_words, source_start, source_length = _number_words(sources)
    target_words, target_start, target_length = _number_words(targets)
    vocabulary = int(target_words.max(initial=0)) + 1
    batches, keys_of_batches = [], [np.empty(0, np.int64)]
    for pairs in _group_by_source_length(source_length, target_length):
        positions = np.arange(source_length[pairs[0]])
        position, pair_index = np.nonzero(np.arange(target_length[pairs[0]])[:, None] < target_length[pairs])
        e = np.pad(source_words[source_start[pairs][:, None] + positions] + 1, ((0, 0), (1, 0)))
        f = target_words[target_start[pairs][pair_index] + position]
        keys, cells = np.unique(e[pair_index] * vocabulary + f[:, None], return_inverse=True)
        keys_of_batches.append(keys)
        batches.append(Batch(pairs[pair_index], position, cells.astype(np.int32)))
    ordered = np.sort(np.concatenate(keys_of_batches))
    entries = ordered[np.diff(ordered, prepend=-1) > 0]  # np.unique hashes: 10 times slower (numpy 2.4)
    for batch, keys in zip(batches, keys_of_batches[1:], strict=True):
        batch.cells[:] = np.searchsorted(entries, keys).astype(np.int32)[batch.cells]
    return Bitext(batches, entries // vocabulary, entries % vocabulary)


def _number_words(sentences: Sequence[Sequence[str]]) -> tuple[Ints, Ints, Ints]:
    """All words as numbers by first appearance, and the start and the length of each sentence."""
    numbers: dict[str, int] = {}
    flat = [numbers.setdefault(word, len(numbers)) for sentence in sentences for word in sentence]
    length = np.array([len(sentence) for sentence in sentences], np.int64)
    return np.array(flat, np.int64), np.cumsum(length) - length, length


def _group_by_source_length(source: Ints, target: Ints) -> Iterator[Ints]:
    """Yields groups of text pairs with the same number of source words, the longest target first, without empty sides."""
    order = np.lexsort((-target, source))
    order = order[(source[order] > 0) & (target[order] > 0)]
    if not len(order):
        return
    for group in np.split(order, np.flatnonzero(np.diff(source[order])) + 1):
        cells = int(target[group].sum() * (source[group[0]] + 1))
        parts = min(len(group), math.ceil(cells / BATCH_CELLS))
        yield from (group[part::parts] for part in range(parts))


def model1_step(text: Bitext, table: Floats) -> tuple[Floats, float]:
    """One EM iteration: the next table, and the log-likelihood of this one without the constant 1/(I+1)."""
    counts, likelihood = np.zeros_like(table), 0.0
    for batch in text.batches:
        joint = table[batch.cells]
        total = joint.sum(axis=1, keepdims=True)
        np.add.at(counts, batch.cells.ravel(), (joint / total).ravel())
        likelihood += float(np.log(total).sum())
    return text.table(counts), likelihood


def hmm_step(text: Bitext, table: Floats, jumps: Floats) -> tuple[Floats, Floats, float]:
    """One EM iteration: the next t [P] and c [11], and the log-likelihood of the current ones."""
    counts, likelihood = np.zeros_like(table), 0.0
    expected, possible = np.zeros_like(jumps), np.zeros_like(jumps)
    for batch in text.batches:
        posterior, moves, log = hmm_posteriors(table[batch.cells], batch.steps(), jumps)
        np.add.at(counts, batch.cells.ravel(), posterior.ravel())
        width = _widths(len(moves))
        rivals = moves.sum(axis=1, keepdims=True) / jumps[width].sum(axis=1, keepdims=True)
        expected += np.bincount(width.ravel(), moves.ravel(), len(jumps))
        possible += np.bincount(width.ravel(), np.broadcast_to(rivals, width.shape).ravel(), len(jumps))
        likelihood += log
    # Widths that no sentence is long enough for keep their value. The floor keeps sums above 0 for jumps that never occur.
    jumps = np.divide(expected, possible, out=jumps.copy(), where=possible > 0)
    return text.table(counts), np.maximum(jumps / jumps.sum(), 1e-12), likelihood


def hmm_posteriors(emission: Floats, steps: list[slice], jumps: Floats) -> tuple[Floats, Floats, float]:
    """Runs the forward-backward algorithm on all sentences of a batch at once.

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
    before = np.zeros_like(emission)  # p(k | the previous words), for each row
    after = np.ones_like(emission)  # likelihood ratio of the following words given k; 1 at a sentence's end
    scale = np.empty((len(emission), 1))  # p(the row's word | the previous words)
    before[steps[0], 0] = 1.0
    for rows, next_rows in zip(steps, [*steps[1:], slice(0, 0)], strict=True):
        state = before[rows] * empty[rows]
        state[:, 1:] += before[rows] @ move * word[rows]
        scale[rows] = state.sum(axis=1, keepdims=True)
        continuing = next_rows.stop - next_rows.start
        before[next_rows] = state[:continuing] / scale[rows][:continuing]
    for rows, next_rows in zip(steps[-2::-1], steps[:0:-1], strict=True):
        state = after[next_rows] * empty[next_rows] + (after[next_rows, 1:] * word[next_rows]) @ move.T
        after[rows][: len(state)] = state / scale[next_rows]
    arrival = word * after[:, 1:] / scale
    empty_posterior = (before * after).sum(axis=1, keepdims=True) * empty / scale
    posterior = np.concatenate([empty_posterior, before @ move * arrival], axis=1)
    return posterior, move * (before.T @ arrival), float(np.log(scale).sum())


def _widths(places: int) -> Ints:
    """The index of the jump width from k to i, among 11, [I + 1, I]."""
    width = np.arange(1, places)[None, :] - np.arange(places)[:, None]
    return np.clip(width, -_FARTHEST, _FARTHEST) + _FARTHEST
