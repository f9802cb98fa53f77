"""Encoding words one by one under SentencePiece's normaliser, as in XLM-R and T5; its table comes from the peer."""

import io

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from tokenizers import Tokenizer, normalizers

from data_pipeline.tokenizers.encode import cut_rule, encode
from tests.conftest import unigram, wordpiece
from tests.unit.tokenizers.test_encode import TEXTS

sentencepiece = pytest.importorskip("sentencepiece")
model_pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")


@pytest.fixture(scope="module", params=[unigram, wordpiece])
def tokenizer(request, english) -> Tokenizer:
    model_file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english),
        model_writer=model_file,
        vocab_size=300,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    table = model_pb2.ModelProto.FromString(model_file.getvalue()).normalizer_spec.precompiled_charsmap
    backend = request.param(english).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Precompiled(table)])
    return backend


@settings(max_examples=1000)
@example(["\u0d4e\xa0\u0301a"])  # a letter that Unicode prepends to the next character, and a space that is no blank
@given(TEXTS)
def test_ids_are_those_of_the_library(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert cut_rule(tokenizer) != "nowhere"
    ours = encode(tokenizer, pa.array(texts, pa.string()))
    theirs = [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert ours.sizes.tolist() == [len(ids) for ids in theirs]
    assert ours.flat.tolist() == [token for ids in theirs for token in ids]
