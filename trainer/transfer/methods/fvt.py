"""FVT: a new token starts as the mean of the source pieces that its text splits into.

Gee et al., EMNLP 2022 industry track, "Fast Vocabulary Transfer for Language Model Compression", section 3:

    E_new[t] = 1/|p(t)| sum_{s in p(t)} E_old[s]        p(t) = pieces of t under the source tokenizer

ReTok (arXiv:2410.04335) does the same for input embeddings. A token that splits into unknown pieces only stays unplaced. A
token that continues a word is split after a stand-in for the beginning of the word, so the source tokenizer does not treat
it as the start of a word; the stand-in is then dropped.
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
    """Places every new token that has a known source piece, as the mean of these pieces."""
    ids, counts, indices, weights = [], [], [], []
    for token_id in problem.new:
        token = problem.tokens[token_id]
        assert token is not None
        pieces, occurrences = np.unique(split(problem.source, token), return_counts=True)
        if len(pieces):
            ids.append(token_id)
            counts.append(len(pieces))
            indices.append(pieces.astype(np.int64))
            weights.append(occurrences / occurrences.sum())
    return Placement(
        ids=np.array(ids, np.int64),
        counts=np.array(counts, np.int64),
        indices=np.concatenate([np.empty(0, np.int64), *indices]),
        weights=np.concatenate([np.empty(0), *weights]).astype(np.float32),
        provenance=Provenance.COMPOSITION,
    )


def _word_pieces(source: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The pieces of a word within a sentence.

    Byte-level tokenizers put the blank before the word into its first piece; others mark the beginning of a word themselves.
    """
    spaced = source.backend_tokenizer.encode(" " + text, add_special_tokens=False)
    if spaced.tokens and spaced.tokens[0].startswith("\u0120"):
        return list(spaced.ids)
    return list(source.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def _continuation_pieces(source: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The pieces of a text in the middle of a word.

    Takes the first stand-in for the beginning of the word that does not merge with the text ("a" + "nd" is one piece); if all
    do, splits the text as a word.
    """
    encode = source.backend_tokenizer.encode
    for stand_in in _STAND_INS:
        alone = encode(stand_in, add_special_tokens=False).ids
        pieces = encode(stand_in + text, add_special_tokens=False).ids
        if len(alone) == 1 and alone[0] != source.unk_token_id and pieces[:1] == alone:
            return pieces[1:]
    return encode(text, add_special_tokens=False).ids


def split(source: PreTrainedTokenizerFast, token: Token) -> list[int]:
    """The known source pieces of a token's text; none if the token is not text (half a character)."""
    try:
        text = token.payload.decode()
    except UnicodeDecodeError:
        return []
    pieces = _word_pieces(source, text) if token.is_word_start else _continuation_pieces(source, text)
    return [piece for piece in pieces if piece != source.unk_token_id]
