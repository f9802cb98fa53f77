"""A tokenizer that the user gives as the target, in place of one that is trained."""

import json
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers import rules
from data_pipeline.tokenizers.canonical import role_ids
from data_pipeline.tokenizers.folder import rebuild
from data_pipeline.tokenizers.verify import verify

_NEEDED = ("token ids", "template")
"""Checks without which ids mean nothing; what else a tokenizer does to text is its giver's choice."""


def adopt(
    given: PreTrainedTokenizerFast,
    source: PreTrainedTokenizerFast,
    texts: Sequence[str],
    warn: Callable[[str], None] = lambda line: None,
) -> PreTrainedTokenizerFast:
    """`given`, as transformers will load it beside the source model's configuration.

    Args:
        warn: receives a line on what its rules do to the words of `texts`.

    Raises:
        ModelError: its ids or its template are broken, it lacks a mask token that the source has, or transformers would build
            another tokenizer for models of the source's type.
    """
    where = f"tokenizer={given.name_or_path}"
    wrong = [finding for finding in verify(given) if finding.check in _NEEDED and not finding.is_ok]
    if wrong:
        raise ModelError(f"its {wrong[0].check} are not right: {wrong[0].failures[0]}.", where, "Correct its tokenizer.json.")
    if "mask" in role_ids(source) and "mask" not in role_ids(given):
        raise ModelError("it has no mask token, and the source model has.", where, "Add one to it, or take another.")
    if lost := rules.dropped_accents_warning(given.backend_tokenizer.normalizer, texts):
        warn(f"{lost}; without tokenizer= one is trained that does not")
    if (found := rules.word_cuts(given.backend_tokenizer.pre_tokenizer, texts)).share > rules.MAX_DAMAGED_SHARE:
        warn(
            f"the tokenizer cuts {found.share:.1%} of the words at vowel signs, into {found.pieces:.1f} pieces or more "
            f"({found.example}); without tokenizer= one is trained that does not where the model's class allows it"
        )
    given.name_or_path = source.name_or_path
    return rebuild(given, json.loads(given.backend_tokenizer.to_str()), texts)
