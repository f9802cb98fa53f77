"""Whether a tokenizer is what it should be: every token has its id, templates insert what their roles say, and text of each
script comes back."""

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
"""Words of a script or language that are encoded and decoded."""
_KEPT = 0.5
"""Share of old ids that keep their tokens from which on a vocabulary is taken for an extension."""
_MARKED = {
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
"""A word of each script that is another word, or none, without its marks."""
_BEGINS, _ENDS = {"cls", "bos"}, {"sep", "eos"}


def verify(
    tokenizer: PreTrainedTokenizerFast,
    old: PreTrainedTokenizerFast | None = None,
    texts: Mapping[str, Iterable[str]] | None = None,
    given: bool = False,
) -> list[CheckResult]:
    """All checks of a tokenizer: `token ids`, `old ids`, `template`, `accents and vowel signs`, `round trip by script` and
    `round trip by language`.

    Args:
        old: the tokenizer that it replaces or extends.
        texts: texts by language.
        given: the user gave the tokenizer as it is: its template and its accents are not to be those of another.
    """
    old = None if given else old
    extended = old is not None and is_extension(old, tokenizer)
    dropper = _dropper(tokenizer, given, extended)
    return [
        _ids(tokenizer),
        *([_old_ids(old, tokenizer)] if old is not None and extended else []),
        _template(tokenizer, old),
        _marks(tokenizer, dropper),
        _scripts(tokenizer),
        *([] if texts is None else [_languages(tokenizer, texts, marks=dropper is None)]),
    ]


def is_extension(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> bool:
    """Whether most old tokens kept their ids; a new vocabulary shares a few by chance."""
    before, after = tokens_by_id(old), tokens_by_id(new)
    same = sum(after.get(number) == text for number, text in before.items())
    return same > _KEPT * len(before)


def tokens_by_id(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """The token of each id, added ones as they are found in text."""
    found = {number: text for text, number in tokenizer.get_vocab().items()}
    return found | {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}


def _ids(tokenizer: PreTrainedTokenizerFast) -> CheckResult:
    """No id has two tokens, no token two ids, and the file's ids are those that a text gets."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    shared = [number for number, count in Counter(vocabulary.values()).items() if count > 1]
    wrong = [f"id {number} has {_named(tokenizer, number)}" for number in sorted(shared)]
    for number, token in added.items():
        if (found := vocabulary.get(token.content)) != number:
            wrong.append(f"{token.content!r} has the ids {number} and {found}")
    for text, number in vocabulary.items():
        if tokenizer.convert_ids_to_tokens(number) != text and number not in shared:
            wrong.append(f"{text!r} has the id {number}, which is {tokenizer.convert_ids_to_tokens(number)!r}")
    for text, number in _in_file(tokenizer).items():
        if vocabulary.get(text) != number:
            wrong.append(f"{text!r} has the id {number} in the file and {vocabulary.get(text)} once it is loaded")
    return CheckResult.from_failures("token ids", f"{len(vocabulary):,} tokens, {len(added):,} of them added", wrong)


def _named(tokenizer: PreTrainedTokenizerFast, number: int) -> str:
    return " and ".join(sorted(repr(text) for text, other in tokenizer.get_vocab().items() if other == number))


def _in_file(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids in the `tokenizer.json` that the tokenizer was loaded from, if it was."""
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
    """Every token of an extended vocabulary has the id that it had, special or not."""
    ids = new.get_vocab() | {token.content: number for number, token in new.added_tokens_decoder.items()}
    before, after = tokens_by_id(old), tokens_by_id(new)
    moved = [
        f"{text!r} moved from {number} to {ids.get(text, 'nowhere')}" if ids.get(text) != number
        else f"{text!r} has the id {number}, and so has {after[number]!r}"
        for number, text in sorted(before.items())
        if ids.get(text) != number or after[number] != text
    ]  # fmt: skip
    return CheckResult.from_failures("old ids", f"{len(before):,} old tokens in an extended vocabulary", moved)


def _template(tokenizer: PreTrainedTokenizerFast, old: PreTrainedTokenizerFast | None) -> CheckResult:
    """What stands around a text are the special tokens of the roles that it should have, and those of the old tokenizer."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    wrong = [
        f"the template inserts the id {number} for {token!r}, whose id is {tokenizer.get_vocab().get(token)}"
        for token, number in template_tokens(spec["post_processor"])
        if tokenizer.get_vocab().get(token) != number
    ]
    roles, sides = special_roles(tokenizer), template_ids(tokenizer)
    for ids, where, allowed in zip(sides, ("before", "behind"), (_BEGINS, _ENDS), strict=True):
        for number in ids:
            role = roles.get(number)
            if role is None or (not role.startswith("special:") and role not in allowed):
                wrong.append(
                    f"{tokenizer.convert_ids_to_tokens(number)!r} ({number}) stands {where} a text, its role is {role}"
                )
    if old is not None:
        matches = matching_roles(old, tokenizer)
        for then, now, where in zip(template_ids(old), sides, ("before", "behind"), strict=True):
            expected = [matches.get(number) for number in then]
            if list(now) != expected:
                wrong.append(f"{list(now)} stand {where} a text; by the old tokenizer it should be {expected}")
    said = " ... ".join(" ".join(map(str, tokenizer.convert_ids_to_tokens(list(side)))) or "nothing" for side in sides)
    return CheckResult.from_failures("template", f"around a text: {said}", wrong)


def _dropper(tokenizer: PreTrainedTokenizerFast, given: bool, extended: bool) -> str | None:
    """What has the tokenizer drop accents, where it is not us; None where it has to keep them."""
    if given:
        return "the tokenizer's own rules"
    if extended:
        return "the old rules, which an extended vocabulary keeps"
    return "strip_accents" if tokenizer.init_kwargs.get("strip_accents") else None


def _marks(tokenizer: PreTrainedTokenizerFast, dropper: str | None) -> CheckResult:
    """The normaliser drops no accent and no vowel sign of a script that the vocabulary has words in, unless `dropper` does."""
    counts = Counter(script(token) for token in canonical_tokens(tokenizer) if token is not None and token.is_word_start)
    own = tokenizer.backend_tokenizer.normalizer
    dropped = [
        f"{name.lower()}: {word!r} becomes {own.normalize_str(word)!r}"
        for name, word in _MARKED.items()
        if counts[name] >= _WORDS // 10 and own is not None and _marks_of(own.normalize_str(word)) < _marks_of(word)
    ]
    if dropped and dropper is not None:
        return CheckResult(check="accents and vowel signs", detail=f"dropped by {dropper}: {'; '.join(dropped)}")
    return CheckResult.from_failures("accents and vowel signs", "of the scripts in the vocabulary", dropped)


def _marks_of(text: str) -> int:
    return sum(unicodedata.category(char)[0] == "M" for char in unicodedata.normalize("NFD", text))


def _scripts(tokenizer: PreTrainedTokenizerFast) -> CheckResult:
    """Words of every script come back from encoding and decoding, blanks and the tokenizer's own normalisation aside."""
    found: dict[str, list[str]] = defaultdict(list)
    for token in canonical_tokens(tokenizer):
        name = script(token)
        if token is not None and token.is_word_start and name and len(found[name]) < _WORDS:
            found[name].append(token.payload.decode())
    own = tokenizer.backend_tokenizer.normalizer
    wrong = []
    for name, members in sorted(found.items()):
        for word in members:
            normal = (own.normalize_str(word) if own is not None else word).replace("\u2581", " ")
            if "".join((back := _back(tokenizer, word)).split()) != "".join(normal.split()):
                wrong.append(f"{name}: {word!r} comes back as {back!r}")
    said = ", ".join(f"{name.lower()} {len(members)}" for name, members in sorted(found.items()))
    return CheckResult.from_failures("round trip by script", said, wrong)


def _languages(tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, Iterable[str]], marks: bool) -> CheckResult:
    """Letters, marks and digits of real words come back, but for case and compatibility forms; unknown words are counted."""
    wrong, shares = [], []
    for lang, lines in sorted(texts.items()):
        counts = Counter(word for line in lines for word in words(line))
        chosen = [word for word, _ in counts.most_common(_WORDS)]
        unknown = [word for word in chosen if tokenizer.unk_token_id in _encoded(tokenizer, word)]
        shares.append(f"{lang} {len(chosen) - len(unknown)} of {len(chosen)}")
        pairs = [(word, _back(tokenizer, word)) for word in sorted(set(chosen) - set(unknown))]
        wrong += [
            f"{lang}: {word!r} comes back as {back!r}" for word, back in pairs if _folded(back, marks) != _folded(word, marks)
        ]
    return CheckResult.from_failures("round trip by language", f"words that are known: {', '.join(shares)}", wrong)


def _encoded(tokenizer: PreTrainedTokenizerFast, word: str) -> list[int]:
    backend: Tokenizer = tokenizer.backend_tokenizer
    return list(backend.encode(word, add_special_tokens=False).ids)


def _back(tokenizer: PreTrainedTokenizerFast, word: str) -> str:
    return str(tokenizer.decode(_encoded(tokenizer, word), clean_up_tokenization_spaces=False))


def _folded(text: str, marks: bool) -> str:
    normal = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(char for char in normal if unicodedata.category(char)[0] in ("LMN" if marks else "LN"))
