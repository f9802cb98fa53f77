"""Several languages in one space, each with its own vectors and rotation."""

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError
from trainer.executor import LocalExecutor
from trainer.word_alignment import dictionary
from trainer.word_vectors import word_space
from trainer.word_vectors.ppmi import PpmiConfig
from trainer.word_vectors.texts import Texts
from trainer.word_vectors.vectors import MultilingualVectors, TableVectors
from trainer.word_vectors.word_space import SpaceConfig

LATIN = "abcdefghijklmnopqrstuvwxyz"
CIPHERS = {"el": "αβγδεζηθικλμνξοπρστυφχψωϊϋ", "ru": "абвгдежзийклмнопрстуфхцчшщ"}
SPACE = SpaceConfig(kind="ppmi", ppmi=PpmiConfig(dim=20, min_count=3))


def written(text: str, lang: str) -> str:
    return text.lower().translate(str.maketrans(LATIN, CIPHERS[lang]))


@pytest.fixture(scope="module")
def texts(english: list[str]) -> Texts:
    """English in the letters of two other scripts, so the translation of each word is known. The second language has other
    sentences with reversed words, so its space has another orientation."""
    sides = {"el": english[: len(english) // 2], "ru": [" ".join(line.split()[::-1]) for line in english]}
    parts = {
        lang: Texts(corpus=lambda: iter(()), anchors=lines, positives=[written(line, lang) for line in lines])
        for lang, lines in sides.items()
    }
    anchors = [line for part in parts.values() for line in part.anchors]
    positives = [line for part in parts.values() for line in part.positives]
    return Texts(corpus=lambda: iter(()), anchors=anchors, positives=positives, languages=parts)


def test_each_language_is_rotated_onto_the_source_separately(texts: Texts) -> None:
    """In both scripts a word is far nearer to its translation than to other words."""
    source, target = word_space.align_vectors(texts, SPACE, LocalExecutor())
    for lang in CIPHERS:
        words = [word for word in source.words[:200] if written(word, lang) in target]
        old = torch.nn.functional.normalize(source.vectors(words), dim=1)
        new = torch.nn.functional.normalize(target.vectors(written(word, lang) for word in words), dim=1)
        cosines = (new @ old.T).numpy()
        first = (cosines.argmax(axis=1) == np.arange(len(words))).mean()
        assert len(words) > 50
        assert first > 0.5, (lang, first)


def test_a_shared_word_lies_between_its_languages() -> None:
    one = TableVectors(["same", "one"], np.array([[1, 0], [2, 0]], np.float32), np.array([3.0, 1.0]))
    two = TableVectors(["same", "two"], np.array([[0, 1], [0, 2]], np.float32), np.array([1.0, 5.0]))
    joined = MultilingualVectors([one, two])
    assert joined.words == ["two", "same", "one"]
    assert joined.counts.tolist() == [5.0, 4.0, 1.0]
    assert "one" in joined
    assert "three" not in joined
    result = joined.vectors(["same", "one", "two", "three"])
    assert torch.allclose(result, torch.tensor([[0.75, 0.25], [2, 0], [0, 2], [0, 0]]))


def test_a_dictionary_for_all_languages_keeps_one_space(texts: Texts, tmp_path) -> None:
    pairs = dictionary.mine(texts.languages["el"].anchors, texts.languages["el"].positives)
    (tmp_path / "d.tsv").write_text("".join(f"{left}\t{right}\n" for left, right in pairs))
    config = SpaceConfig(kind="ppmi", ppmi=SPACE.ppmi, dictionary=str(tmp_path / "d.tsv"))
    _, target = word_space.align_vectors(texts, config, LocalExecutor())
    assert not isinstance(target, MultilingualVectors)


def test_a_language_without_enough_text_is_skipped_unless_all_are(texts: Texts) -> None:
    tiny = Texts(corpus=lambda: iter(()), anchors=["a b"], positives=["щ ц"])
    both = Texts(
        corpus=texts.corpus,
        anchors=texts.anchors,
        positives=texts.positives,
        languages={"el": texts.languages["el"], "uk": tiny},
    )
    _, target = word_space.align_vectors(both, SPACE, LocalExecutor())
    assert "щ" not in target
    none = Texts(corpus=texts.corpus, anchors=texts.anchors, positives=texts.positives, languages={"uk": tiny})
    with pytest.raises(DataError, match="uk"):
        word_space.align_vectors(none, SPACE, LocalExecutor())
