"""A new tokenizer of a source model's own family and special-token layout, the same bytes on every run.

The `tokenizers` trainers iterate hash maps, so plain training gives other ids (WordPiece) or another order (Unigram) each
time. Two repairs: continuing characters are announced before training, in sorted order, and dropped from the added
tokens afterwards (so are byte-fallback tokens, which training would lose); Unigram pieces are sorted by score and text
after rounding away the noise of summation order.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_pipeline.errors import ConfigError, DataError, ModelError, reason
from data_pipeline.tokenizers.extend import extended


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """What the new vocabulary shall be."""

    vocab_size: int = 12032
    """Pieces, special tokens included. A multiple of 128 leaves no padding rows in the model."""

    extend: bool = False
    """Whether the old vocabulary stays and what it lacks is added, instead of being replaced."""

    strip_accents: bool = False
    """Whether a WordPiece tokenizer drops accents and vowel signs. BERT's uncased models do, which is harmless in
    English and destroys Japanese, Hindi or Turkish; the new tokenizer keeps them unless told otherwise."""

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ConfigError(f"tokenizer.vocab_size must be at least 300, got {self.vocab_size}.")


def load(folder: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a local model folder, with truncation and padding switched off.

    Raises:
        ModelError: the folder has no tokenizer, or one without a `tokenizer.json`.
    """
    where = f"model {folder}"
    if not any(name.startswith(("tokenizer", "vocab", "spiece")) for name in os.listdir(folder)):
        raise ModelError("the folder has no tokenizer.", where, "Save it there with tokenizer.save_pretrained(folder).")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own, all for a bad folder
        raise ModelError(f"no tokenizer can be loaded ({reason(error)})", where, "Name a model folder.") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("the tokenizer has no tokenizer.json.", where, "Convert it to a fast tokenizer first.")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return tokenizer


def train(source: PreTrainedTokenizerFast, texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """Trains on `texts` with the model type, normalisation, pre-tokenization and special tokens of `source`; or adds what
    that yields to `source` (`config.extend`).

    Raises:
        DataError: the text is too little for the vocabulary.
    """
    corpus = [line for text in texts for line in text.split("\n")]
    # An extended vocabulary goes on splitting old text as before, so that nothing about the old normaliser changes.
    before = source if config.extend else _with_accents(source, config.strip_accents)
    kind = type(before.backend_tokenizer.model).__name__
    announced = _continuing_characters(before, corpus) if kind == "WordPiece" else _byte_tokens(before)
    trained = _split_at_blanks(before).train_new_from_iterator(
        (corpus[start : start + 1000] for start in range(0, len(corpus), 1000)),
        config.vocab_size,
        new_special_tokens=[AddedToken(piece, special=True, normalized=False) for piece in announced],
        show_progress=False,
    )
    result = json.loads(trained.backend_tokenizer.to_str())
    spec = json.loads(before.backend_tokenizer.to_str()) | {
        name: result[name] for name in ("model", "added_tokens", "post_processor")
    }
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in set(announced)]
    if kind == "Unigram":
        _sort_pieces(spec)
    if trained.vocab_size < 0.5 * config.vocab_size:
        raise DataError(
            f"the text yields {trained.vocab_size:,} tokens, fewer than half of vocab_size={config.vocab_size:,}.",
            "shard.tokenizer",
            "Give more text or a smaller shard.tokenizer.vocab_size.",
        )
    replaced = _rebuilt(before, spec)
    return _rebuilt(source, extended(source, replaced)) if config.extend else replaced


def _with_accents(source: PreTrainedTokenizerFast, strip: bool) -> PreTrainedTokenizerFast:
    """`source` with the accent rule of the new tokenizer; only BERT's normaliser has one that drops information."""
    spec = json.loads(source.backend_tokenizer.to_str())
    normalizer = spec.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return source
    normalizer["strip_accents"] = strip
    return _rebuilt(source, spec, strip_accents=strip)


def _byte_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The tokens for single bytes of a SentencePiece tokenizer that falls back on them; training would drop them."""
    if not getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False):
        return []
    return [f"<0x{byte:02X}>" for byte in range(256)]


def _split_at_blanks(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Llama-2's kind of tokenizer has no pre-tokenizer: its training would merge across words and take for ever. It is
    trained on words and applied to lines, which gives the same pieces."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if spec["model"]["type"] != "BPE" or spec["pre_tokenizer"] is not None:
        return tokenizer
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return _rebuilt(tokenizer, spec)


def _continuing_characters(tokenizer: PreTrainedTokenizerFast, corpus: list[str]) -> list[str]:
    """The pieces of one character that continue a word somewhere in the corpus, sorted."""
    backend = tokenizer.backend_tokenizer
    seen: set[str] = set()
    for line in corpus:
        normal = backend.normalizer.normalize_str(line) if backend.normalizer else line
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            seen.update(word[1:])
    return [backend.model.continuing_subword_prefix + char for char in sorted(seen)]


def _sort_pieces(spec: dict[str, Any]) -> None:
    added = {token["content"] for token in spec["added_tokens"]}
    scores = {piece: round(score, 6) for piece, score in spec["model"]["vocab"]}
    # Characters that training dropped come back below all pieces, each a little lower than the one before, in the order
    # of a hash map: the same scores are dealt out again in the order of the characters.
    floor = min((score for piece, score in scores.items() if len(piece) > 1 and piece not in added), default=0.0)
    rare = sorted(piece for piece, score in scores.items() if len(piece) == 1 and score <= floor)
    scores |= dict(zip(rare, sorted((scores[piece] for piece in rare), reverse=True), strict=True))
    head = [[piece, score] for piece, score in scores.items() if piece in added]
    rest = [[piece, score] for piece, score in scores.items() if piece not in added]
    spec["model"]["vocab"] = head + sorted(rest, key=lambda piece: (-piece[1], piece[0]))


def _rebuilt(like: PreTrainedTokenizerFast, spec: dict[str, Any], **settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of the class and settings of `like` around the backend that `spec` describes.

    Through a folder, because that is the only way that every tokenizer class of transformers supports.
    """
    with tempfile.TemporaryDirectory(prefix="scion-tokenizer-") as folder:
        like.save_pretrained(folder)
        Tokenizer.from_str(json.dumps(spec)).save(os.path.join(folder, "tokenizer.json"))
        for stale in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):
            if os.path.exists(os.path.join(folder, stale)):
                os.remove(os.path.join(folder, stale))
        path = os.path.join(folder, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        for machine_specific in ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy"):
            content.pop(machine_specific, None)
        content.update(settings)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, sort_keys=True, ensure_ascii=False)
        return load(folder)
