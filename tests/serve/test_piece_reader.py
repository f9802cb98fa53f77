"""Pieces by the embedder's tokenizer, and by that of the model it was made from."""

import logging

import pytest

from cluster.serve.piece_reader import PieceReader
from data_pipeline.pairs.text_form import TextForm
from ray_jobs.config import load as configs
from ray_jobs.serve import source_tokenizer
from tests.conftest import FAMILIES

TEXT = "Click the button"


@pytest.fixture(scope="module")
def tokenizer(english):
    return FAMILIES["wordpiece"](english)


def test_the_pieces_of_the_source_stand_beside(tokenizer, english, tmp_path) -> None:
    FAMILIES["byte_level"](english, 400).save_pretrained(tmp_path)
    own, source = PieceReader(tokenizer, str(tmp_path)).read(TEXT, TextForm(prompt="search: "), 6)
    assert len(own.pieces) == 6
    assert own.pieces[:1] == ("[CLS]",)
    assert "".join(own.pieces[1:-1]).startswith("sea")
    assert source is not None
    assert "".join(source.pieces[1:-1]) == TEXT


def test_without_a_source_there_are_none(tokenizer) -> None:
    own, source = PieceReader(tokenizer, "").read(TEXT, TextForm(), 24)
    assert "".join(own.pieces[1:-1]) == TEXT
    assert source is None


def test_a_source_with_the_same_tokenizer_is_left_out(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert PieceReader(loaded, str(tmp_path)).read(TEXT, TextForm(), 24)[1] is None


@pytest.mark.parametrize("source", ["no/such/folder", "file:///nowhere/at/all", "org/not-on-this-machine", "."])
def test_a_source_that_cannot_be_loaded_is_one_line_in_the_log(tokenizer, source, caplog) -> None:
    reader = PieceReader(tokenizer, source)
    with caplog.at_level(logging.WARNING, "scion.serve"):
        assert [reader.read(TEXT, TextForm(), 24)[1] for _ in range(3)] == [None] * 3
    [record] = caplog.records
    assert "the page does without the source's tokenizer" in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "models/source"),
        ({"embed": {"model": "models/other"}}, "models/other"),
        ({"serve": {"source_tokenizer": "models/named"}}, "models/named"),
        ({"serve": {"model": "any/embedder"}}, ""),
        ({"serve": {"model": "any/embedder", "source_tokenizer": "models/named"}}, "models/named"),
    ],
)
def test_the_source_is_the_configurations_where_its_own_embedder_is_served(settings, expected) -> None:
    config = configs.load(
        None, [], "serve", values={"text": "a.txt", "source_model": "models/source", "output": "runs/a"} | settings
    )
    assert source_tokenizer(config) == expected
