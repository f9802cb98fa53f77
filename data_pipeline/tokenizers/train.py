"""Trains a tokenizer of a source model's own family and special-token layout, with the same bytes on every run.

The `tokenizers` trainers iterate over hash maps, so plain training gives other ids (WordPiece) or another order (Unigram)
each time. Two remedies: continuing characters are declared before training, in sorted order; Unigram pieces are sorted by
score and text after rounding away the noise of summation order.
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
_COMPARED_LINES = 200
"""Lines on which a loaded tokenizer is compared with the saved one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Settings of the new vocabulary."""

    vocab_size: int = 32_000
    """Most pieces, special tokens included. A multiple of 128 leaves no padding rows in the model. With `extend` the size of
    the vocabulary whose missing tokens are added to the old one."""

    extend: bool = False
    """Whether to add missing tokens to the old vocabulary instead of replacing it."""

    strip_accents: bool = False
    """Whether to drop accents and vowel signs if the source's tokenizer does. Uncased models of BERT and ALBERT do, which is
    harmless in English and destroys Japanese, Hindi or Greek."""

    character_coverage: float = 0.9995
    """Share of the text's characters that get pieces of their own, most frequent first, as in SentencePiece. The others are
    unknown, or spelt in bytes where the tokenizer has byte pieces. Byte-level tokenizers have all 256 bytes instead."""

    alpha: float = 0.3
    """The training text has languages in proportion to bytes ** alpha: 1 keeps the proportions, 0 gives each the same."""

    sample_bytes: int = 200_000_000
    """Most UTF-8 bytes of training text, pairs included. Training takes four times as much memory."""

    def __post_init__(self) -> None:
        if not isinstance(self.vocab_size, int) or self.vocab_size < 300:
            raise ConfigError(f"vocab_size must be a whole number of at least 300, got {self.vocab_size!r}.")
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
    """Trains on `texts` with the model type, normalisation, pre-tokenization and special tokens of `source`.

    With `config.extend` adds the resulting tokens to `source`.

    Args:
        warn: receives a line on the cost of the source's rules in this text, if they cannot be changed.

    Raises:
        ConfigError: the vocabulary cannot hold the characters of the text.
        DataError: the text is too small for the vocabulary.
        ModelError: transformers cannot load such a tokenizer.
    """
    corpus = [line for text in texts for line in text.split("\n") if line]
    old = json.loads(source.backend_tokenizer.to_str())
    # An extended vocabulary splits old text as before, so it keeps the old rules.
    base = old if config.extend else _rules(source, old, corpus, config)
    trained = _train_vocabulary(source, base, corpus, config)
    if config.extend:
        result = rebuild(source, extend_vocabulary(old, trained, _ids(source)), corpus[:_COMPARED_LINES])
    else:
        result = rebuild(source, trained, corpus[:_COMPARED_LINES], **_settings(old, config))
    if (cuts := rules.word_cuts(result.backend_tokenizer.pre_tokenizer, corpus)).share > rules.MAX_DAMAGED_SHARE:
        warn(_cut_warning(source, result, cuts, corpus, config))
    if config.extend and (warning := rules.dropped_accents_warning(source.backend_tokenizer.normalizer, corpus)):
        warn(f"{warning}; an extended vocabulary keeps the old rules, a new one (extend=false) does not")
    return result


def _rules(source: PreTrainedTokenizerFast, old: dict[str, Any], corpus: list[str], config: TokenizerConfig) -> dict[str, Any]:
    """The source's rules, without those that drop accents.

    Also without those that cut the text's words at vowel signs, if transformers can load such a tokenizer.
    """
    spec = old if config.strip_accents else old | {"normalizer": rules.with_accents(old["normalizer"])}
    if rules.word_cuts(source.backend_tokenizer.pre_tokenizer, corpus).share <= rules.MAX_DAMAGED_SHARE:
        return spec
    changed = spec | {"pre_tokenizer": rules.with_marks(spec["pre_tokenizer"])}
    marked = sorted(corpus, key=lambda line: -len(rules.MARK.findall(line)))
    try:
        rebuild(source, _with_source_ids(changed, source), marked[:_COMPARED_LINES], **_settings(old, config))
    except ModelError:
        return spec
    return changed


def _settings(old: dict[str, Any], config: TokenizerConfig) -> dict[str, Any]:
    """Keys of `tokenizer_config.json` that repeat the normaliser's rules, for classes that build it from these keys."""
    bert = any(part["type"] == "BertNormalizer" for part in rules.rule_parts(old["normalizer"], "normalizers"))
    return {"strip_accents": config.strip_accents} if bert or config.strip_accents else {}


