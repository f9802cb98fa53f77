"""Checks a tokenizer: its ids, its template, and that text of each script survives a round trip."""

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from data_pipeline.artifacts.check_result import CheckResult
from data_pipeline.text.words import words
from data_pipeline.tokenizers.canonical import canonical_tokens, matching_roles, script, special_roles
from data_pipeline.tokenizers.template import template_ids, template_tokens

_WORDS = 200
"""Words of a script or language that make a round trip."""
_EXTENSION_SHARE = 0.5
"""A vocabulary counts as an extension if a larger share of the old ids keep their tokens."""
_MARKED_WORDS = {
    "LATIN": "café",
    "GREEK": "αγγελία",
    "CYRILLIC": "ёй",
    "HEBREW": "שָׁלוֹם",
    "ARABIC": "كِتَابٌ",
    "DEVANAGARI": "हिन्दी",
    "BENGALI": "বাংলা",
    "GURMUKHI": "ਪੰਜਾਬੀ",
    "GUJARATI": "ગુજરાતી",
    "TAMIL": "தமிழ்",
    "TELUGU": "తెలుగు",
    "KANNADA": "ಕನ್ನಡ",
    "MALAYALAM": "മലയാളം",
    "SINHALA": "සිංහල",
    "THAI": "ที่นี่",
    "HIRAGANA": "がぱ",
    "KATAKANA": "ガパ",
}
"""A word of each script that becomes another word, or none, without its marks."""
_BEGIN_ROLES, _END_ROLES = {"cls", "bos"}, {"sep", "eos"}


def verify(
    tokenizer: PreTrainedTokenizerFast,
    old: PreTrainedTokenizerFast | None = None,
    texts: Mapping[str, Iterable[str]] | None = None,
    given: bool = False,
) -> list[CheckResult]:
    """Runs all checks of a tokenizer.

    They are `token ids`, `old ids`, `template`, `accents and vowel signs`, `round trip by script` and `round trip by language`.

    Args:
        old: the tokenizer that it replaces or extends.
        texts: texts by language.
        given: whether the user supplied the tokenizer; then its template and accents need not match those of `old`.
    """
    old = None if given else old
    extended = old is not None and is_extension(old, tokenizer)
    reason = _drop_reason(tokenizer, given, extended)
    return [
        _ids(tokenizer),
        *([_old_ids(old, tokenizer)] if old is not None and extended else []),
        _template(tokenizer, old),
        _marks(tokenizer, reason),
        _scripts(tokenizer),
        *([] if texts is None else [_round_trip_by_language(tokenizer, texts, marks=reason is None)]),
    ]


