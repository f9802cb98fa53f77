"""Replaced vocabularies: what templates insert, how many pieces there are, and rules that do other scripts no harm."""

import json

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AlbertTokenizer, PreTrainedTokenizerFast

from data_pipeline.errors import ConfigError
from data_pipeline.shards.framing import frame_of
from data_pipeline.tokenizers import rules, train
from data_pipeline.tokenizers.template import template_tokens
from tests.conftest import FAMILIES, byte_level, unigram, wordpiece
from tests.tokenizer_styles import QWEN_PATTERN, STYLES, llama3, qwen3

HINDI = [
    "यह हिन्दी में लिखा हुआ एक वाक्य है।",
    "किताब और कलम मेज़ पर रखी हुई थीं।",
    "विद्यालय में विद्यार्थी पढ़ते हैं और खेलते हैं।",
    "प्रधानमंत्री ने दिल्ली में नई योजना की घोषणा की।",
    "बारिश के दिनों में गाँव की नदियाँ भर जाती हैं।",
]
"""Written for this test."""


@pytest.mark.parametrize("name", sorted(STYLES))
@pytest.mark.parametrize("size", [700, 1800])
def test_templates_insert_the_tokens_of_their_roles_in_smaller_and_larger_vocabularies(name, size, english, greek) -> None:
    source = STYLES[name](english)
    made = train.train(source, greek, train.TokenizerConfig(vocab_size=size))
    assert len(made) == size
    before, after = frame_of(source), frame_of(made)
    for old, new in ((before.prefix, after.prefix), (before.suffix, after.suffix)):
        assert made.convert_ids_to_tokens(list(new)) == source.convert_ids_to_tokens(list(old))
    spec = json.loads(made.backend_tokenizer.to_str())
    assert all(made.convert_tokens_to_ids(token) == number for token, number in template_tokens(spec["post_processor"]))
    assert made(greek[0][:80]).input_ids[0] < size
    names = {token.content for token in source.added_tokens_decoder.values()}
    assert names == {token.content for token in made.added_tokens_decoder.values()}


