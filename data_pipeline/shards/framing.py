"""The special tokens around a document."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers.canonical import special_roles
from data_pipeline.tokenizers.template import template_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Ids before and after a document, e.g. `[CLS]` and `[SEP]`, and the id that fills a row."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int


def frame_of(tokenizer: PreTrainedTokenizerFast) -> Frame:
    """The tokens that the tokenizer itself puts around a text; if there are none, its end token after each document.

    Raises:
        ModelError: it has no token to separate documents or to fill a row, or its template inserts an ordinary token, which
            means that the template has the ids of another vocabulary.
    """
    prefix, suffix = template_ids(tokenizer)
    ordinary = sorted({*prefix, *suffix} - set(special_roles(tokenizer)))
    if ordinary:
        raise ModelError(
            f"its template puts {tokenizer.convert_ids_to_tokens(ordinary[0])!r} (id {ordinary[0]}) around a text, which is no "
            "special token.",
            tokenizer.name_or_path,
            "Correct the ids in the post_processor of its tokenizer.json.",
        )
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if not suffix and end is not None:
        suffix = (end,)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    if not prefix + suffix or pad is None:
        raise ModelError(
            "the tokenizer has no special token to mark where a document ends.",
            tokenizer.name_or_path,
            "Give it an eos_token or a sep_token, and a pad_token.",
        )
    return Frame(prefix=prefix, suffix=suffix, pad=pad)
