"""FVT: a new token starts as the mean of the old pieces that its text splits into.

Gee et al., EMNLP 2022 industry track, "Fast Vocabulary Transfer for Language Model Compression", section 3:

    E_new[t] = 1/|p(t)| sum_{s in p(t)} E_old[s]        p(t) = pieces of t under the old tokenizer

ReTok (arXiv:2410.04335) is the same for input embeddings. Tokens that split into unknown pieces alone stay unplaced. A
token that continues a word is split behind a stand-in for the word's beginning, which is dropped again, so that the old
tokenizer does not take it for the start of a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.tokenizers.canonical import Token
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STAND_INS = ("a", "x", "q", "z", "7")


@dataclass(frozen=True, slots=True, kw_only=True)
class FvtConfig:
    """No settings."""


def place(problem: Problem, config: FvtConfig) -> Placement:
    """The mean of the known old pieces, for every new token that has one."""
    ids, counts, indices, weights = [], [], [], []
    for number in problem.new:
        token = problem.tokens[number]
        assert token is not None
        pieces, times = np.unique(split(problem.source, token), return_counts=True)
        if len(pieces):
            ids.append(number)
            counts.append(len(pieces))
            indices.append(pieces.astype(np.int64))
            weights.append(times / times.sum())
    return Placement(
        ids=np.array(ids, np.int64),
        counts=np.array(counts, np.int64),
        indices=np.concatenate([np.empty(0, np.int64), *indices]),
        weights=np.concatenate([np.empty(0), *weights]).astype(np.float32),
        provenance=Provenance.COMPOSITION,
    )


def _word(source: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The pieces of a word within a sentence. Byte-level tokenizers carry the blank before it in its first piece; others
    mark a word's beginning by themselves."""
    spaced = source.backend_tokenizer.encode(" " + text, add_special_tokens=False)
    if spaced.tokens and spaced.tokens[0].startswith("\u0120"):
        return list(spaced.ids)
    return list(source.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def _continued(source: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The pieces of a text in the middle of a word. Of the stand-ins for the word's beginning the first is taken that
    does not melt into the text ("a" + "nd" is one piece); if all do, the text is split as a word."""
    encode = source.backend_tokenizer.encode
    for stand_in in _STAND_INS:
        alone = encode(stand_in, add_special_tokens=False).ids
        pieces = encode(stand_in + text, add_special_tokens=False).ids
        if len(alone) == 1 and alone[0] != source.unk_token_id and pieces[:1] == alone:
            return pieces[1:]
    return encode(text, add_special_tokens=False).ids


def split(source: PreTrainedTokenizerFast, token: Token) -> list[int]:
    """The old pieces of a token's text, unknown ones left out; none when it is not text (half a character)."""
    try:
        text = token.payload.decode()
    except UnicodeDecodeError:
        return []
    pieces = _word(source, text) if token.is_word_start else _continued(source, text)
    return [piece for piece in pieces if piece != source.unk_token_id]
