"""WECHSEL against its authors' package: the vectors of tokens, the rotation, the rows.

Rows can be compared where the peer has no choice: not where the tenth and the eleventh neighbour are equally near (two
tokens of one spelling have one vector), not for special tokens, not for tokens without a vector, which both draw at random.
"""

import numpy as np
import pytest
import scipy.linalg
import torch
import wechsel as peer
from sklearn.metrics.pairwise import cosine_similarity
from transformers import PreTrainedTokenizerFast

from data_pipeline.tokenizers.canonical import Token, canonical_tokens
from tests.conftest import FAMILIES
from tests.oracle.conftest import Pair, apart, new_matrix, old_rows
from trainer.transfer.methods import wechsel
from trainer.transfer.problem import Problem
from trainer.word_alignment import dictionary
from trainer.word_vectors import fasttext, word_space
from trainer.word_vectors.fasttext import FastTextConfig, FastTextVectors
from trainer.word_vectors.procrustes import procrustes
from trainer.word_vectors.texts import Texts
from trainer.word_vectors.vectors import TableVectors
from trainer.word_vectors.word_space import SpaceConfig

K, TEMPERATURE = 10, 0.1


@pytest.fixture(scope="module")
def space(texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> SpaceConfig:
    """Vectors of both languages and a dictionary, as files that we and the peer read.

    Vectors of a small text all point the same way, and a mixture of ten of them is their mean whatever the weights; so the
    trained ones are replaced by random ones. A token still has the mean of its subwords.
    """
    folder = tmp_path_factory.mktemp("space")
    config = FastTextConfig(dim=32, epochs=1, min_count=2, buckets=5000)
    sides = (("source", texts.anchors), ("target", [*texts.corpus(), *texts.positives]))
    for seed, (name, lines) in enumerate(sides):
        words = (" ".join(dictionary.words(line)) for line in lines)
        model = fasttext.train(words, config, name).model
        random = np.random.default_rng(seed).normal(size=model.get_input_matrix().shape)
        model.set_matrices(random.astype(np.float32), model.get_output_matrix())
        model.save_model(str(folder / f"{name}.bin"))
    mined = dictionary.mine(texts.anchors, texts.positives)
    (folder / "pairs.tsv").write_text("".join(f"{left}\t{right}\n" for left, right in mined))
    return SpaceConfig(
        source_vectors=str(folder / "source.bin"),
        target_vectors=str(folder / "target.bin"),
        dictionary=str(folder / "pairs.tsv"),
    )


def load_vectors(path: str) -> FastTextVectors:
    return FastTextVectors(peer.fasttext.load_model(path))


def table(tokenizer: PreTrainedTokenizerFast, vectors: object) -> np.ndarray:
    """Our vector of every token [V, A], zeros where it has none."""
    ids, rows = word_space.token_vectors(tokenizer, canonical_tokens(tokenizer), np.arange(len(tokenizer)), vectors)
    full = np.zeros((len(tokenizer), rows.shape[1]))
    full[ids] = rows.numpy()
    return full


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_method_as_a_whole_gives_wechsels_rows(
    family: str, vocabularies: dict[str, Pair], texts: Texts, space: SpaceConfig
) -> None:
    source, target = vocabularies[family]
    problem = Problem(source, target, texts, seed=3, copy_shared=False)
    config = wechsel.WechselConfig(neighbours=K, temperature=TEMPERATURE, space=space)
    old = old_rows(problem)
    rows = wechsel.place(problem, config)
    turned, straight = word_space.align_vectors(texts, space, problem.executor)
    old_vectors, new_vectors = table(source, turned), table(target, straight)
    expected, _, _ = peer.create_target_embeddings(
        old_vectors, new_vectors, source, target, old.double().numpy(), K, TEMPERATURE, verbose=False
    )
    best = np.sort(cosine_similarity(new_vectors, old_vectors))[:, ::-1]
    clear = np.flatnonzero(best[:, K - 1] - best[:, K] > 1e-6)
    compared = np.intersect1d(rows.ids, clear)
    assert len(compared) > 0.7 * len(rows.ids) > 500
    assert apart(new_matrix(problem, rows, old)[compared], expected[compared]) < 1e-5


# Vectors of tokens

REASONS = {
    "role": "a special token is not text; the peer looks its name up",
    "half": "part of a character is not text; the peer looks U+FFFD up",
    "##": "decoded alone, a WordPiece continuation keeps its ##, and the peer looks that up",
    "case": "our word vectors are of lower-case words, so tokens are looked up in lower case; the peer takes them as they are",
    "byte": "<0x41> is a byte, not text; the peer looks the decoded character up",
}


def reason(token: Token, decoded: str) -> str:
    if token.role is not None or token.is_byte:
        return "role" if token.role is not None else "byte"
    if token.text() is None:
        return "half"
    if decoded.startswith("##"):
        return "##"
    return "case" if decoded != decoded.lower() else ""


EXPECTED = {
    "wordpiece": {"role", "##"},
    "byte_level": {"role", "half", "case"},
    "unigram": {"role", "case"},
    "byte_fallback": {"role", "byte", "case"},
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_token_has_wechsels_vector_or_a_reason(family: str, vocabularies: dict[str, Pair], space: SpaceConfig) -> None:
    _, target = vocabularies[family]
    vectors = load_vectors(space.target_vectors)
    theirs, _ = peer.get_subword_embeddings_in_word_embedding_space(target, peer.WordEmbedding(vectors.model), verbose=False)
    ours = table(target, vectors)
    differ = np.flatnonzero(np.abs(ours - theirs).max(axis=1) > 1e-6)
    tokens = canonical_tokens(target)
    reasons = {target.convert_ids_to_tokens(int(n)): reason(tokens[n], target.decode([int(n)]).strip()) for n in differ}
    assert [text for text, why in reasons.items() if not why] == []
    assert set(reasons.values()) == EXPECTED[family]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_subwords_tokens_are_the_mean_of_words_by_frequency(
    family: str, vocabularies: dict[str, Pair], space: SpaceConfig
) -> None:
    """The peer counts fastText's mark for a line's end, `</s>`, as a word; its pieces are left out here."""
    _, target = vocabularies[family]
    vectors = load_vectors(space.target_vectors)
    theirs, _ = peer.get_subword_embeddings_in_word_embedding_space(
        target, peer.WordEmbedding(vectors.model), use_subword_info=False, verbose=False
    )
    ids, ours = word_space.token_vectors_by_words(target, vectors, vectors.counts, ("{}", " {}"))
    ends = {piece for text in ("</s>", " </s>") for piece in target.encode(text, add_special_tokens=False)}
    is_compared = ~np.isin(ids, list(ends))
    assert is_compared.sum() > 800
    assert apart(ours.numpy()[is_compared], theirs[ids][is_compared]) < 1e-5
    rest = np.setdiff1d(np.arange(len(target)), [*ids, *ends])
    assert not theirs[rest].any()


# The rotation


class Words(TableVectors):
    """A table with the methods that the peer calls."""

    def get_word_id(self, word: str) -> int:
        return self.words.index(word) if word in self else -1

    def get_word_vector(self, word: str) -> np.ndarray:
        return self.vectors([word])[0].double().numpy()


def random_words(words: list[str], seed: int) -> Words:
    rows = np.random.default_rng(seed).normal(size=(len(words), 12)).astype(np.float32)
    return Words(words, rows, np.ones(len(words)))


def rotations(pairs: list[tuple[str, str]], source: Words, target: Words) -> tuple[np.ndarray, np.ndarray]:
    theirs = peer.WECHSEL._compute_align_matrix_from_dictionary(None, source, target, pairs)
    return word_space.rotation(pairs, source, target, "").numpy(), theirs


def test_the_rotation_is_wechsels_for_vectors_of_one_case() -> None:
    left, right = [f"left{letter}" for letter in "abcdefghijklmnopq"], [f"right{letter}" for letter in "abcdefghijklmnopq"]
    ours, theirs = rotations(list(zip(left, right, strict=True)), random_words(left, 1), random_words(right, 2))
    assert apart(ours, theirs) < 1e-8


def test_for_vectors_of_several_cases_wechsel_counts_equal_spellings_again() -> None:
    """A word that is lower case already is two of the peer's three spellings, so that the pair counts four times and its
    title case once; we count each pair of spellings once. With that weighting the rotations agree."""
    left, right = [f"left{letter}" for letter in "abcdefghijklmnopq"], [f"right{letter}" for letter in "abcdefghijklmnopq"]
    source = random_words([*left, *map(str.title, left)], 1)
    target = random_words([*right, *map(str.title, right)], 2)
    pairs = list(zip(left, right, strict=True))
    ours, theirs = rotations(pairs, source, target)
    assert apart(ours, theirs) > 1e-3
    spelling_pairs = [(s, t) for one, other in pairs for s in spellings(one) for t in spellings(other)]
    again = procrustes(source.vectors(s for s, _ in spelling_pairs), target.vectors(t for _, t in spelling_pairs))
    assert apart(again, theirs) < 1e-8


@pytest.mark.parametrize("rows", [12, 13, 500])
def test_procrustes_is_scipys(rows: int) -> None:
    """Of vectors of any length, down to as many rows as make the answer unique."""
    generator = np.random.default_rng(rows)
    x, y = (generator.normal(size=(rows, 12)) * generator.lognormal(size=(rows, 1)) for _ in range(2))
    expected, _ = scipy.linalg.orthogonal_procrustes(x, y)
    assert apart(procrustes(torch.from_numpy(x), torch.from_numpy(y)), expected) < 1e-8


def spellings(word: str) -> tuple[str, str, str]:
    return word, word.lower(), word.title()
