"""Models whose only tokenizer file is SentencePiece's `.model`, as DeBERTa-v3, mT5 and XLM-R have it on the hub."""

import json
from pathlib import Path

import pytest
import sentencepiece

from data_pipeline.errors import ModelError
from data_pipeline.shards.framing import frame_of
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.canonical import family_of, role_ids
from data_pipeline.tokenizers.verify import verify
from ray_jobs.inputs import model_fingerprint

MODELS = {
    "deberta-v2": (
        "spm.model",
        "unigram",
        {
            "pad_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "unk_id": 3,
            "pad_piece": "[PAD]",
            "bos_piece": "[CLS]",
            "eos_piece": "[SEP]",
            "unk_piece": "[UNK]",
            "user_defined_symbols": ["[MASK]"],
        },
    ),
    "mt5": ("spiece.model", "unigram", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "xlm-roberta": ("sentencepiece.bpe.model", "unigram", {"unk_id": 0, "bos_id": 1, "eos_id": 2}),
    "llama": ("tokenizer.model", "bpe", {"unk_id": 0, "bos_id": 1, "eos_id": 2, "byte_fallback": True}),
}


def folder_of(kind: str, texts: list[str], folder: Path) -> str:
    name, algorithm, settings = MODELS[kind]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "made"),
        model_type=algorithm,
        vocab_size=800,
        minloglevel=2,
        **settings,
    )
    (folder / "made.vocab").unlink()
    (folder / "made.model").rename(folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    if kind == "llama":  # by its configuration alone transformers takes it for a tokenizer without a blank in front
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return str(folder)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_folder_with_only_a_sentencepiece_model_loads_and_is_replaced_and_extended(kind, english, greek, tmp_path) -> None:
    source = train.load(folder_of(kind, english, tmp_path))
    assert family_of(source) == "sentencepiece"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / MODELS[kind][0]))
    text = "Click the button to open the file."
    assert source.tokenize(text) == pieces.encode(text, out_type=str)
    for config in (train.TokenizerConfig(vocab_size=900), train.TokenizerConfig(vocab_size=900, extend=True)):
        tokenizer = train.train(source, greek, config)
        assert role_ids(tokenizer).keys() == role_ids(source).keys()
        assert [finding for finding in verify(tokenizer, source, {"el": greek[:20]}) if not finding.is_ok] == []
        assert tokenizer.convert_ids_to_tokens(list(frame_of(tokenizer).suffix)) == source.convert_ids_to_tokens(
            list(frame_of(source).suffix)
        )


def test_a_model_file_that_cannot_be_converted_is_named(tmp_path) -> None:
    (tmp_path / "spm.model").write_bytes(b"no model")
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(ModelError, match="no tokenizer can be loaded"):
        train.load(str(tmp_path))


def test_a_model_file_that_transformers_reads_otherwise_is_refused(english, tmp_path) -> None:
    spec = folder_of("llama", english, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"reads tokenizer.model differently from SentencePiece"):
        train.load(spec)


def test_another_model_file_is_another_source(english, tmp_path) -> None:
    spec = folder_of("deberta-v2", english, tmp_path)
    before = model_fingerprint(spec, tokenizer_only=True)
    (tmp_path / "spm.model").write_bytes((tmp_path / "spm.model").read_bytes() + b"\n")
    assert model_fingerprint(spec, tokenizer_only=True) != before
