"""No test sentence is in the training pairs, on either side, or in the training text, alone or as part of a line."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.pairs.text_pairs import Pairs, check_disjoint
from data_pipeline.shards import corpus
from data_pipeline.text.reserved import ReservedSentences
from data_pipeline.text.words import words
from tests.unit.shards.test_sample import in_this_process

SENTENCE = "Press the green button to open the file."
GREEK = "Πατήστε το πράσινο κουμπί για να ανοίξετε το αρχείο."


def pairs(*rows: tuple[str, str], first: int = 0) -> Pairs:
    return Pairs(
        ids=[str(first + at) for at in range(len(rows))],
        anchors=[a for a, _ in rows],
        positives=[p for _, p in rows],
        negatives=[[] for _ in rows],
    )


TEST = pairs((SENTENCE, GREEK), ("OK", "Εντάξει"), first=100)


@pytest.mark.parametrize(
    "row",
    [
        ("Another anchor", GREEK),
        (SENTENCE.upper(), "Κάτι άλλο"),
        ("Another anchor", f"Σημείωση: {GREEK} Τέλος."),
        ("Before you go, press the green button to open the file!", "x"),
        ("ok", "Ναι"),
    ],
)
def test_a_test_sentence_on_either_side_of_training_is_refused(row: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"a sentence of test_pairs= stands in 1 of 2 pairs, those with the ids 1\."):
        check_disjoint(pairs(("fine", "καλά"), row), TEST)


def test_similar_sentences_pass() -> None:
    check_disjoint(pairs(("Press the red button to open the file.", "OK then"), ("Look: OK", "Είναι εντάξει;")), TEST)


def test_a_test_sentence_among_the_negatives_is_refused() -> None:
    with pytest.raises(DataError, match="stands in 1 of 1"):
        check_disjoint(Pairs(ids=["1"], anchors=["a"], positives=["b"], negatives=[["c", GREEK]]), TEST)


def test_lines_with_a_test_sentence_are_cut_from_the_text(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "ray_map", in_this_process)
    path = tmp_path / "text.jsonl"
    text = f"Πρώτη γραμμή.\nΣημείωση: {GREEK}\n{SENTENCE}\nΤελευταία γραμμή."
    rows = [{"text": text}] + [{"text": f"Άλλο κείμενο με αριθμό {number}"} for number in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    result = corpus.build(
        [str(path)],
        None,
        str(tmp_path / "out"),
        fraction=0.1,
        lang="el",
        seed=3,
        forbidden=[SENTENCE, GREEK],
        actors=1,
        progress=lambda *_: None,
    )
    assert "Πρώτη γραμμή.\nΤελευταία γραμμή." in [text for _, text in corpus.read_texts(result.train)]


def test_the_test_set_is_not_sent_with_each_unit_of_text(tmp_path, monkeypatch) -> None:
    """With 10,000 test pairs and 1,000 units it would be sent 2,000 times."""
    sent: list[int] = []

    def counted(function, jobs, **settings):  # type: ignore[no-untyped-def]
        sent.extend(len(pickle.dumps(job)) for job in jobs)
        return in_this_process(function, jobs, **settings)

    monkeypatch.setattr(corpus, "ray_map", counted)
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"Text with the number {number}"}) for number in range(20)))
    corpus.build(
        [str(path)],
        None,
        str(tmp_path / "out"),
        fraction=0.2,
        lang="en",
        seed=3,
        actors=1,
        progress=lambda *_: None,
        forbidden=[f"The test sentence that has the number {number}" for number in range(10_000)],
    )
    assert max(sent) < 4096


LETTERS = st.lists(st.sampled_from(["alpha", "beta", "漢字", "gamma", "x", "δ"]), max_size=14).map(" ".join)


@given(st.lists(LETTERS, max_size=5), LETTERS)
def test_the_look_up_agrees_with_a_search_for_each_sentence(sentences: list[str], line: str) -> None:
    def inside(sentence: str) -> bool:
        small, large = words(sentence), words(line)
        if len(small) < 5 or sum(map(len, small)) < 12:
            return " ".join(sentence.split()) == " ".join(line.split())
        return any(large[at : at + len(small)] == small for at in range(len(large)))

    assert ReservedSentences.of(sentences).occurs_in(line) == any(map(inside, sentences))


def test_sentences_with_different_numbers_differ() -> None:
    reserved = ReservedSentences.of(["Figure 12 shows the results of the test."])
    assert not reserved.occurs_in("Figure 13 shows the results of the test.")
    assert reserved.occurs_in("As said, figure 12 shows the results of the test, and more.")