def is_extension(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> bool:
    """Whether most old tokens keep their ids; in a new vocabulary only a few do, by chance."""
    before, after = tokens_by_id(old), tokens_by_id(new)
    same = sum(after.get(number) == text for number, text in before.items())
    return same > _EXTENSION_SHARE * len(before)


def tokens_by_id(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """The token of each id; added tokens as they are written in text."""
    tokens = {number: text for text, number in tokenizer.get_vocab().items()}
    return tokens | {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}


def _ids(tokenizer: PreTrainedTokenizerFast) -> CheckResult:
    """Checks that no id has two tokens and no token two ids, and that the ids in use are those of the file."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    ambiguous = [number for number, count in Counter(vocabulary.values()).items() if count > 1]
    wrong = [f"id {number} has {_quoted_tokens(tokenizer, number)}" for number in sorted(ambiguous)]
    for number, token in added.items():
        if (other := vocabulary.get(token.content)) != number:
            wrong.append(f"{token.content!r} has the ids {number} and {other}")
    for text, number in vocabulary.items():
        if tokenizer.convert_ids_to_tokens(number) != text and number not in ambiguous:
            wrong.append(f"{text!r} has the id {number}, which is {tokenizer.convert_ids_to_tokens(number)!r}")
    for text, number in _file_ids(tokenizer).items():
        if vocabulary.get(text) != number:
            wrong.append(f"{text!r} has the id {number} in the file and {vocabulary.get(text)} once it is loaded")
    return CheckResult.from_failures("token ids", f"{len(vocabulary):,} tokens, {len(added):,} of them added", wrong)


def _quoted_tokens(tokenizer: PreTrainedTokenizerFast, number: int) -> str:
    """All tokens of an id."""
    return " and ".join(sorted(repr(text) for text, other in tokenizer.get_vocab().items() if other == number))


def _file_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids in the `tokenizer.json` that the tokenizer was loaded from, if there is one."""
    path = os.path.join(tokenizer.name_or_path, "tokenizer.json")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    pieces = spec["model"]["vocab"]
    if isinstance(pieces, list):
        pieces = {text: place for place, (text, _) in enumerate(pieces)}
    return {**pieces, **{token["content"]: token["id"] for token in spec["added_tokens"]}}


def _old_ids(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> CheckResult:
    """Checks that every old token, special or not, has its old id in an extended vocabulary."""
    ids = new.get_vocab() | {token.content: number for number, token in new.added_tokens_decoder.items()}
    before, after = tokens_by_id(old), tokens_by_id(new)
    moved = [
        f"{text!r} moved from {number} to {ids.get(text, 'nowhere')}"
        if ids.get(text) != number
        else f"{text!r} has the id {number}, and so has {after[number]!r}"
        for number, text in sorted(before.items())
        if ids.get(text) != number or after[number] != text
    ]
    return CheckResult.from_failures("old ids", f"{len(before):,} old tokens in an extended vocabulary", moved)


def _template(tokenizer: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast | None) -> CheckResult:
    """Checks that the tokens around a text are special tokens with the right roles, and match those of the old tokenizer."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    wrong = [
        f"the template inserts the id {number} for {token!r}, whose id is {tokenizer.get_vocab().get(token)}"
        for token, number in template_tokens(spec["post_processor"])
        if tokenizer.get_vocab().get(token) != number
    ]
    roles, sides = special_roles(tokenizer), template_ids(tokenizer)
    for ids, where, allowed in zip(sides, ("before", "after"), (_BEGIN_ROLES, _END_ROLES), strict=True):
        for number in ids:
            role = roles.get(number)
            if role is None or (not role.startswith("special:") and role not in allowed):
                wrong.append(f"{tokenizer.convert_ids_to_tokens(number)!r} ({number}) comes {where} a text, its role is {role}")
    if old is not None:
        matches = matching_roles(old, tokenizer)
        for old_ids, new_ids, where in zip(template_ids(old), sides, ("before", "after"), strict=True):
            expected = [matches.get(number) for number in old_ids]
            if list(new_ids) != expected:
                wrong.append(f"{list(new_ids)} come {where} a text; by the old tokenizer it should be {expected}")
    template = " ... ".join(" ".join(map(str, tokenizer.convert_ids_to_tokens(list(side)))) or "nothing" for side in sides)
    return CheckResult.from_failures("template", f"around a text: {template}", wrong)


def _drop_reason(tokenizer: PreTrainedTokenizerFast, given: bool, extended: bool) -> str | None:
    """The reason why the tokenizer may drop accents; None if it must keep them."""
    if given:
        return "the tokenizer's own rules"
    if extended:
        return "the old rules, which an extended vocabulary keeps"
    return "strip_accents" if tokenizer.init_kwargs.get("strip_accents") else None


def _marks(tokenizer: PreTrainedTokenizerFast, reason: str | None) -> CheckResult:
    """Checks that the normaliser keeps the accents and vowel signs of the vocabulary's scripts, unless there is a `reason`."""
    counts = Counter(script(token) for token in canonical_tokens(tokenizer) if token is not None and token.is_word_start)
    normalizer = tokenizer.backend_tokenizer.normalizer
    dropped = [
        f"{name.lower()}: {word!r} becomes {normalizer.normalize_str(word)!r}"
        for name, word in _MARKED_WORDS.items()
        if counts[name] >= _WORDS // 10
        and normalizer is not None
        and _count_marks(normalizer.normalize_str(word)) < _count_marks(word)
    ]
    if dropped and reason is not None:
        return CheckResult(check="accents and vowel signs", detail=f"dropped by {reason}: {'; '.join(dropped)}")
    return CheckResult.from_failures("accents and vowel signs", "of the scripts in the vocabulary", dropped)


def _count_marks(text: str) -> int:
    return sum(unicodedata.category(char)[0] == "M" for char in unicodedata.normalize("NFD", text))


def _scripts(tokenizer: PreTrainedTokenizerFast) -> CheckResult:
    """Checks that words of every script survive a round trip, up to blanks and the tokenizer's own normalisation."""
    by_script: dict[str, list[str]] = defaultdict(list)
    for token in canonical_tokens(tokenizer):
        name = script(token)
        if token is not None and token.is_word_start and name and len(by_script[name]) < _WORDS:
            by_script[name].append(token.payload.decode())
    normalizer = tokenizer.backend_tokenizer.normalizer
    wrong = []
    for name, members in sorted(by_script.items()):
        for word in members:
            normal = (normalizer.normalize_str(word) if normalizer is not None else word).replace("\u2581", " ")
            if "".join((decoded := _round_trip(tokenizer, word)).split()) != "".join(normal.split()):
                wrong.append(f"{name}: {word!r} comes back as {decoded!r}")
    counts = ", ".join(f"{name.lower()} {len(members)}" for name, members in sorted(by_script.items()))
    return CheckResult.from_failures("round trip by script", counts, wrong)


def _round_trip_by_language(tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Iterable[str]], marks: bool) -> CheckResult:
    """Checks that letters, marks and digits of real words survive a round trip, up to case and compatibility forms.

    Words with unknown tokens are counted, and do not fail.
    """
    wrong, shares = [], []
    for lang, lines in sorted(texts.items()):
        counts = Counter(word for line in lines for word in words(line))
        chosen = [word for word, _ in counts.most_common(_WORDS)]
        unknown = [word for word in chosen if tokenizer.unk_token_id in _encode(tokenizer, word)]
        shares.append(f"{lang} {len(chosen) - len(unknown)} of {len(chosen)}")
        trips = [(word, _round_trip(tokenizer, word)) for word in sorted(set(chosen) - set(unknown))]
        wrong += [
            f"{lang}: {word!r} comes back as {decoded!r}"
            for word, decoded in trips
            if _fold(decoded, marks) != _fold(word, marks)
        ]
    return CheckResult.from_failures("round trip by language", f"known words: {', '.join(shares)}", wrong)


def _encode(tokenizer: PreTrainedTokenizerFast, word: str) -> list[int]:
    backend: Tokenizer = tokenizer.backend_tokenizer
    return list(backend.encode(word, add_special_tokens=False).ids)


def _round_trip(tokenizer: PreTrainedTokenizerFast, word: str) -> str:
    return str(tokenizer.decode(_encode(tokenizer, word), clean_up_tokenization_spaces=False))


def _fold(text: str, marks: bool) -> str:
    """Case-folded letters and digits, with `marks` also marks, in compatibility decomposition."""
    normal = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(char for char in normal if unicodedata.category(char)[0] in ("LMN" if marks else "LN"))
