"""How a tokenizer frames a document with special tokens."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from data_pipeline.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Ids before and after a document, e.g. `[CLS]` and `[SEP]`, and the id that fills a row."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int


def frame_of(tokenizer: PreTrainedTokenizerFast) -> Frame:
    """What the tokenizer itself puts around a text; where it puts nothing, its end token separates documents.

    Raises:
        ModelError: it has no token at all to separate documents or to fill a row.
    """
    inside = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    at = next(i for i in range(len(whole) - len(inside) + 1) if whole[i : i + len(inside)] == inside)
    prefix, suffix = tuple(whole[:at]), tuple(whole[at + len(inside) :])
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
