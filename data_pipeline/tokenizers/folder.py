"""Loads tokenizers from folders as transformers does, and rebuilds changed ones so that transformers loads them unchanged."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from data_pipeline.errors import ModelError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_STALE = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "spiece.model", "tokenizer.model")
"""Files of the old vocabulary that some classes would read."""
_LOCAL_SETTINGS = ("is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "vocab_file")
_NOT_SENTENCEPIECE = ("tiktoken.model",)
_PIECES = 100
"""Words on which a converted SentencePiece model is compared with the original."""


def is_tokenizer_file(path: str) -> bool:
    """Whether `load` may read this file of a model folder. Includes the model's configuration, which decides the class."""
    return "/" not in path and path.endswith(_FILES)


def load(folder: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a local model folder, with truncation and padding switched off.

    Raises:
        ModelError: the folder has no tokenizer, or one that cannot become a fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    where = f"model {folder}"
    names = os.listdir(folder)
    if not any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in names):
        raise ModelError("the folder has no tokenizer.", where, "Save it there with tokenizer.save_pretrained(folder).")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own, all for a bad folder
        raise ModelError(
            f"no tokenizer can be loaded ({reason(error)})", where, "Check the name; fetch or make damaged files again."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("the tokenizer has no tokenizer.json.", where, "Convert it to a fast tokenizer first.")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    if "tokenizer.json" not in names:
        _check_conversion(tokenizer, folder, names)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return tokenizer


def _check_conversion(tokenizer: PreTrainedTokenizerFast, folder: str, names: list[str]) -> None:
    """Checks transformers' conversion of a SentencePiece model against the model, on words that are pieces of it."""
    models = [name for name in names if name.endswith(".model") and name not in _NOT_SENTENCEPIECE]
    if len(models) != 1:
        return
    import sentencepiece  # only sources without a tokenizer.json need it

    original = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, models[0]))
    pieces = (original.id_to_piece(number) for number in range(original.get_piece_size()))
    text = " ".join([piece[1:] for piece in pieces if piece[0] == "\u2581" and piece[1:].isalpha()][:_PIECES])
    got, wanted = tokenizer.tokenize(text), original.encode(text, out_type=str)
    if got != wanted:
        at = next((place for place, (one, other) in enumerate(zip(got, wanted, strict=False)) if one != other), 0)
        raise ModelError(
            f"transformers reads {models[0]} differently from SentencePiece ({got[at : at + 3]} instead of "
            f"{wanted[at : at + 3]}).",
            f"model {folder}",
            "Add the model's tokenizer_config.json, or its tokenizer.json.",
        )


def rebuild(
    like: PreTrainedTokenizerFast, spec: dict[str, Any], texts: Sequence[str], **settings: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer with the settings of `like` around the backend that `spec` describes.

    The tokenizer is saved and loaded here, with the configuration of the model of `like`: transformers rebuilds most
    tokenizer classes from the vocabulary, with the rules of the class in place of those in the file. If the class of `like`
    does not load as it was saved, falls back to the plain `PreTrainedTokenizerFast`.

    Args:
        texts: texts that the loaded tokenizer must encode and decode as the saved one does.
        settings: keys of `tokenizer_config.json` to change.

    Raises:
        ModelError: no class of tokenizer loads as it was saved.
    """
    wanted = Tokenizer.from_str(json.dumps(spec))
    class_settings = {"model_input_names": like.model_input_names, "padding_side": like.padding_side}
    for extra in ({}, {**class_settings, "tokenizer_class": "PreTrainedTokenizerFast"}):
        loaded = _save_and_load(like, spec, settings | extra)
        if _are_equal(loaded.backend_tokenizer, wanted, texts):
            return loaded
    raise ModelError(
        f"transformers builds a {type(like).__name__} by rules of its own, which are not those of this tokenizer.",
        like.name_or_path,
        "Take another source model.",
    )


def _save_and_load(like: PreTrainedTokenizerFast, spec: dict[str, Any], settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that transformers loads from a temporary folder with the backend `spec` and the settings of `like`."""
    with tempfile.TemporaryDirectory(prefix="scion-tokenizer-") as folder:
        like.save_pretrained(folder)
        for name in _STALE:
            if os.path.exists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
        Tokenizer.from_str(json.dumps(spec)).save(os.path.join(folder, "tokenizer.json"))
        path = os.path.join(folder, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            content = {name: value for name, value in json.load(file).items() if name not in _LOCAL_SETTINGS}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content | settings, file, indent=2, sort_keys=True, ensure_ascii=False)
        # AutoTokenizer also reads the model's configuration to choose the class.
        if os.path.isfile(config := os.path.join(like.name_or_path, "config.json")):
            shutil.copy(config, folder)
        loaded = load(folder)
    loaded.name_or_path = like.name_or_path
    return loaded


def _are_equal(one: Tokenizer, other: Tokenizer, texts: Sequence[str]) -> bool:
    """Whether both have the same tokens, and the same parts, ids and text for each of `texts`."""
    if one.get_vocab() != other.get_vocab() or _added(one) != _added(other):
        return False
    if any(_parts(one, text) != _parts(other, text) for text in texts):
        return False
    ids = [[part.ids for part in tokenizer.encode_batch(list(texts))] for tokenizer in (one, other)]
    return ids[0] == ids[1] and one.decode_batch(ids[0]) == other.decode_batch(ids[1])


def _parts(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text after normaliser and pre-tokenizer: ids alone hide rules that do not matter for this vocabulary."""
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)] if tokenizer.pre_tokenizer else [normal]


def _added(tokenizer: Tokenizer) -> dict[int, str]:
    return {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
