"""Model 1 and the HMM against enumeration, and the aligner on languages with a known dictionary."""

import collections
import itertools
import math
import re

import numpy as np
import pytest

from trainer.word_alignment import hmm
from trainer.word_alignment.hmm import TO_EMPTY, Bitext, align, bitext, hmm_posteriors, hmm_step, model1_step

TINY = [
    (["the", "house"], ["das", "haus"]),
    (["the", "book"], ["das", "buch"]),
    (["a", "book"], ["ein", "buch", "buch"]),
    (["a"], ["ein"]),
]


def sides(pairs) -> tuple[list[list[str]], list[list[str]]]:
    return [source for source, _ in pairs], [target for _, target in pairs]


def named(text: Bitext, table, sources, targets) -> dict[tuple[str | None, str], float]:
    """A table as a dict by words."""
    given = [None, *dict.fromkeys(word for line in sources for word in line)]
    word = list(dict.fromkeys(word for line in targets for word in line))
    return {(given[e], word[f]): p for e, f, p in zip(text.source_word, text.target_word, table, strict=True)}


@pytest.fixture(scope="module")
def real(pairs) -> tuple[list[list[str]], list[list[str]]]:
    anchors, positives = ([re.findall(r"\w+", row[side].casefold()) for row in pairs] for side in ("anchor", "positive"))
    return anchors, positives


# Model 1


def model1_by_hand(pairs, iterations: int) -> dict[tuple[str | None, str], float]:
    """Brown et al. 1993, word by word."""
    together = {(e, f) for source, target in pairs for e in [None, *source] for f in target}
    t = {(e, f): 1 / sum(other == e for other, _ in together) for e, f in together}
    for _ in range(iterations):
        count, total = collections.Counter(), collections.Counter()
        for source, target in pairs:
            for f in target:
                norm = sum(t[e, f] for e in [None, *source])
                for e in [None, *source]:
                    count[e, f] += t[e, f] / norm
                    total[e] += t[e, f] / norm
        t = {(e, f): count[e, f] / total[e] for e, f in together}
    return t


def test_model_1_is_em_by_hand() -> None:
    sources, targets = sides(TINY)
    text = bitext(sources, targets)
    table = text.table(np.ones(len(text.source_word)))
    for iterations in range(6):
        expected = model1_by_hand(TINY, iterations)
        result = named(text, table, sources, targets)
        assert result.keys() == expected.keys()
        assert all(math.isclose(result[key], expected[key], rel_tol=1e-12) for key in expected)
        table, _ = model1_step(text, table)


# The HMM


def hmm_by_hand(emission, jumps):
    """All ways to explain one sentence, [J, I + 1] emissions: posteriors, expected moves and the likelihood."""
    words, places = emission.shape
    posterior, moves, total = np.zeros_like(emission), np.zeros((places, places - 1)), 0.0
    width = {d: jumps[np.clip(d, -5, 5) + 5] for d in range(-places, places + 1)}
    for path in itertools.product(range(places), repeat=words):
        p, last, made = 1.0, 0, np.zeros_like(moves)
        for j, i in enumerate(path):
            p *= emission[j, i] * (TO_EMPTY if i == 0 else 1 - TO_EMPTY)
            if i > 0:
                p *= width[i - last] / sum(width[other - last] for other in range(1, places))
                made[last, i - 1] += 1
                last = i
        total += p
        moves += p * made
        posterior[np.arange(words), path] += p
    return posterior / total, moves / total, math.log(total)


@pytest.mark.parametrize("source_words", [1, 3, 7])
def test_the_hmm_sums_over_all_alignments(source_words) -> None:
    generator = np.random.default_rng(0)
    emission = generator.random((3, source_words + 1))
    jumps = generator.random(11)
    result = hmm_posteriors(emission, [slice(j, j + 1) for j in range(3)], jumps)
    for part, expected in zip(result, hmm_by_hand(emission, jumps), strict=True):
        assert np.allclose(part, expected, rtol=1e-12)


def test_sentences_of_a_batch_do_not_affect_each_other() -> None:
    """Lengths 4, 2 and 1: rows are first words, second words and so on."""
    generator = np.random.default_rng(1)
    lengths, steps = [4, 2, 1], [slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 7)]
    emission, jumps = generator.random((7, 4)), generator.random(11)
    posterior, moves, likelihood = hmm_posteriors(emission, steps, jumps)
    rows = [[steps[j].start + sentence for j in range(length)] for sentence, length in enumerate(lengths)]
    alone = [hmm_by_hand(emission[part], jumps) for part in rows]
    for part, (expected, _, _) in zip(rows, alone, strict=True):
        assert np.allclose(posterior[part], expected, rtol=1e-12)
    assert np.allclose(moves, sum(one[1] for one in alone), rtol=1e-12)
    assert math.isclose(likelihood, sum(one[2] for one in alone), rel_tol=1e-12)


# EM


