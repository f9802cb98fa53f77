"""A new tokenizer of a source model's own family and special-token layout, the same bytes on every run.

The `tokenizers` trainers iterate hash maps, so plain training gives other ids (WordPiece) or another order (Unigram) each
time. Two repairs: continuing characters are announced before training, in sorted order; Unigram pieces are sorted by score
and text after rounding away the noise of summation order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from data_pipeline.errors import ConfigError, DataError, ModelError, reason
from data_pipeline.tokenizers import alphabet, rules
from data_pipeline.tokenizers.canonical import role_ids
from data_pipeline.tokenizers.extend import extend_vocabulary
from data_pipeline.tokenizers.folder import load, rebuild
from data_pipeline.tokenizers.template import renumber, template_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TokenizerConfig", "load", "train"]
_COMPARED = 200
"""Lines on which a tokenizer that was saved and loaded is compared with what was saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """What the new vocabulary shall be."""

    vocab_size: int = 32_000
    """Pieces, special tokens included, and never more. A multiple of 128 leaves no padding rows in the model. With `extend`
    the size of the vocabulary from which the old one takes what it lacks."""

    extend: bool = False
    """Whether the old vocabulary stays and what it lacks is added, instead of being replaced."""

    strip_accents: bool = False
    """Whether a tokenizer drops accents and vowel signs where the source's does. Uncased models of BERT and ALBERT do, which
    is harmless in English and destroys Japanese, Hindi or Greek."""

    character_coverage: float = 0.9995
    """Share of the text's characters that have pieces of their own, the most frequent ones first, as in SentencePiece. The
    others are unknown, or spelt in bytes where the family can. Byte-level tokenizers have all 256 bytes instead."""

    alpha: float = 0.3
    """Languages are drawn in proportion to bytes ** alpha for the training of the tokenizer: 1 is as they come, 0 is
    equally much of each."""

    sample_bytes: int = 200_000_000
    """UTF-8 bytes of text that the tokenizer is trained on at most, pairs included; its training takes four times that in
    memory."""

    def __post_init__(self) -> None:
        if self.vocab_size < 300:
            raise ConfigError(f"vocab_size must be at least 300, got {self.vocab_size}.")
        if not 0.0 < self.character_coverage <= 1.0:
            raise ConfigError(f"character_coverage must lie between 0 and 1, got {self.character_coverage}.")
        if not 0.0 <= self.alpha <= 1.0 or self.sample_bytes < 1:
            raise ConfigError("alpha must lie between 0 and 1 and sample_bytes above 0.")


def train(
    source: PreTrainedTokenizerFast,
    texts: Iterable[str],
    config: TokenizerConfig,
    warn: Callable[[str], None] = lambda line: None,
) -> PreTrainedTokenizerFast:
    """Trains on `texts` with the model type, normalisation, pre-tokenization and special tokens of `source`; or adds what
    that yields to `source` (`config.extend`).

    Args:
        warn: receives a line on what the source's rules cost in this text, where they cannot be changed.

    Raises:
        ConfigError: the vocabulary cannot hold the characters of the text.
        DataError: the text is too little for the vocabulary.
        ModelError: transformers cannot load such a tokenizer.
    """
    corpus = [line for text in texts for line in text.split("\n") if line]
    old = json.loads(source.backend_tokenizer.to_str())
    # An extended vocabulary goes on splitting old text as before, so that nothing about the old rules changes.
    base = old if config.extend else _rules(source, old, corpus, config)
    trained = _trained(source, base, corpus, config)
    if config.extend:
        result = rebuild(source, extend_vocabulary(old, trained, _ids(source)), corpus[:_COMPARED])
    else:
        result = rebuild(source, trained, corpus[:_COMPARED], **_settings(old, config))
    if (found := rules.word_cuts(result.backend_tokenizer.pre_tokenizer, corpus)).share > rules.MAX_DAMAGED_SHARE:
        warn(_cost(source, result, found, corpus, config))
    if config.extend and (lost := rules.dropped_accents_warning(source.backend_tokenizer.normalizer, corpus)):
        warn(f"{lost}; an extended vocabulary keeps the old rules, a new one (extend=false) does not")
    return result


def _rules(source: PreTrainedTokenizerFast, old: dict[str, Any], corpus: list[str], config: TokenizerConfig) -> dict[str, Any]:
    """The source's rules, but for those that drop accents, and those that cut the text's words at their vowel signs if
    transformers loads the tokenizer without them."""
    spec = old if config.strip_accents else old | {"normalizer": rules.with_accents(old["normalizer"])}
    if rules.word_cuts(source.backend_tokenizer.pre_tokenizer, corpus).share <= rules.MAX_DAMAGED_SHARE:
        return spec
    changed = spec | {"pre_tokenizer": rules.with_marks(spec["pre_tokenizer"])}
    marked = sorted(corpus, key=lambda line: -len(rules.MARK.findall(line)))
    try:
        rebuild(source, _at_their_ids(changed, source), marked[:_COMPARED], **_settings(old, config))
    except ModelError:
        return spec
    return changed


