"""How a text is written before it is tokenized: a prompt in front of it, and a template around it.

A template names the text once or twice. With two copies only the second one is pooled: in a causal model its tokens have read
the whole text (echo embeddings, Springer et al. 2024, arXiv:2402.15449). PromptEOL asks for the text in one word, and the last
token answers (Jiang et al. 2023, arXiv:2307.16645).

A long text is cut, never its prompt or template, and both copies are cut at the same character.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import ConfigError
from data_pipeline.tokenizers.pieces import TokenizedSpans
from data_pipeline.tokenizers.template import template_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT = "{text}"
"""Stands for the text in a template; alone it is the template of a text without one."""
SIDES: dict[str | None, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names of the prompts of the two sides of a search, as sentence-transformers looks for them."""
TEMPLATES = {"echo": f"{TEXT} {TEXT}", "prompteol": f'This sentence: "{TEXT}" means in one word:"'}
"""Templates of papers."""


def template_text(requested: str) -> str:
    """The template of a name, or a template that is written out.

    Raises:
        ConfigError: it does not name the text once or twice.
    """
    template = TEMPLATES.get(requested, requested)
    if template.count(TEXT) not in (1, 2):
        raise ConfigError(
            f"the template {requested!r} does not contain the text once or twice.",
            "embed.template",
            f"Choose one of {', '.join(TEMPLATES)}, or write {TEXT} once or twice.",
        )
    return template


def check_template(requested: str | None, pooling: str) -> None:
    """Checks a template, and that its answer is what is pooled.

    Raises:
        ConfigError: it names no text, or PromptEOL is not pooled by its last token.
    """
    if requested is None:
        return
    template_text(requested)
    if requested == "prompteol" and pooling != "lasttoken":
        raise ConfigError("prompteol answers in its last token.", "embed.pooling", "Set embed.pooling=lasttoken.")


def check_prompt_names(names: Iterable[str]) -> None:
    """Refuses a name that is nearly that of a side: no text of the training would have its prompt.

    Raises:
        ConfigError: names the side.
    """
    sides = tuple(itertools.chain.from_iterable(SIDES.values()))
    for name in names:
        if name not in sides and (near := difflib.get_close_matches(name, sides, 1, 0.65)):
            raise ConfigError(f"no text would have the prompt {name!r}.", "embed.prompts", f"Did you mean {near[0]}?")


