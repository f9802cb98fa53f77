"""A teacher's vectors in the rows, and in batches of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.pairs import shards
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards import format

PAIRS = Pairs(
    ids=["a", "b", "c"],
    anchors=["one", "two", "three"],
    positives=["eins", "zwei", "one"],
    negatives=[["vier"], [], ["eins", "fünf"]],
    prompts=["ask: ", "", ""],
)
IDS = {text: [5 + number] for number, text in enumerate(["ask: one", "one", "two", "three", "eins", "zwei", "vier", "fünf"])}


class Teacher:
    """Encodes a text as its length and the number of its vowels, and notes what it encodes."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}

    def __call__(self, texts: list[str], side: str) -> np.ndarray:
        self.calls[side] = texts
        return np.array([vector(text) for text in texts], np.float32)


def vector(text: str) -> list[float]:
    return [len(text), sum(letter in "aeiouü" for letter in text)]


def rows() -> pa.Table:
    kind = pa.list_(pa.int32())
    texts = {"anchor": PAIRS.queries, "positive": PAIRS.positives}
    ids = {side: pa.array([IDS[text] for text in texts[side]], kind) for side in texts}
    negatives = pa.array([[IDS[text] for text in some] for some in PAIRS.negatives], pa.list_(kind))
    keys = pa.array([[0] * len(some) for some in PAIRS.negatives], pa.list_(pa.int64()))
    numbers = {"anchor_key": [1, 2, 3], "positive_key": [4, 5, 6], "stream": [0] * 3, "weight": [1.0] * 3}
    return pa.table(ids | {"negatives": negatives, "negative_keys": keys} | numbers)


def test_each_text_of_a_batch_has_the_vector_of_the_teacher() -> None:
    teacher = Teacher()
    table = shards.with_vectors(rows(), PAIRS, teacher)
    assert teacher.calls == {"query": PAIRS.queries, "document": ["eins", "zwei", "one", "vier", "fünf"]}
    batch = PairBatch(table, pad=0)
    order = [*PAIRS.queries, *PAIRS.positives, "vier", "eins", "fünf"]
    assert batch.teacher.tolist() == [vector(text) for text in order]
    shorter = PairBatch(table.slice(1, 2), pad=0)
    assert shorter.teacher.tolist() == [vector(text) for text in ["two", "three", "zwei", "one", "eins", "fünf"]]


def test_rows_without_a_teacher_have_vectors_of_no_width() -> None:
    assert PairBatch(rows(), pad=0).teacher.shape == (9, 0)


def test_the_vectors_survive_a_file(tmp_path) -> None:
    table = shards.with_vectors(rows(), PAIRS, Teacher())
    path = str(tmp_path / "part.parquet")
    format.write(path, table)
    assert PairBatch(pq.read_table(path), pad=0).teacher.tolist() == PairBatch(table, pad=0).teacher.tolist()