def _settings(old: dict[str, Any], config: TokenizerConfig) -> dict[str, Any]:
    """Keys of `tokenizer_config.json` that repeat what the normaliser does, for the classes that build it from them."""
    bert = any(part["type"] == "BertNormalizer" for part in rules.rule_parts(old["normalizer"], "normalizers"))
    return {"strip_accents": config.strip_accents} if bert or config.strip_accents else {}


def _cost(
    source: PreTrainedTokenizerFast,
    made: PreTrainedTokenizerFast,
    found: rules.WordCuts,
    corpus: list[str],
    config: TokenizerConfig,
) -> str:
    """What cutting words at their marks costs, beside a tokenizer of the same size that does not."""
    old = json.loads(source.backend_tokenizer.to_str())
    better = _trained(source, old | {"pre_tokenizer": rules.with_marks(old["pre_tokenizer"])}, corpus, config)
    now, then = (rules.fertility(one, corpus) for one in (made.backend_tokenizer, Tokenizer.from_str(json.dumps(better))))
    reason = (
        "an extended vocabulary keeps the old rules"
        if config.extend
        else "transformers keeps the rules of this class as they are"
    )
    return (
        f"the tokenizer cuts {found.share:.1%} of the words at vowel signs, into {found.pieces:.1f} pieces or more "
        f"({found.example}): {now:.2f} pieces a word, {then:.2f} without these cuts; {reason}"
    )


def _trained(
    source: PreTrainedTokenizerFast, base: dict[str, Any], corpus: list[str], config: TokenizerConfig
) -> dict[str, Any]:
    """The `tokenizer.json` content of a new vocabulary under the rules of `base`."""
    backend = Tokenizer.from_str(json.dumps(_emptied(base)))
    lines = _normalised(base, corpus)
    reserved = _reserved(source, base)
    byte_level = any(part["type"] == "ByteLevel" for part in rules.rule_parts(base["pre_tokenizer"], "pretokenizers"))
    kept: set[str] = set()
    if not byte_level:
        counts = alphabet.count_characters(lines)
        kept = alphabet.covering_characters(counts, config.character_coverage)
        lines = list(alphabet.blank_out(lines, set(counts) - kept))
    kind = base["model"]["type"]
    continuing = _continuing_characters(backend, lines) if kind == "WordPiece" else []
    characters = 256 if byte_level else len(kept) + len(continuing) + (kind != "WordPiece")
    # Unigram with room for no piece beyond the characters keeps all that it started from.
    _check_size(len(reserved) + characters + (kind == "Unigram"), characters, config)
    special = [AddedToken(text, special=True, normalized=False) for text in [*reserved, *continuing]]
    try:
        backend.train_from_iterator(_batches(lines), _trainer(base["model"], special, config.vocab_size, byte_level))
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise DataError(f"no vocabulary can be trained ({reason(error)}).", "shard.tokenizer", "Give more text.") from error
    model = base["model"] | {
        name: value for name, value in json.loads(backend.to_str())["model"].items() if name in ("vocab", "merges")
    }
    if kind == "Unigram":
        model["vocab"] = _sorted(model["vocab"], set(reserved))
        unknown = base["model"]["vocab"][base["model"]["unk_id"]][0] if base["model"]["unk_id"] is not None else None
        model["unk_id"] = next((place for place, (text, _) in enumerate(model["vocab"]) if text == unknown), None)
        ids = {text: place for place, (text, _) in enumerate(model["vocab"])}
    else:
        ids = model["vocab"]
    assert len(ids) <= config.vocab_size, f"{len(ids)} tokens, {config.vocab_size} asked for"
    if len(ids) < 0.5 * config.vocab_size:
        raise DataError(
            f"the text yields {len(ids):,} tokens, fewer than half of vocab_size={config.vocab_size:,}.",
            "shard.tokenizer",
            "Give more text or a smaller shard.tokenizer.vocab_size.",
        )
    added = sorted(({**token, "id": ids[token["content"]]} for token in base["added_tokens"]), key=lambda token: token["id"])
    return base | {"model": model, "added_tokens": added, "post_processor": renumber(base["post_processor"], ids)}


def _check_size(needed: int, characters: int, config: TokenizerConfig) -> None:
    if needed > config.vocab_size:
        raise ConfigError(
            f"vocab_size={config.vocab_size:,} cannot hold the {needed - characters:,} special tokens and "
            f"{characters:,} pieces of one character that the text needs.",
            "shard.tokenizer",
            f"Set vocab_size to {needed:,} or more, or a smaller character_coverage than {config.character_coverage}.",
        )


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Every token and its id."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return tokenizer.get_vocab() | {token.content: number for number, token in added.items()}