class TokenizedText(list[int]):
    """Token ids of a text, special tokens included; the model reads the first `skip` of them, but they are not pooled."""

    def __init__(self, ids: Sequence[int], skip: int = 0) -> None:
        super().__init__(ids)
        self.skip = min(skip, max(0, len(ids) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """What stands around a text."""

    prompt: str = ""
    """Stands in front of the text, or of its template."""
    template: str = TEXT
    pools_prompt: bool = True
    """Whether the tokens of the prompt are pooled like those of the text."""

    def tokenize(
        self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int, *, keeps_end: bool = False
    ) -> list[TokenizedText]:
        """Ids of each text, cut to `max_length`; closing special tokens stay, except behind a template that ends with words.

        Args:
            keeps_end: cuts a text that is too long at its start; not where there is a template.
        """
        backend, (prefix, suffix) = tokenizer.backend_tokenizer, template_ids(tokenizer)
        if self.template == TEXT:
            skip = 0 if self.pools_prompt else _prompt_length(tokenizer, self.prompt)
            encoded = backend.encode_batch_fast([self.prompt + text for text in texts])
            if keeps_end:
                head = backend.encode(self.prompt).ids if self.prompt else list(prefix)
                return [TokenizedText(_cut_start(text.ids, max_length, head), skip) for text in encoded]
            return [TokenizedText(_cut(text.ids, max_length, suffix), skip) for text in encoded]
        if not self.template.endswith(TEXT):  # its last word is to be the last token
            closing, limit = len(suffix), max_length + len(suffix)
        else:
            closing, limit = 0, max_length
        rows = backend.encode_batch([self._write(text) for text in texts])
        fitted = [self._fit(backend, text, row, limit) for text, row in zip(texts, rows, strict=True)]
        return [TokenizedText(row.ids[: len(row.ids) - closing], self._skipped(text, row)) for text, row in fitted]

    def spans(self, tokenizer: PreTrainedTokenizerFast, text: str, max_length: int) -> TokenizedSpans:
        """The tokens of `tokenize` for a text, and where they stand in the text as it is written. Slower than `tokenize`."""
        backend, (_, suffix) = tokenizer.backend_tokenizer, template_ids(tokenizer)
        row = backend.encode(self._write(text))
        if self.template == TEXT:
            places = _kept(len(row.ids), max_length, len(suffix))
        else:
            closing = 0 if self.template.endswith(TEXT) else len(suffix)
            text, row = self._fit(backend, text, row, max_length + closing)
            places = list(range(len(row.ids) - closing))
        return TokenizedSpans(
            text=self._write(text),
            tokens=tuple(row.tokens[place] for place in places),
            spans=tuple(row.offsets[place] for place in places),
            special=tuple(bool(row.special_tokens_mask[place]) for place in places),
            unknown=tuple(row.ids[place] == tokenizer.unk_token_id and not row.special_tokens_mask[place] for place in places),
        )

    def check(self, tokenizer: PreTrainedTokenizerFast, max_length: int, beginnings: Sequence[str] = ("",)) -> None:
        """Checks that prompt and template leave room for a text.

        Args:
            beginnings: what texts begin with, such as the prompts of rows.

        Raises:
            ConfigError: they do not.
        """
        counts = [len(ids) for ids in self.tokenize(tokenizer, beginnings, 1 << 20)]
        if (tokens := max(counts, default=0)) >= max_length:
            longest = self._write(beginnings[counts.index(tokens)])
            raise ConfigError(
                f"prompt and template take {tokens} of {max_length} tokens ({longest[:60]!r}), which leaves none for a text.",
                "max_length",
                "Raise it, or shorten the prompt.",
            )

    def _write(self, text: str) -> str:
        return self.prompt + text.join(self.template.split(TEXT))

    def _fit(self, backend: Any, text: str, row: Any, limit: int) -> tuple[str, Any]:
        """The text, as much of it as fits, and its encoding with the template."""
        while len(row.ids) > limit and text:
            excess = -(-(len(row.ids) - limit) // self.template.count(TEXT))
            start = len(self.prompt) + self.template.index(TEXT)
            ends = [
                min(end, start + len(text)) - start for begin, end in row.offsets if start < end and begin < start + len(text)
            ]
            kept = ends[-excess - 1] if excess < len(ends) else 0
            text = text[: min(kept, len(text) - 1)]
            row = backend.encode(self._write(text))
        return text, row

    def _skipped(self, text: str, row: Any) -> int:
        """How many tokens come before the second copy of the text, or before all but the prompt."""
        copies = self.template.split(TEXT)
        start = 0 if self.pools_prompt else len(self.prompt)
        if len(copies) == 3:
            start = len(self.prompt) + len(copies[0]) + len(text) + len(copies[1])
        return 0 if start == 0 else next((place for place, (_, end) in enumerate(row.offsets) if end > start), len(row.ids))


def _prompt_length(tokenizer: PreTrainedTokenizerFast, prompt: str) -> int:
    """Tokens of the prompt without a closing special token, as sentence-transformers counts them."""
    if not prompt:
        return 0
    ids = tokenizer.backend_tokenizer.encode(prompt).ids
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)


def _kept(tokens: int, limit: int, closing: int) -> list[int]:
    """The places of the tokens that `_cut` keeps."""
    if tokens <= limit:
        return list(range(tokens))
    return [*range(limit - closing), *range(tokens - closing, tokens)] if closing < limit else list(range(limit))


def _cut(ids: list[int], limit: int, suffix: tuple[int, ...]) -> list[int]:
    """The first `limit` ids, of which the last are the closing special tokens where there is room for them."""
    if len(ids) <= limit:
        return ids
    return ids[: limit - len(suffix)] + list(suffix) if len(suffix) < limit else ids[:limit]


def _cut_start(ids: list[int], limit: int, head: list[int]) -> list[int]:
    """The ids that are those of `head`, and so no part of the text, and the last ones, as many as there is room for.

    A blank at the end of a prompt is a part of the first word in most vocabularies, and a token in `head` alone.
    """
    kept = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, head, strict=False)))
    return ids if len(ids) <= limit else ids[:kept] + ids[len(ids) - (limit - kept) :]