def test_no_iteration_lowers_the_likelihood(real) -> None:
    text = bitext(*real)
    table, jumps = text.table(np.ones(len(text.source_word))), np.ones(11)
    first, second = [], []
    for _ in range(8):
        table, likelihood = model1_step(text, table)
        first.append(likelihood)
    for _ in range(8):
        table, jumps, likelihood = hmm_step(text, table, jumps)
        second.append(likelihood)
    for values in (first, second):
        assert (np.diff(values) > 0).all()
    assert jumps.argmax() == 6, "the next word is where most sentences go on"
    assert np.allclose(np.bincount(text.source_word, table), 1.0)


@pytest.mark.parametrize("seed", [5, 48, 97, 189, 236])
def test_the_likelihood_rises_where_dividing_the_counts_of_jumps_would_lower_it(seed) -> None:
    """With these seeds the likelihood falls by 0.01 to 0.07 if c is the expected counts divided by their sum."""
    generator = np.random.default_rng(seed)
    sides = [
        [[f"{side}{word}" for word in generator.integers(0, 6, generator.integers(1, 6))] for _ in range(4)] for side in "st"
    ]
    text = bitext(*sides)
    table, jumps, result = text.table(np.ones(len(text.source_word))), np.ones(11), []
    for _ in range(12):
        table, jumps, likelihood = hmm_step(text, table, jumps)
        result.append(likelihood)
    assert np.diff(result).min() > -1e-9


# Links


def planted(seed: int, count: int) -> tuple[list[list[str]], list[list[str]], set[tuple[int, int, int]]]:
    """A cipher in which neighbouring words swap places and one word in twenty is missing or new."""
    generator = np.random.default_rng(seed)
    frequency = 1 / np.arange(3, 63)
    sources, targets, links = [], [], set()
    for pair in range(count):
        source = generator.choice(60, generator.integers(3, 12), p=frequency / frequency.sum())
        order = np.argsort(np.arange(len(source)) + generator.uniform(0, 1.6, len(source)))
        order = [place for place in order if generator.random() > 0.05]
        target = [(f"T{source[place]}", place) for place in order]
        if generator.random() < 0.3:
            target.insert(generator.integers(len(target) + 1), (f"new{generator.integers(5)}", -1))
        sources.append([f"s{word}" for word in source])
        targets.append([word for word, _ in target])
        links |= {(pair, int(place), j) for j, (_, place) in enumerate(target) if place >= 0}
    return sources, targets, links


def test_a_planted_dictionary_is_recovered() -> None:
    sources, targets, links = planted(0, 600)
    result = {tuple(link) for link in align(sources, targets).tolist()}
    right = len(result & links)
    assert right / len(result) > 0.95
    assert right / len(links) > 0.95


def test_a_second_run_and_another_batch_size_give_the_same_links(real, monkeypatch) -> None:
    once = align(*real)
    assert align(*real).tobytes() == once.tobytes()
    monkeypatch.setattr(hmm, "BATCH_CELLS", 500)
    assert (align(*real) == once).all()


def test_the_order_of_the_pairs_does_not_matter(real) -> None:
    order = np.random.default_rng(0).permutation(len(real[0]))
    shuffled = tuple([side[place] for place in order] for side in real)
    result = []
    for sources, targets in (real, shuffled):
        text = bitext(sources, targets)
        table, jumps = text.table(np.ones(len(text.source_word))), np.ones(11)
        for _ in range(2):
            table, jumps, _ = hmm_step(text, model1_step(text, table)[0], jumps)
        result.append((named(text, table, sources, targets), jumps))
    (table, jumps), (other, other_jumps) = result
    assert table.keys() == other.keys()
    assert np.allclose([table[key] for key in table], [other[key] for key in table], rtol=1e-9)
    assert np.allclose(jumps, other_jumps, rtol=1e-9)
    again = align(*shuffled)
    assert {(int(order[pair]), i, j) for pair, i, j in again.tolist()} == {tuple(link) for link in align(*real).tolist()}


def test_frequent_english_words_are_aligned_with_their_greek_translations(real) -> None:
    counts = collections.Counter((real[0][pair][i], real[1][pair][j]) for pair, i, j in align(*real).tolist())
    best = {left: right for (left, right), _ in reversed(counts.most_common())}
    dictionary = {
        "and": "και",
        "or": "ή",
        "is": "είναι",
        "if": "εάν",
        "from": "από",
        "with": "με",
        "when": "όταν",
        "not": "δεν",
        "file": "αρχείο",
        "document": "έγγραφο",
        "click": "πατήστε",
        "select": "επιλέξτε",
        "cell": "κελί",
    }
    assert {word: best[word] for word in dictionary} == dictionary


def test_empty_sides_have_no_links() -> None:
    assert align([], []).shape == (0, 3)
    assert align([[], ["a"]], [["b"], []]).shape == (0, 3)
    sources, targets = sides(TINY)
    spread = align([[], *sources, ["a"]], [["b"], *targets, []])
    assert (spread - [1, 0, 0] == align(sources, targets)).all()