def _cut_warning(
    source: PreTrainedTokenizerFast,
    result: PreTrainedTokenizerFast,
    cuts: rules.WordCuts,
    corpus: list[str],
    config: TokenizerConfig,
) -> str:
    """The cost of cutting words at marks, compared with a tokenizer of the same size that does not."""
    old = json.loads(source.backend_tokenizer.to_str())
    uncut = _train_vocabulary(source, old | {"pre_tokenizer": rules.with_marks(old["pre_tokenizer"])}, corpus, config)
    backends = (result.backend_tokenizer, Tokenizer.from_str(json.dumps(uncut)))
    with_cuts, without_cuts = (rules.fertility(backend, corpus) for backend in backends)
    reason = (
        "an extended vocabulary keeps the old rules"
        if config.extend
        else "transformers keeps the rules of this class as they are"
    )
    return (
        f"the tokenizer cuts {cuts.share:.1%} of the words at vowel signs, into {cuts.pieces:.1f} pieces or more "
        f"({cuts.example}): {with_cuts:.2f} pieces a word, {without_cuts:.2f} without these cuts; {reason}"
    )


def _train_vocabulary(
    source: PreTrainedTokenizerFast, base: dict[str, Any], corpus: list[str], config: TokenizerConfig
) -> dict[str, Any]:
    """The `tokenizer.json` content of a new vocabulary under the rules of `base`."""
    backend = Tokenizer.from_str(json.dumps(_without_vocabulary(base)))
    lines = _normalise(base, corpus)
    reserved = _reserved_tokens(source, base)
    byte_level = any(part["type"] == "ByteLevel" for part in rules.rule_parts(base["pre_tokenizer"], "pretokenizers"))
    covered: set[str] = set()
    if not byte_level:
        counts = alphabet.count_characters(lines)
        covered = alphabet.covering_characters(counts, config.character_coverage)
        lines = list(alphabet.blank_out(lines, set(counts) - covered))
    kind = base["model"]["type"]
    continuing = _continuing_characters(backend, lines) if kind == "WordPiece" else []
    characters = 256 if byte_level else len(covered) + len(continuing) + (kind != "WordPiece")
    # Unigram needs room for one piece beyond the characters, or it prunes none of its seed pieces.
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
        model["vocab"] = _sort_pieces(model["vocab"], set(reserved))
        unknown = base["model"]["vocab"][base["model"]["unk_id"]][0] if base["model"]["unk_id"] is not None else None
        model["unk_id"] = next((place for place, (text, _) in enumerate(model["vocab"]) if text == unknown), None)
        ids = {text: place for place, (text, _) in enumerate(model["vocab"])}
    else:
        ids = model["vocab"]
    _check_enough(len(ids), config)
    added = sorted(({**token, "id": ids[token["content"]]} for token in base["added_tokens"]), key=lambda token: token["id"])
    return base | {"model": model, "added_tokens": added, "post_processor": renumber(base["post_processor"], ids)}


def _check_enough(tokens: int, config: TokenizerConfig) -> None:
    """Checks that the text yields at least half of the tokens that the user asks for; else raises DataError."""
    assert tokens <= config.vocab_size, f"{tokens} tokens, {config.vocab_size} allowed"
    if tokens < 0.5 * config.vocab_size:
        raise DataError(
            f"the text yields {tokens:,} tokens, fewer than half of vocab_size={config.vocab_size:,}.",
            "shard.tokenizer",
            f"Give more text, or set its vocab_size to {2 * tokens // 128 * 128:,} or less."
            if tokens >= 150
            else "Give more text.",
        )


def _check_size(needed: int, characters: int, config: TokenizerConfig) -> None:
    """Checks that the vocabulary has room for all special tokens and single characters; else raises ConfigError."""
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


def _with_source_ids(spec: dict[str, Any], source: PreTrainedTokenizerFast) -> dict[str, Any]:
    """`spec` with the added tokens of the source in the model's vocabulary, at their ids."""
    return extend_vocabulary(spec, {"model": spec["model"], "added_tokens": []}, _ids(source))


