"""Words of many scripts, compared with expectations by hand and with the letters and graphemes of `regex`."""

from collections import Counter

import pytest
import regex

from data_pipeline.text.words import words
from trainer.word_alignment import dictionary

BY_HAND = {
    "hindi": ("यह हिन्दी में क्‍षमता का विवरण है।", ["यह", "हिन्दी", "में", "क्‍षमता", "का", "विवरण", "है"]),
    "tamil": ("தமிழ் மொழி இனிமையானது.", ["தமிழ்", "மொழி", "இனிமையானது"]),
    "bengali": ("বাংলা ভাষা সুন্দর।", ["বাংলা", "ভাষা", "সুন্দর"]),
    "sinhala": ("සිංහල භාෂාව ශ්‍රී ලංකාවේ", ["සිංහල", "භාෂාව", "ශ්‍රී", "ලංකාවේ"]),
    "thai, letter by letter": ("ที่นี่ดี", ["ที่", "นี่", "ดี"]),
    "khmer, letter by letter": ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),
    "arabic with vowel signs": ("هٰذَا كِتَابٌ جَدِيدٌ.", ["هٰذَا", "كِتَابٌ", "جَدِيدٌ"]),
    "persian": ("می‌خواهم بروم", ["می‌خواهم", "بروم"]),
    "japanese": ("ファイルを開くメニュー。", ["ファイル", "を", "開", "く", "メニュー"]),
    "chinese": ("打开文件，", ["打", "开", "文", "件"]),
    "korean": ("한국어 문서", ["한국어", "문서"]),
    "greek": ("Ανοίξτε το αρχείο (ODF).", ["Ανοίξτε", "το", "αρχείο", "ODF"]),
    "latin": ("Don't stop: l’eau, x86, 12 co-op", ["Don't", "stop", "l’eau", "x86", "co", "op"]),
    "decomposed": ("re\u0301sume\u0301", ["re\u0301sume\u0301"]),
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_words_match_the_expectations(name: str) -> None:
    text, expected = BY_HAND[name]
    assert words(text) == expected


# Khmer's subscript letters are words of their own by UAX 29's word rules, and part of the grapheme by its newer ones.
@pytest.mark.parametrize("name", sorted(set(BY_HAND) - {"khmer, letter by letter"}))
def test_every_letter_is_in_a_word_and_no_grapheme_is_cut(name: str) -> None:
    text, _ = BY_HAND[name]
    letters = [cluster for cluster in regex.findall(r"\X", text) if regex.search(r"\p{L}", cluster)]
    clusters = [cluster for word in words(text) for cluster in regex.findall(r"\X", word) if regex.search(r"\p{L}", cluster)]
    assert clusters == letters


def test_words_of_real_text_are_the_chunks_between_blanks(greek, english) -> None:
    """In scripts with blanks, nearly every chunk between blanks without marks and digits is one word."""
    for texts in (greek, english):
        plain = [chunk for text in texts for chunk in text.split() if regex.fullmatch(r"\p{L}+", chunk)]
        counts = Counter(word for text in texts for word in words(text))
        assert all(counts[chunk] > 0 for chunk in plain)


def test_the_dictionary_counts_whole_words(pairs) -> None:
    assert dictionary.words("हिन्दी HINDI") == ["हिन्दी", "hindi"]
    mined = dict(
        dictionary.mine(
            ["file open", "open door", "open window", "the file"] * 3, ["फ़ाइल खोलें", "द्वार खोलें", "खिड़की खोलें", "फ़ाइल"] * 3
        )
    )
    assert mined["file"] == "फ़ाइल"
    assert mined["open"] == "खोलें"
