"""Trans-tokenization against naive implementations of the paper, and on a cipher with a known dictionary."""

import json
import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ConfigError, DataError
from data_pipeline.tokenizers.canonical import canonical_tokens
from tests.conftest import wordpiece
from trainer.transfer.methods import trans_tokenizers
from trainer.transfer.methods.trans_tokenizers import TransTokenizersConfig, Words, mixtures, relatives, shares
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.word_vectors.texts import Texts

CONFIG = TransTokenizersConfig()


@pytest.fixture(scope="module")
def placement(problem) -> Placement:
    return trans_tokenizers.place(problem, CONFIG)


def mixtures_of(rows: Placement) -> dict[int, dict[int, float]]:
    bounds = np.concatenate([[0], np.cumsum(rows.counts)])
    return {
        int(number): dict(zip(rows.indices[start:stop].tolist(), rows.weights[start:stop].tolist(), strict=True))
        for number, start, stop in zip(rows.ids, bounds[:-1], bounds[1:], strict=True)
    }


# Words


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [text[slice(*span)] for span in Words(tokenizer)(text)]


def by_characters() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="?", vocab={"?": 0, "[A]": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["[A]"])
    return tokenizer


def test_vowel_signs_and_joiners_stay_in_the_word() -> None:
    assert spelled(by_characters(), "नमस्ते दुनिया, می‌روم!") == ["नमस्ते", "दुनिया", ",", "می‌روم", "!"]


def test_text_without_blanks_is_split_into_tokens() -> None:
    assert spelled(by_characters(), "Excel文件 2024年") == ["Excel", "文", "件", "2024", "年"]
    assert spelled(by_characters(), "ไป home") == ["ไ", "ป", "home"]


def test_special_tokens_are_not_words() -> None:
    assert spelled(by_characters(), "go [A] on") == ["go", "on"]


def test_every_token_of_a_text_is_in_exactly_one_word(problem) -> None:
    for text in problem.texts.positives[:80]:
        found = [piece for pieces in Words(problem.target)(text).values() for piece in pieces]
        known = set(problem.target(text, add_special_tokens=False).input_ids) - set(problem.target.all_special_ids)
        blank = {piece for piece in known if not problem.tokens[piece].payload.strip()}
        assert set(found) - blank == known - blank
        assert spelled(problem.target, text)[0][0] == text.strip()[0]


# Counts