def _without_vocabulary(base: dict[str, Any]) -> dict[str, Any]:
    """The rules without a vocabulary, for training on normalised text.

    SentencePiece's BPE of Llama 2 and Gemma does not cut a text before its merges: its training would merge across words and
    take for ever. It is trained on words and applied to lines, which gives the same pieces.
    """
    model = dict(base["model"])
    if model["type"] == "Unigram":
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model |= {"vocab": [] if unknown is None else [[unknown, 0.0]], "unk_id": None if unknown is None else 0}
    else:
        model |= {"vocab": {}} | ({"merges": []} if model["type"] == "BPE" else {})
    spec = base | {"model": model, "added_tokens": [], "normalizer": None, "post_processor": None}
    if (scheme := _uncut_scheme(base)) is not None:
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}
    return spec


def _uncut_scheme(base: dict[str, Any]) -> str | None:
    """Metaspace's `prepend_scheme` if BPE merges a text that is not cut into words, else None.

    It is `always` or `never`.
    """
    if base["model"]["type"] != "BPE":
        return None
    backend = Tokenizer.from_str(json.dumps(base))
    text = backend.normalizer.normalize_str("a b") if backend.normalizer else "a b"
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, (0, len(text)))]
    return None if len(pieces) > 1 else "always" if pieces[0][0].startswith("\u2581") else "never"


def _normalise(base: dict[str, Any], corpus: list[str]) -> list[str]:
    """The lines after the normaliser of `base`, with blanks where it writes SentencePiece's mark for them."""
    normalizer = Tokenizer.from_str(json.dumps(base | {"added_tokens": [], "post_processor": None})).normalizer
    if normalizer is None:
        return corpus
    lines = [normalizer.normalize_str(line) for line in corpus]
    return [line.replace("\u2581", " ") for line in lines] if _uncut_scheme(base) is not None else lines


def _reserved_tokens(source: PreTrainedTokenizerFast, base: dict[str, Any]) -> list[str]:
    """Tokens that the new vocabulary always has, first and in the order of their old ids.

    They are added tokens, tokens with a role or in the template, the unknown token, and single bytes if the family falls back
    on them.
    """
    ids, model = _ids(source), base["model"]
    reserved = {token["content"] for token in base["added_tokens"]} | {
        token for token, _ in template_tokens(base["post_processor"])
    }
    reserved |= {str(source.convert_ids_to_tokens(number)) for number in role_ids(source).values()}
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
    if unknown is not None:
        reserved.add(unknown)
    if model.get("byte_fallback"):
        reserved |= {f"<0x{byte:02X}>" for byte in range(256)}
    return sorted(reserved, key=lambda text: (ids.get(text, len(ids)), text))


def _trainer(model: dict[str, Any], special: Sequence[AddedToken], size: int, byte_level: bool) -> Any:
    """The trainer of `tokenizers` for the source's kind of model (Unigram, WordPiece or BPE) and `size` entries."""
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
    """The pieces of one character that continue a word in the lines, sorted."""
    seen: set[str] = set()
    for chunk in {chunk for line in lines for chunk in line.split()}:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(chunk):
            seen.update(word[1:])
    return [backend.model.continuing_subword_prefix + char for char in sorted(seen)]


def _sort_pieces(vocab: list[list[Any]], reserved: set[str]) -> list[list[Any]]:
    """Unigram's pieces in an order that does not depend on hash maps: reserved pieces first, then by score."""
    scores = {piece: round(score, 6) for piece, score in vocab}
    # The trainer restores characters that it had pruned, with scores below all pieces that decrease in the order of a hash
    # map. These scores are reassigned in the order of the characters.
    floor = min((score for piece, score in scores.items() if len(piece) > 1 and piece not in reserved), default=0.0)
    rare = sorted(piece for piece, score in scores.items() if len(piece) == 1 and score <= floor)
    scores |= dict(zip(rare, sorted((scores[piece] for piece in rare), reverse=True), strict=True))
    head = [[piece, score] for piece, score in scores.items() if piece in reserved]
    rest = [[piece, score] for piece, score in scores.items() if piece not in reserved]
    return head + sorted(rest, key=lambda piece: (-piece[1], piece[0]))
