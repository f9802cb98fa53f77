"""The pieces of a text that its tokens stand for, as people read them.

A vocabulary's own spelling is not readable: `Ġthe`, `▁the`, `##ton`, and `Î` for the first half of a Greek letter. So a piece
is the part of the text that its token covers, with the blanks in front of it that no token covers: pieces join to the text.
Where several tokens share a character, the text does not say who has which part, and each is spelt out: bytes as `<0xCE>`, or
the normalised letters. A blank that the tokenizer has put in front of the text is an empty piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.errors import ModelError
from data_pipeline.tokenizers.canonical import family_of, parse_entry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]
"""First character of a token in the text, and the one behind its last."""
_FIRST_ESCAPE, _LAST_ESCAPE = "\udc80", "\udcff"
"""What Python's `surrogateescape` makes of the bytes 0x80 to 0xFF."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSpans:
    """The tokens of a text, and where they stand in it."""

    text: str
    tokens: tuple[str, ...]
    """As the vocabulary spells them."""
    spans: tuple[Span, ...]
    special: tuple[bool, ...]
    """Whether a token is one that the tokenizer puts around each text."""
    unknown: tuple[bool, ...]
    """Whether a token is the one that stands for what the vocabulary cannot spell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """What each token of a text stands for."""

    pieces: tuple[str, ...]
    special: tuple[int, ...]
    """Places of the special tokens around the text, whose pieces are their names."""
    unknown: tuple[int, ...] = ()
    """Places of unknown tokens: the model does not see what their pieces say."""


def speller(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], str]:
    """Spells a token out of its text: its characters, with `<0xCE>` for a byte that is no whole character.

    A word start is a blank where the vocabulary writes it as one. Takes the time to read the whole tokenizer.
    """
    try:
        family = family_of(tokenizer)
    except ModelError:  # a kind whose marks we do not know
        return str
    starts_with_blank = family != "wordpiece"

    def spell(token: str) -> str:
        entry = parse_entry(token, family)
        raw = entry.payload.decode(errors="surrogateescape")
        marked = (f"<0x{ord(char) - 0xDC00:02X}>" if _FIRST_ESCAPE <= char <= _LAST_ESCAPE else char for char in raw)
        return " " * (entry.is_word_start and starts_with_blank) + "".join(marked)

    return spell


def pieces_of(tokenized: TokenizedSpans, spell: Callable[[str], str]) -> Pieces:
    """The piece of each token."""
    text, found = tokenized.text, list(tokenized.tokens)
    inner = [place for place, is_special in enumerate(tokenized.special) if not is_special]
    done = 0
    for group in _groups(inner, tokenized.spans):
        begin, end = tokenized.spans[group[0]][0], max(tokenized.spans[place][1] for place in group)
        gap, covered = text[done : max(done, begin)], text[max(done, begin) : end]
        parts = [covered] if len(group) == 1 else _spelt([tokenized.tokens[place] for place in group], covered, spell)
        for place, part in zip(group, parts, strict=True):
            found[place] = part
        found[group[0]] = gap + found[group[0]]
        done = max(done, end)
    special, unknown = (
        tuple(place for place, is_one in enumerate(marks) if is_one) for marks in (tokenized.special, tokenized.unknown)
    )
    return Pieces(pieces=tuple(found), special=special, unknown=unknown)


def _groups(places: Sequence[int], spans: Sequence[Span]) -> Iterator[list[int]]:
    """Places of tokens, those together that share a character."""
    group: list[int] = []
    end = 0
    for place in places:
        if group and spans[place][0] >= end:
            yield group
            group = []
        group.append(place)
        end = max(end, spans[place][1])
    if group:
        yield group


def _spelt(tokens: Sequence[str], covered: str, spell: Callable[[str], str]) -> list[str]:
    """The parts of the same characters of a text that its tokens have."""
    parts = [spell(token) for token in tokens]
    joined = "".join(parts)
    if _blanks(joined) > _blanks(covered):  # a blank is the tokenizer's, or no token covers it
        parts[0] = parts[0].removeprefix(" ")
    filled = [place for place, part in enumerate(parts) if part]
    if len(filled) == 1:
        parts[filled[0]] = covered
    return parts


def _blanks(text: str) -> int:
    """Blanks at the beginning."""
    return len(text) - len(text.lstrip())
