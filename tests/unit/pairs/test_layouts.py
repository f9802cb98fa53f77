"""Files of sentence-transformers and FlagEmbedding, as their documentation shows them, are read without conversion."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError
from data_pipeline.pairs import text_pairs
from data_pipeline.pairs.text_pairs import Pairs


def load(path: Path, *rows: dict[str, Any]) -> Pairs:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return text_pairs.load(str(path), "", key="pairs")


FLAG = {
    "query": "Five women walk along a beach wearing flip-flops.",
    "pos": ["Some women with flip-flops on, are walking along the beach"],
    "neg": ["The 4 women are sitting on the beach.", "There was a reform in 1996."],
    "pos_scores": [0.9871],
    "neg_scores": [0.2381, 0.0123],
    "prompt": "Represent this sentence for searching relevant passages: ",
    "type": "normal",
}
"""A line of FlagEmbedding's examples/finetune/embedder/README.md, with all of its optional columns."""


def test_a_line_of_flag_embedding_is_a_pair_with_its_scores_and_prompt(tmp_path: Path) -> None:
    pairs = load(tmp_path / "train.jsonl", FLAG, {"query": "two", "pos": ["one", "other"], "neg": []})
    assert len(pairs) == 3
    assert (pairs.anchors[0], pairs.positives[0], pairs.negatives[0]) == (FLAG["query"], FLAG["pos"][0], FLAG["neg"])
    assert (pairs.positive_scores[0], pairs.negative_scores[0]) == (0.9871, [0.2381, 0.0123])
    assert pairs.queries[0] == FLAG["prompt"] + FLAG["query"]
    assert pairs.tasks == ["normal", "", ""]
    assert (pairs.positives[1:], pairs.negatives[1:]) == (["one", "other"], [[], []])
    assert math.isnan(pairs.positive_scores[1])
    assert pairs.in_batch == [True] * 3


@pytest.mark.parametrize("place", ["classification-no_in_batch_neg/train.jsonl", "AmazonReviews_no_in_batch_neg.jsonl"])
def test_files_that_flag_embedding_marks_share_no_candidates(place: str, tmp_path: Path) -> None:
    assert load(tmp_path / place, FLAG).in_batch == [False]


def test_a_dataset_of_triplets_and_of_tuples_is_read(tmp_path: Path) -> None:
    """Written as sentence-transformers users do: a `datasets.Dataset` with the columns anchor, positive, negative."""
    triplets = datasets.Dataset.from_dict({
        "anchor": ["It's nice weather outside today.", "He drove to work."],
        "positive": ["It's so sunny.", "He took the car to the office."],
        "negative": ["It's quite rainy, sadly.", "She walked to the store."],
    })  # fmt: skip
    triplets.to_json(tmp_path / "triplets.jsonl")
    triplets.to_parquet(tmp_path / "triplets.parquet")
    for name in ("triplets.jsonl", "triplets.parquet"):
        pairs = text_pairs.load(str(tmp_path / name), "", key="pairs")
        assert pairs.positives == ["It's so sunny.", "He took the car to the office."]
        assert pairs.negatives == [["It's quite rainy, sadly."], ["She walked to the store."]]
    row = {"anchor": "a", "positive": "p"} | {f"negative_{n}": f"n{n}" for n in range(12, 0, -1)}
    assert load(tmp_path / "tuples.jsonl", row).negatives == [[f"n{n}" for n in range(1, 13)]]


def test_the_scores_of_mine_hard_negatives_are_a_teacher_s(tmp_path: Path) -> None:
    row = {"anchor": "a", "positive": "p", "negative_1": "n", "negative_2": "m", "scores": [0.9, 0.5, 0.25]}
    pairs = load(tmp_path / "scored.jsonl", row, row | {"negative_2": None})
    assert pairs.positive_scores == [0.9, 0.9]
    assert pairs.negative_scores == [[0.5, 0.25], [0.5]]
    with pytest.raises(DataError, match="a row has 2 scores and 3 texts beside the anchor"):
        load(tmp_path / "short.jsonl", row | {"scores": [1, 2]})


def test_columns_of_no_layout_are_ignored(tmp_path: Path) -> None:
    pairs = load(tmp_path / "a.jsonl", {"anchor": "a", "positive": "p", "pos": "NOUN", "url": ["x"], "scores": "?"})
    assert (pairs.anchors, pairs.positives, pairs.negatives) == (["a"], ["p"], [[]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"anchor": "a", "positive": "p", "query": "a", "pos": ["p"]}, "anchor and query, positive and pos: two layouts"),
        ({"anchor": "a", "positive": "p", "negative": "n", "negatives": ["m"]}, "negative and negatives: two layouts"),
        ({"anchor": "a", "positives": ["p"], "negative_1": "n"}, "negative_1 and positives: two layouts"),
        ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "pairs of any similarity. Give those as evaluate.sts="),
        (
            {"question": "a", "answer": "b"},
            "anchor, positive is missing; the file has question, answer. Pairs are anchor with positive",
        ),
        (
            {"query": "a", "positive": "b"},
            "column anchor is missing; the file has query, positive.*FlagEmbedding, query, pos and neg",
        ),
        ({"query": "a", "pos": "b"}, 'pos in line 1 is "b", not a list of texts'),
    ],
)
def test_an_ambiguous_or_unknown_file_is_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.jsonl", row)


def test_a_parquet_column_of_another_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["p"], "negative_1": [1]}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="column negative_1 holds int64, not text"):
        text_pairs.load(str(tmp_path / "pairs.parquet"), "", key="pairs")