@pytest.fixture(scope="module")
def many_rare(greek) -> list[str]:
    """20,000 characters that occur once each in real text, 2 % of it."""
    lines = [line for text in greek * 3 for line in text.split("\n")]
    rare = [chr(code) for code in range(0x4E00, 0x4E00 + 20_000)]
    share = -(-len(rare) // len(lines))
    return [" ".join([line, *rare[at * share : (at + 1) * share]]) for at, line in enumerate(lines)]


SOURCES = FAMILIES | {"llama3": llama3}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_20_000_rare_characters_never_make_more_pieces_than_asked(name, english, many_rare) -> None:
    source = SOURCES[name](english)
    made = train.train(source, many_rare, train.TokenizerConfig(vocab_size=2048, character_coverage=0.96))
    assert len(made) == 2048
    held = sum("\u4e00" <= text[-1] <= "\u9fff" for text in made.get_vocab())
    assert held < 200
    if name in ("byte_level", "byte_fallback", "llama3"):
        assert made.decode(made("abc 乙", add_special_tokens=False).input_ids).strip() == "abc 乙"


@pytest.mark.parametrize("name", ["wordpiece", "unigram", "byte_fallback"])
def test_an_alphabet_that_does_not_fit_is_an_error_with_figures(name, english, many_rare) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size=2,048 cannot hold .* pieces of one character") as error:
        train.train(FAMILIES[name](english), many_rare, train.TokenizerConfig(vocab_size=2048, character_coverage=1.0))
    assert "character_coverage" in str(error.value)


def test_special_tokens_and_bytes_that_do_not_fit_are_an_error(english, greek) -> None:
    with pytest.raises(ConfigError, match="256 special tokens and 256 pieces"):
        train.train(llama3(english), greek, train.TokenizerConfig(vocab_size=500))


def albert(texts: list[str]) -> PreTrainedTokenizerFast:
    """ALBERT's own class, whose normaliser is a sequence with NFKD and StripAccents."""
    base = unigram([text.lower() for text in texts])
    pieces = [[piece, score] for piece, score in json.loads(base.backend_tokenizer.to_str())["model"]["vocab"]]
    names = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [(name, 0.0) for name in names] + [(p, s) for p, s in pieces if not p.startswith("<")]
    return AlbertTokenizer(vocab=vocab)


@pytest.mark.parametrize("make", [albert, wordpiece])
def test_accents_stay_whatever_the_source_does_with_them(make, english, greek) -> None:
    source = make(english)
    normal = source.backend_tokenizer.normalizer.normalize_str("Αγγελία")
    made = train.train(source, greek, train.TokenizerConfig(vocab_size=900))
    assert normal == "αγγελια"
    assert made.backend_tokenizer.normalizer.normalize_str("Αγγελία") == "αγγελία"
    assert made.decode(made("αγγελία", add_special_tokens=False).input_ids) == "αγγελία"
    kept = train.train(source, greek, train.TokenizerConfig(vocab_size=900, strip_accents=True))
    assert kept.backend_tokenizer.normalizer.normalize_str("Αγγελία") == "αγγελια"


def test_only_what_drops_accents_leaves_a_normaliser() -> None:
    def after(normalizer: normalizers.Normalizer) -> str:
        spec = json.loads(normalizer.__getstate__())
        backend = Tokenizer.from_str(byte_level(["a"]).backend_tokenizer.to_str())
        changed = json.loads(backend.to_str()) | {"normalizer": rules.with_accents(spec)}
        return Tokenizer.from_str(json.dumps(changed)).normalizer.normalize_str("Ή`Ạ")

    accents = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    assert after(normalizers.Sequence([normalizers.Replace("`", "'"), accents, normalizers.Lowercase()])) == "ή'ạ"
    assert after(normalizers.NFD()) == "Η\u0301`A\u0323"
    assert after(normalizers.BertNormalizer(lowercase=True)) == "ή`ạ"


@pytest.mark.parametrize("pattern", [rules.GPT2, QWEN_PATTERN])
def test_fixed_patterns_cut_no_word_and_change_nothing_else(pattern, english, greek) -> None:
    old, new = (
        pre_tokenizers.Split(Regex(text), "isolated") for text in (pattern, pattern.replace(rules.LETTERS, rules.WITH_MARKS))
    )
    for text in [*english[:100], *greek[:50], "❤️ 👩‍💻 a1b2 'Tis  don't\n\nx"]:
        assert new.pre_tokenize_str(text) == old.pre_tokenize_str(text)
    assert rules.word_cuts(old, HINDI).share > 0.5
    assert rules.word_cuts(new, [*HINDI, "தமிழ் மொழி", "বাংলা ভাষা", "කොළඹ ශ්‍රී ලංකා", "هٰذَا كِتَابٌ", "می‌خواهم"]).share == 0


@pytest.mark.parametrize("make", [byte_level, llama3])
def test_a_new_vocabulary_joins_hindi_words_that_the_source_s_pattern_cuts(make, english) -> None:
    source, said = make(english), []
    text = HINDI * 60 + english
    made = train.train(source, text, train.TokenizerConfig(vocab_size=900), said.append)
    assert said == []
    assert len(made(" हिन्दी", add_special_tokens=False).input_ids) == 1
    assert made.decode(made("यह हिन्दी में है।", add_special_tokens=False).input_ids) == "यह हिन्दी में है।"
    assert (
        len(train.train(source, english, train.TokenizerConfig(vocab_size=700))(" हिन्दी", add_special_tokens=False).input_ids)
        > 3
    )


@pytest.mark.parametrize("config", [
    train.TokenizerConfig(vocab_size=900, extend=True),
])  # fmt: skip
def test_an_extended_vocabulary_says_what_the_old_pattern_costs(config, english) -> None:
    said: list[str] = []
    made = train.train(llama3(english), HINDI * 60, config, said.append)
    assert len(made(" हिन्दी", add_special_tokens=False).input_ids) > 3
    [line] = said
    assert "of the words at vowel signs" in line
    cut, fixed = (float(part.split()[0]) for part in line.split("): ")[1].split(" pieces a word, "))
    assert cut > 2 * fixed


def test_a_class_that_fixes_its_pattern_is_warned_of(english, tmp_path) -> None:
    """In a folder of a Qwen 2 model transformers takes Qwen2Tokenizer, with its own pattern, whatever the file says."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    source = qwen3(english)
    source.save_pretrained(tmp_path)
    said: list[str] = []
    made = train.train(train.load(str(tmp_path)), HINDI * 60 + english, train.TokenizerConfig(vocab_size=900), said.append)
    assert "transformers keeps the rules of this class as they are" in said[0]
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    said.clear()
    made = train.train(train.load(str(tmp_path)), HINDI * 60 + english, train.TokenizerConfig(vocab_size=900), said.append)
    assert said == []
    made.save_pretrained(tmp_path)
    again = train.load(str(tmp_path))
    assert len(again(" हिन्दी", add_special_tokens=False).input_ids) == 1


def test_an_extended_uncased_vocabulary_says_which_marks_it_drops(english, greek) -> None:
    said: list[str] = []
    train.train(wordpiece(english), greek, train.TokenizerConfig(vocab_size=900, extend=True), said.append)
    assert "drops accents or vowel signs of" in said[0]
    said.clear()
    train.train(wordpiece(english), greek, train.TokenizerConfig(vocab_size=900), said.append)
    assert not said


@pytest.mark.parametrize("more", [0, 1])
def test_a_unigram_vocabulary_of_the_least_size_has_no_more_pieces(english, greek, more: int) -> None:
    """`tokenizers` keeps all the pieces that training starts from where there is room for none."""
    with pytest.raises(ConfigError) as refusal:
        train.train(unigram(english), many(greek), train.TokenizerConfig(vocab_size=300, character_coverage=1.0))
    least = int(refusal.value.fix.split()[3].replace(",", ""))
    size = least + more
    made = train.train(unigram(english), many(greek), train.TokenizerConfig(vocab_size=size, character_coverage=1.0))
    assert len(made) <= size


def many(greek: list[str]) -> list[str]:
    """Text with an alphabet of some 400 characters."""
    return [*greek, *(" ".join(chr(0x4E00 + number + place) for place in range(8)) for number in range(0, 320, 8))]
