"""Rows of pairs: several positives, scores, tasks, prompts; what is refused, and what the shards and batches keep."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.errors import DataError
from data_pipeline.pairs import text_pairs
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.shards import text_key, tokenize_pairs
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards import format
from tests.conftest import FAMILIES

ROW = {"id": "1", "anchor": "a", "positive": "p"}


def load(tmp_path: Path, *rows: dict[str, Any]) -> Pairs:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return text_pairs.load(str(path), "", key="pairs")


def test_a_row_with_several_positives_becomes_a_pair_for_each(tmp_path: Path) -> None:
    row = {"id": "x", "anchor": "a", "positives": ["p", " ", "q"], "positive_scores": [1, 2.5, None], "negatives": ["n"],
           "negative_scores": [0.5]}  # fmt: skip
    pairs = load(tmp_path, row, ROW | {"positive_score": 3})
    assert pairs.ids == ["x", "x#2", "1"]
    assert pairs.positives == ["p", "q", "p"]
    assert pairs.negatives == [["n"], ["n"], []]
    assert pairs.positive_scores[0] == 1.0
    assert math.isnan(pairs.positive_scores[1])
    assert pairs.positive_scores[2] == 3.0
    assert pairs.negative_scores == [[0.5], [0.5], []]


def test_rows_without_text_on_a_side_are_counted(tmp_path: Path) -> None:
    pairs = load(tmp_path, ROW, ROW | {"id": "2", "positive": None}, ROW | {"id": "3", "anchor": " "})
    assert (pairs.ids, pairs.empty_rows) == (["1"], 2)


def test_a_negative_without_text_goes_with_its_score(tmp_path: Path) -> None:
    pairs = load(tmp_path, ROW | {"negatives": ["n", "", "m"], "negative_scores": [1, 2, 3]})
    assert (pairs.negatives, pairs.negative_scores) == ([["n", "m"]], [[1.0, 3.0]])


def test_columns_that_no_row_has_get_their_defaults(tmp_path: Path) -> None:
    pairs = load(tmp_path, ROW | {"negatives": ["n"]})
    assert (pairs.tasks, pairs.prompts, pairs.in_batch, pairs.langs) == ([""], [""], [True], ["und"])
    assert math.isnan(pairs.positive_scores[0])
    assert math.isnan(pairs.negative_scores[0][0])


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "anchor": "a", "positives": ["p", "q"], "positive_scores": [1.0, 2.0], "negatives": ["n"],
         "negative_scores": [None], "task": "t", "prompt": "query: ", "in_batch_negatives": False},
        {"id": "y", "anchor": "b", "positives": ["r"], "positive_scores": None, "negatives": None, "negative_scores": None,
         "task": None, "prompt": None, "in_batch_negatives": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    pairs = text_pairs.load(str(tmp_path / "pairs.parquet"), "", key="pairs")
    assert repr(pairs) == repr(load(tmp_path, *rows))
    assert pairs.queries == ["query: a", "query: a", "b"]
    assert pairs.in_batch == [False, False, True]
    assert pairs.tasks == ["t", "t", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": ["n", "m"], "negative_scores": [1]}, "row 1: it has 2 negatives and 1 negative_scores"),
        ({"negative_scores": [1]}, "it has 0 negatives and 1 negative_scores"),
        ({"positive": None, "positives": ["p"], "positive_scores": [1, 2]}, "it has 1 positives and 2 positive_scores"),
        ({"positives": ["q"]}, "both positive and positives"),
        ({"positive_scores": [1]}, "positive_scores is for a list of positives. Write positive_score"),
        ({"positive": None, "positives": ["p"], "positive_score": 1}, "positive_score is for one positive"),
        ({"positive_score": math.inf}, "a positive score is infinite"),
        ({"positive_score": "high"}, 'positive_score in line 1 is "high", not a number'),
        ({"positive_score": True}, "is true, not a number"),
        ({"negatives": ["n"], "negative_scores": ["x"]}, "not a list of numbers"),
        ({"in_batch_negatives": 0}, "is 0, not true or false"),
        ({"task": ["t"]}, "not a text"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, ROW | change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("negative_scores", [["1"]], "column negative_scores holds string, not numbers. Write it as lists of numbers"),
        ("negative_scores", [1.0], "column negative_scores holds double, not lists of numbers"),
        ("positive_score", ["1"], "column positive_score holds string, not numbers"),
        ("in_batch_negatives", [1], "column in_batch_negatives holds int64, not true or false"),
        ("negatives", [[1]], "column negatives holds int64, not text. Write it as lists of strings"),
    ],
)
def test_a_column_of_another_type_is_refused(name: str, value: list[Any], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"anchor": ["a"], "positive": ["p"], name: value}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=message):
        text_pairs.load(str(tmp_path / "pairs.parquet"), "", key="pairs")


def test_a_pair_with_nothing_to_be_distinguished_from_is_refused(tmp_path: Path) -> None:
    pairs = load(tmp_path, ROW, {"id": "2", "anchor": "b", "positive": "q", "in_batch_negatives": False})
    with pytest.raises(DataError, match="1 of 2 pairs have in_batch_negatives=false and no negatives, those with the ids 2"):
        text_pairs.check_learnable(pairs)
    text_pairs.check_learnable(load(tmp_path, ROW, ROW | {"id": "2", "in_batch_negatives": False, "negatives": ["n"]}))


def batch(pairs: Pairs, english: list[str]) -> PairBatch:
    table = tokenize_pairs(pairs, FAMILIES["wordpiece"](english), 16)
    count = len(pairs)
    return PairBatch(table.append_column("stream", pa.array([0] * count)).append_column("weight", pa.array([1.0] * count)), 0)


def test_a_batch_has_the_scores_of_its_documents_in_their_order(tmp_path: Path, english: list[str]) -> None:
    pairs = load(
        tmp_path,
        ROW | {"positive_score": 5, "negatives": ["n", "m"], "negative_scores": [None, 2]},
        {"id": "2", "anchor": "b", "positive": "q"},
        {"id": "3", "anchor": "c", "positive": "r", "negatives": ["o"], "in_batch_negatives": False},
    )
    made = batch(pairs, english)
    assert made.scores.dtype == torch.float32
    assert torch.equal(made.scores.nan_to_num(-1), torch.tensor([5.0, -1, -1, -1, 2, -1]))
    assert made.owners.tolist() == [0, 1, 2, 0, 0, 2]
    assert made.in_batch.tolist() == [True, True, False]


def test_a_shard_of_pairs_is_read_as_it_was_made(tmp_path: Path, english: list[str]) -> None:
    pairs = load(
        tmp_path,
        ROW | {"positive_score": 5, "negatives": ["n", "m"], "negative_scores": [None, 2]},
        {"id": "2", "anchor": "b", "positive": "q", "in_batch_negatives": False},
    )
    table = tokenize_pairs(pairs, FAMILIES["wordpiece"](english), 16)
    format.write(f"{tmp_path}/part.parquet", table)
    assert repr(format.read_groups(f"{tmp_path}/part.parquet").to_pydict()) == repr(table.to_pydict())


def test_a_prompt_is_encoded_and_is_no_part_of_the_key(tmp_path: Path, english: list[str]) -> None:
    """So that an anchor is recognised where the same text is a document."""
    pairs = load(tmp_path, ROW | {"anchor": english[0], "prompt": "the "})
    tokenizer = FAMILIES["wordpiece"](english)
    table = tokenize_pairs(pairs, tokenizer, 64)
    assert table["anchor"].to_pylist() == [tokenizer("the " + pairs.anchors[0]).input_ids]
    assert table["anchor_key"].to_pylist() == [text_key(pairs.anchors[0])]


def test_shards_from_before_there_were_scores_are_read(english: list[str]) -> None:
    pairs = Pairs(ids=["1"], anchors=["a"], positives=["p"], negatives=[["n"]], positive_scores=[1.0])
    table = tokenize_pairs(pairs, FAMILIES["wordpiece"](english), 16)
    table = table.drop_columns(["positive_score", "negative_scores", "in_batch"])
    old = PairBatch(table.append_column("stream", pa.array([0])).append_column("weight", pa.array([1.0])), 0)
    assert old.scores.isnan().tolist() == [True, True]
    assert old.in_batch.tolist() == [True]
