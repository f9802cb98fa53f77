"""Adopts a tokenizer that the user supplies as the target, in place of a trained one."""

import json
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers import rules
from data_pipeline.tokenizers.canonical import role_ids
from data_pipeline.tokenizers.folder import rebuild
from data_pipeline.tokenizers.verify import verify

_REQUIRED_CHECKS = ("token ids", "template")
"""Checks that make ids meaningful. Everything else that a tokenizer does to text is the user's choice."""


def adopt(
    given: PreTrainedTokenizerFast,
    source: PreTrainedTokenizerFast,
    texts: Sequence[str],
    warn: Callable[[str], None] = lambda line: None,
) -> PreTrainedTokenizerFast:
    """`given`, as transformers will load it together with the source model's configuration.

    Args:
        warn: receives a line if its rules damage words of `texts`.

    Raises:
        ModelError: its ids or template are wrong, it lacks a mask token that the source has, or transformers would build
            another tokenizer for models of the source's type.
    """
    where = f"tokenizer={given.name_or_path}"
    failed = [result for result in verify(given) if result.check in _REQUIRED_CHECKS and not result.is_ok]
    if failed:
        what = f"the check of its {failed[0].check} fails: {failed[0].failures[0]}."
        raise ModelError(what, where, "Correct its tokenizer.json.")
    if "mask" in role_ids(source) and "mask" not in role_ids(given):
        raise ModelError("it has no mask token, but the source model has.", where, "Add one to it, or take another.")
    if warning := rules.dropped_accents_warning(given.backend_tokenizer.normalizer, texts):
        warn(f"{warning}; without tokenizer= Scion trains one that keeps them")
    if (cuts := rules.word_cuts(given.backend_tokenizer.pre_tokenizer, texts)).share > rules.MAX_DAMAGED_SHARE:
        warn(
            f"the tokenizer cuts {cuts.share:.1%} of the words at vowel signs, into {cuts.pieces:.1f} pieces or more "
            f"({cuts.example}); without tokenizer= Scion trains one that does not, if the model's class allows it"
        )
    given.name_or_path = source.name_or_path
    return rebuild(given, json.loads(given.backend_tokenizer.to_str()), texts)
