"""Which tokens of two vocabularies are the same."""

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from data_pipeline.tokenizers.canonical import Token, canonical_tokens, same_role
from trainer.transfer.plan import Provenance


def match(
    source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, tokens: list[Token | None]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """For each target token the id of the same source token and how it was found.

    Special tokens match by role, all others by equal canonical form; of equal source tokens the lowest id is taken.

    Args:
        tokens: the canonical form of the target's ids.

    Returns:
        int [V] with -1 where there is none, and uint8 [V] of `Provenance` (ZERO for gaps; no meaning where -1).
    """
    by_key: dict[bytes, int] = {}
    for number, token in enumerate(canonical_tokens(source)):
        if token is not None and token.role is None:
            by_key.setdefault(token.key(), number)
    found = np.full(len(tokens), -1, np.int64)
    how = np.full(len(tokens), Provenance.EXACT_COPY, np.uint8)
    for number, token in enumerate(tokens):
        if token is None:
            how[number] = Provenance.ZERO
        elif token.role is not None:
            how[number] = Provenance.SPECIAL_ROLE
            role = same_role(target, number, source)
            found[number] = -1 if role is None else role
        else:
            found[number] = by_key.get(token.key(), -1)
    return found, how