def _at_their_ids(spec: dict[str, Any], source: PreTrainedTokenizerFast) -> dict[str, Any]:
    """`spec` with the added tokens of the source in the model's vocabulary."""
    return extend_vocabulary(spec, {"model": spec["model"], "added_tokens": []}, _ids(source))


def _emptied(base: dict[str, Any]) -> dict[str, Any]:
    """The rules without a vocabulary, for training on text that is normalised already.

    SentencePiece's BPE as Llama 2 and Gemma have it does not cut a text before its merges: its training would merge across
    words and take for ever. It is trained on words and applied to lines, which gives the same pieces.
    """
    model = dict(base["model"])
    if model["type"] == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model |= {"vocab": [] if unknown is None else [[unknown, 0.0]], "unk_id": None if unknown is None else 0}
    else:
        model |= {"vocab": {}} | ({"merges": []} if model["type"] == "BPE" else {})
    spec = base | {"model": model, "added_tokens": [], "normalizer": None, "post_processor": None}
    if (scheme := _uncut(base)) is not None:
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}
    return spec


def _uncut(base: dict[str, Any]) -> str | None:
    """How a text begins where words are never cut apart before BPE's merges: `always` or `never` with a blank; None where
    they are cut."""
    if base["model"]["type"] != "BPE":
        return None
    backend = Tokenizer.from_str(json.dumps(base))
    text = backend.normalizer.normalize_str("a b") if backend.normalizer else "a b"
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, (0, len(text)))]
    return None if len(pieces) > 1 else "always" if pieces[0][0].startswith("\u2581") else "never"


def _normalised(base: dict[str, Any], corpus: list[str]) -> list[str]:
    """The lines as the normaliser of `base` leaves them, blanks kept where it would write them as SentencePiece does."""
    normalizer = Tokenizer.from_str(json.dumps(base | {"added_tokens": [], "post_processor": None})).normalizer
    if normalizer is None:
        return corpus
    found = [normalizer.normalize_str(line) for line in corpus]
    return [line.replace("\u2581", " ") for line in found] if _uncut(base) is not None else found


def _reserved(source: PreTrainedTokenizerFast, base: dict[str, Any]) -> list[str]:
    """Tokens that the new vocabulary has in any case and that come first in it, in the order of their old ids: added ones,
    those with a role or in the template, the unknown one, and single bytes where the family falls back on them."""
    ids, model = _ids(source), base["model"]
    found = {token["content"] for token in base["added_tokens"]} | {
        token for token, _ in template_tokens(base["post_processor"])
    }
    found |= {str(source.convert_ids_to_tokens(number)) for number in role_ids(source).values()}
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    if unknown is not None:
        found.add(unknown)
    if model.get("byte_fallback"):
        found |= {f"<0x{byte:02X}>" for byte in range(256)}
    return sorted(found, key=lambda text: (ids.get(text, len(ids)), text))


def _trainer(model: dict[str, Any], special: Sequence[AddedToken], size: int, byte_level: bool) -> Any:
    shared: dict[str, Any] = {"vocab_size": size, "special_tokens": list(special), "show_progress": False}
    if model["type"] == "Unigram":
        unknown = {} if model["unk_id"] is None else {"unk_token": model["vocab"][model["unk_id"]][0]}
        return trainers.UnigramTrainer(**shared, **unknown)
    affixes = {name: model[name] for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)}
    if model["type"] == "WordPiece":
        return trainers.WordPieceTrainer(**shared, **affixes)
    letters: dict[str, Any] = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if byte_level else {}
    return trainers.BpeTrainer(**shared, **affixes, **letters)


def _batches(lines: list[str]) -> Iterable[list[str]]:
    return (lines[start : start + 1000] for start in range(0, len(lines), 1000))


def _continuing_characters(backend: Tokenizer, lines: list[str]) -> list[str]:
    """The pieces of one character that continue a word somewhere in the lines, sorted."""
    seen: set[str] = set()
    for chunk in {chunk for line in lines for chunk in line.split()}:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(chunk):
            seen.update(word[1:])
    return [backend.model.continuing_subword_prefix + char for char in sorted(seen)]


def _sorted(vocab: list[list[Any]], reserved: set[str]) -> list[list[Any]]:
    """Unigram's pieces in an order that does not depend on hash maps: reserved ones first, then by score."""
    scores = {piece: round(score, 6) for piece, score in vocab}
    # Characters that training dropped come back below all pieces, each a little lower than the one before, in the order
    # of a hash map: the same scores are dealt out again in the order of the characters.
    floor = min((score for piece, score in scores.items() if len(piece) > 1 and piece not in reserved), default=0.0)
    rare = sorted(piece for piece, score in scores.items() if len(piece) == 1 and score <= floor)
    scores |= dict(zip(rare, sorted((scores[piece] for piece in rare), reverse=True), strict=True))
    head = [[piece, score] for piece, score in scores.items() if piece in reserved]
    rest = [[piece, score] for piece, score in scores.items() if piece not in reserved]
    return head + sorted(rest, key=lambda piece: (-piece[1], piece[0]))