def test_shares_follow_from_stretching_words_to_a_common_length() -> None:
    """As in the reference: half over all token pairs, half by repeating both lists and zipping them."""
    for old in range(1, 7):
        for new in range(1, 7):
            expected = np.full((new, old), 0.5 / old)
            common = math.lcm(old, new)
            for place in range(common):
                expected[place * new // common, place * old // common] += 0.5 * new / common
            assert np.allclose(shares(old, new), expected, atol=1e-15)
    assert shares(1, 1).tolist() == [[1.0]]


def test_mixtures_follow_the_counts_of_the_paper(problem) -> None:
    a, b, c = problem.new[[3, 4, 5]].tolist()
    copied = int(np.flatnonzero((problem.shared >= 0) & [t.role is None for t in problem.tokens])[7])
    pairs = Counter(
        {((20,), (a,)): 6, ((21, 22), (a, b)): 4, ((21, 20, 22), (b, b)): 3, ((23,), (c,)): 1, ((24,), (copied,)): 9}
    )
    found = mixtures(problem, pairs, min_count=2).toarray()
    counts = {
        a: {20: 6, 21: 4 * (1 / 4 + 1 / 2), 22: 4 / 4},
        b: {21: 4 / 4 + 3 * (1 / 3 + 1 / 3), 20: 3 * (1 / 3 + 1 / 3), 22: 4 * (1 / 4 + 1 / 2) + 3 * (1 / 3 + 1 / 3)},
        c: {},
        copied: {int(problem.shared[copied]): 1},
    }
    for token, partners in counts.items():
        expected = np.zeros(problem.source_rows)
        expected[list(partners)] = list(partners.values())
        assert np.allclose(found[token], expected / max(1, expected.sum()))


def test_a_shared_token_that_is_not_copied_counts_once_with_itself(problem) -> None:
    free = replace(problem, copy_shared=False)
    copied = int(np.flatnonzero((free.shared >= 0) & [t.role is None for t in free.tokens])[7])
    other = int(free.shared[copied]) - 1
    found = mixtures(free, Counter({((other,), (copied,)): 3}), min_count=2)[[copied]].toarray()[0]
    assert found[[other, other + 1]].tolist() == [0.75, 0.25]


# Tokens without counts


def naive_relatives(problem: Problem, mapped: set[int], wanted: int) -> set[int]:
    """Step 4 as in the reference: every token against every other, without raw bytes."""
    text = {
        number: b" " * token.is_word_start + token.payload
        for number, token in enumerate(problem.tokens)
        if token is not None and token.role is None and not token.is_byte
    }
    if wanted not in text:
        return set()
    begin = {other for other in mapped & set(text) if text[other].startswith(text[wanted])}
    inside = sorted((other for other in mapped & set(text) if text[other] in text[wanted]), key=lambda other: -len(text[other]))
    return begin | {
        other for place, other in enumerate(inside) if not any(text[other] in text[longer] for longer in inside[:place])
    }


def test_relatives_equal_those_of_comparing_all_tokens(problem) -> None:
    generator = np.random.default_rng(0)
    ordinary = np.flatnonzero([token.role is None for token in problem.tokens])
    mapped = np.zeros(len(problem.tokens), bool)
    mapped[generator.choice(ordinary, len(ordinary) // 3, replace=False)] = True
    wanted = np.setdiff1d(ordinary, np.flatnonzero(mapped))
    found = relatives(problem.tokens, mapped, wanted)
    assert (found.data == 1).all()
    for row, number in enumerate(wanted):
        expected = naive_relatives(problem, set(np.flatnonzero(mapped).tolist()), int(number))
        assert set(found[[row]].indices.tolist()) == expected


def test_a_token_without_counts_mixes_its_relatives(problem, placement) -> None:
    """Computed token by token from the mixtures of the aligned and the copied tokens."""
    known = {
        n: row
        for (n, row), code in zip(mixtures_of(placement).items(), placement.provenance, strict=True)
        if code == Provenance.ALIGNED
    }
    for number in np.flatnonzero(problem.shared >= 0).tolist():
        if problem.tokens[number].role is None:
            known[number] = {int(problem.shared[number]): 1.0}
    starts = [token is not None and token.is_word_start for token in canonical_tokens(problem.source)]
    composed = placement.ids[placement.provenance == Provenance.COMPOSITION]
    assert len(composed) > 100
    rows = mixtures_of(placement)
    for number in composed[::5].tolist():
        expected: dict[int, float] = defaultdict(float)
        for other in naive_relatives(problem, set(known), number):
            for old, weight in known[other].items():
                expected[old] += weight * (2 if starts[old] else 1)
        total = sum(expected.values())
        assert rows[number].keys() == expected.keys()
        assert all(abs(rows[number][old] - weight / total) < 1e-5 for old, weight in expected.items())


# The method


def test_rows_sum_to_one_and_place_most_tokens(problem, placement) -> None:
    sums = np.add.reduceat(placement.weights, np.cumsum(placement.counts) - placement.counts)
    assert np.abs(sums - 1).max() < 1e-5
    assert len(set(placement.ids.tolist())) == len(placement.ids)
    assert set(placement.ids.tolist()) <= set(problem.new.tolist())
    assert len(placement.ids) > 0.9 * len(problem.new)
    assert (placement.provenance == Provenance.ALIGNED).sum() > 100


def test_a_cipher_is_deciphered() -> None:
    """A language that writes each word in another script: its tokens get the rows of the original words."""
    generator = np.random.default_rng(0)
    shift = {ord("a") + place: ord("α") + place for place in range(14)}
    vocabulary = sorted({"".join(generator.choice(list("abcdefghijklmn"), 5)) for _ in range(40)})
    anchors = [" ".join(generator.choice(vocabulary, 6)) for _ in range(400)]
    positives = [" ".join(word.translate(shift) for word in reversed(line.split())) for line in anchors]
    source, target = wordpiece(anchors, 400), wordpiece(positives, 400)
    problem = Problem(source, target, Texts(corpus=lambda: iter(()), anchors=anchors, positives=positives), seed=0)
    rows = mixtures_of(trans_tokenizers.place(problem, CONFIG))
    old, new = source.get_vocab(), target.get_vocab()
    for word in vocabulary:
        assert rows[new[word.translate(shift)]].get(old[word], 0.0) > 0.9


def test_permuting_the_vocabulary_permutes_the_rows(english, pairs) -> None:
    source, target = wordpiece(english), wordpiece([row["positive"] for row in pairs])
    spec = json.loads(target.backend_tokenizer.to_str())
    order = np.random.default_rng(0).permutation(np.arange(5, len(target)))
    vocabulary = spec["model"]["vocab"]
    spec["model"]["vocab"] = {piece: n if n < 5 else int(order[n - 5]) for piece, n in vocabulary.items()}
    shuffled = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    texts = Texts(corpus=lambda: iter(()), anchors=english, positives=[row["positive"] for row in pairs])
    once, again = (
        {tokenizer.convert_ids_to_tokens(n): row for n, row in mixtures_of(rows).items()}
        for tokenizer in (target, shuffled)
        for rows in [trans_tokenizers.place(Problem(source, tokenizer, texts, seed=0), CONFIG)]
    )
    assert once.keys() == again.keys()
    for piece, row in once.items():
        assert row.keys() == again[piece].keys()
        assert all(abs(weight - again[piece][old]) < 1e-6 for old, weight in row.items())


def test_missing_pairs_are_rejected(problem) -> None:
    alone = replace(problem, texts=Texts(corpus=lambda: iter(()), anchors=[], positives=[]))
    with pytest.raises(DataError, match="no pairs to align"):
        trans_tokenizers.place(alone, CONFIG)


def test_a_minimum_count_of_zero_is_rejected() -> None:
    with pytest.raises(ConfigError, match="min_count must be at least 1, got 0"):
        TransTokenizersConfig(min_count=0)
