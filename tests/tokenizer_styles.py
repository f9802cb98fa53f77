"""Tokenizers in the style of the decoders and encoders of 2024 to 2026: special tokens behind the vocabulary, patterns of
GPT-4's kind, templates inside a sequence. Their layouts are those of the models' own tokenizer.json files, at a small size."""

from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level_bpe(texts: list[str], size: int, pattern: str | None, ignore_merges: bool = False) -> Tokenizer:
    """A trained backend without special tokens."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern is not None:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return backend


def llama3(texts: list[str], size: int = 800) -> PreTrainedTokenizerFast:
    """256 special tokens behind the vocabulary, BOS by a template inside a sequence, `ignore_merges`."""
    backend = byte_level_bpe(texts, size, LLAMA3_PATTERN, ignore_merges=True)
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|eot_id|>"]
    names = named + [f"<|reserved_special_token_{number}|>" for number in range(251)]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    begin = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def qwen3(texts: list[str], size: int = 800) -> PreTrainedTokenizerFast:
    """26 tokens behind the vocabulary, some of them not special, NFC, no template; transformers' own class."""
    backend = byte_level_bpe(texts, size, QWEN_PATTERN)
    backend.normalizer = normalizers.NFC()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|made_up_{number}|>" for number in range(11))]
    plain = ["<tool_call>", "</tool_call>", *(f"<|code_{number}|>" for number in range(6)), "<think>", "</think>"]
    backend.add_tokens([AddedToken(name, special=name in special, normalized=False) for name in special + plain])
    return Qwen2Tokenizer(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None)


def modernbert(texts: list[str], size: int = 800) -> PreTrainedTokenizerFast:
    """Two special tokens in front, runs of blanks, special tokens and `[unused..]` behind; NFC."""
    backend = byte_level_bpe(texts, size, None)
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    backend.add_tokens([AddedToken("|||EMAIL_ADDRESS|||", normalized=True), AddedToken("|||PHONE_NUMBER|||", normalized=True)])
    names = ["<|endoftext|>", "[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    backend.add_special_tokens([AddedToken("[MASK]", special=True, normalized=False, lstrip=True)])
    backend.add_tokens([AddedToken(f"[unused{number}]", normalized=True) for number in range(83)])
    ids = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


STYLES: dict[str, Callable[[list[str]], PreTrainedTokenizerFast]] = {
    "llama3": llama3, "qwen3": qwen3, "modernbert": modernbert,
}  # fmt: skip
