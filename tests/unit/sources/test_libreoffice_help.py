"""The LibreOffice help corpus, on small HTML trees that have the structure of the real ones. No network, no apt."""

import html
import os
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import DataError
from data_pipeline.sources import libreoffice_help as help_corpus
from data_pipeline.sources.libreoffice_help import Paragraph, build, copied_share, drop_repeats, main, read_paragraphs
from data_pipeline.text.near_repeats import NearRepeats

TABLES = ("text.parquet", "test_text.parquet", "pairs.parquet", "test_pairs.parquet")


def page(body: str) -> bytes:
    frame = '<header><p id="outside">Help</p></header><div id="DisplayArea">{}</div><footer><p id="bm">x</p></footer>'
    return f'<!DOCTYPE html><html lang="el"><body>{frame.format(body)}</body></html>'.encode()


def texts(body: str) -> list[str]:
    return list(read_paragraphs(page(body)).values())


def sentence(number: int, language: str) -> str:
    """Words that no other number has, so that no two sentences are near-duplicates."""
    return " ".join(f"{language}{chr(97 + number // 26 % 26)}{chr(97 + number % 26)}{chr(107 + n)}" for n in range(8))


def write_help(root: Path, language: str, files: dict[str, dict[str, str]]) -> Path:
    for file, paragraphs in files.items():
        path = root / language / "text" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page("".join(f'<p id="{id_}">{html.escape(text)}</p>' for id_, text in paragraphs.items())))
    return root / language / "text"


def many_files(language: str, count: int = 60) -> dict[str, dict[str, str]]:
    """Files of three paragraphs: a unique one, a common heading, and an untranslated one."""
    return {
        f"swriter/{n:02}.html": {
            "par_1": sentence(n, language),
            "hd_1": f"{language}related {language}topics",
            "par_2": "This paragraph has not been translated yet",
        }
        for n in range(count)
    }


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "help"
    return write_help(root, "en-US", many_files("en")), write_help(root, "el", many_files("el"))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, and a `dpkg` in PATH that unpacks them: here a package is a folder to copy."""
    folder = tmp_path / "packages"
    for package, language, short in (("en-us", "en-US", "en"), ("el", "el", "el")):
        root = folder / f"libreoffice-help-{package}_7.4_all.deb" / "usr/share/libreoffice/help"
        write_help(root, language, many_files(short))
    script(tmp_path, "dpkg", 'mkdir -p "$3" && cp -r "$2"/. "$3"')
    script(tmp_path, "dpkg-deb", 'basename "$2" _all.deb | tr _ "\\t"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return folder


def script(tmp_path: Path, name: str, line: str) -> None:
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return list(pq.read_table(folder / name).to_pylist())


# Extraction


def test_paragraphs_and_headings_of_the_display_area_are_read_in_order() -> None:
    body = '<h1 id="hd_1">Title</h1><ul><li><p id="par_1">First</p></li></ul><h6 id="hd_2">End</h6><p>no id</p>'
    assert read_paragraphs(page(body)) == {"hd_1": "Title", "par_1": "First", "hd_2": "End"}


def test_utf8_is_read_without_a_declaration_and_blanks_are_collapsed() -> None:
    assert texts('<p id="a">\n  Ανοίγει\u00a0τον <span class="emph"> διάλογο</span>.<br>Τέλος</p>') == [
        "Ανοίγει τον διάλογο. Τέλος"
    ]


@pytest.mark.parametrize("name", ["code", "codeintable", "smathcode"])
def test_program_code_is_left_out(name: str) -> None:
    assert texts(f'<p id="a" class="{name}">Dim a</p><p id="b">Text</p>') == ["Text"]


def test_paragraphs_inside_listings_are_left_out() -> None:
    listing = '<div class="bascode"><p id="a">x</p></div><pre><p id="b">y</p></pre>'
    assert texts(f'{listing}<p id="c">Press <span class="keycode">F1</span></p>') == ["Press F1"]


@pytest.mark.parametrize("name", ["MAC", "UNIX", "WIN", "UNIX_1", "WIN_x"])
def test_the_variant_for_another_system_is_dropped_and_its_tail_kept(name: str) -> None:
    switch = f'<span class="switchinline"><span class="{name}">Command</span>+<span>Ctrl</span></span>'
    assert texts(f'<p id="a">Press {switch}+C to copy.</p>') == ["Press +Ctrl+C to copy."]


def test_a_class_that_only_starts_like_a_system_is_kept() -> None:
    assert texts('<p id="a">Open <span class="WINDOW">it</span></p>') == ["Open it"]


def test_the_default_variant_for_a_program_is_read() -> None:
    switch = '<span class="switchinline"><span class="IMPRESS">slide</span><span>page</span></span>'
    assert texts(f'<p id="a">The next {switch}.</p>') == ["The next page."]


def test_the_only_variant_is_read() -> None:
    switch = '<span class="switchinline"><span class="WRITER">AutoCorrect - </span></span>'
    assert texts(f'<p id="a">Tools - {switch}Options</p>') == ["Tools - AutoCorrect - Options"]


def test_an_id_with_two_texts_is_left_out_and_one_repeated_text_is_kept() -> None:
    assert texts('<p id="a">One</p><p id="a">Two</p><p id="b">Same</p><p id="b">Same</p>') == ["Same"]


def test_a_broken_reference_is_left_out() -> None:
    assert texts('<p id="a">[text/scalc/01/func_imcos.xhp#imcos_head not found].</p><p id="b"> </p>') == []


def test_a_package_with_two_languages_gives_the_one_asked_for(tmp_path: Path) -> None:
    for language in ("ca", "ca-valencia", "pt-BR"):
        write_help(tmp_path, language, {"a.html": {"p": "x"}})
    assert help_corpus.language_folder(tmp_path, "ca") == tmp_path / "ca/text"
    assert help_corpus.language_folder(tmp_path, "ca-valencia") == tmp_path / "ca-valencia/text"
    assert help_corpus.language_folder(tmp_path, "pt-br") == tmp_path / "pt-BR/text"


def test_paragraphs_of_only_one_language_are_left_out(tmp_path: Path) -> None:
    english = write_help(tmp_path, "en-US", {"a.html": {"p": "one", "q": "two"}, "c.html": {"p": "three"}})
    target = write_help(tmp_path, "el", {"a.html": {"q": "δύο", "r": "τέσσερα"}, "b.html": {"p": "πέντε"}})
    assert list(help_corpus.read_help(english, target)) == [Paragraph("a.html", "q", "two", "δύο")]


# Repeats and the split


@pytest.mark.parametrize(
    ("target", "expected"), [("Click OK .", False), ("click ok", False), ("OK 1.5", True), ("Κλικ στο OK", True)]
)
def test_a_translation_differs_in_more_than_blanks_and_punctuation(target: str, expected: bool) -> None:
    assert help_corpus.is_translated(Paragraph("a.html", "p", "Click OK.", target)) is expected


def test_a_paragraph_with_a_repeated_side_is_dropped() -> None:
    first, second = Paragraph("a.html", "p", "one", "ένα"), Paragraph("d.html", "p", "two", "δύο")
    repeats = [Paragraph("b.html", "p", "one", "μία"), Paragraph("c.html", "p", "an other", "ένα")]
    assert drop_repeats([first, *repeats, second]) == [first, second]


def test_the_sides_share_no_file_and_no_text(trees: tuple[Path, Path]) -> None:
    corpus = build(*trees, test_pairs=300)
    assert corpus.train
    assert corpus.test
    for attribute in ("file", "english", "target"):
        train, test = ({getattr(paragraph, attribute) for paragraph in side} for side in (corpus.train, corpus.test))
        assert not train & test, attribute


def test_repeats_are_dropped_before_the_split(trees: tuple[Path, Path]) -> None:
    corpus = build(*trees, test_pairs=300)
    headings = [paragraph for paragraph in corpus.train + corpus.test if paragraph.id == "hd_1"]
    assert [paragraph.file for paragraph in headings] == ["swriter/00.html"]


def test_the_fates_sum_to_the_paragraphs_read(trees: tuple[Path, Path]) -> None:
    fates = build(*trees, test_pairs=300).fates
    assert sum(fates.values()) == 60 * 3
    assert fates["untranslated"] == 60
    assert fates["repeated"] == 59


def test_about_a_tenth_of_the_files_is_drawn_for_testing() -> None:
    drawn = sum(help_corpus.is_test_file(f"swriter/{n}.html") for n in range(2000))
    assert 150 < drawn < 250


# Near-repeats

SIX_WORDS = "Opens the chart dialog from here"


@pytest.mark.parametrize("changed", range(6))
def test_a_sentence_with_one_changed_word_is_near(changed: int) -> None:
    seen = NearRepeats(spaced=True)
    seen.add(SIX_WORDS)
    words = SIX_WORDS.split()
    words[changed] = "another"
    assert seen.has_near(" ".join(words))


def test_case_punctuation_and_numbers_do_not_hide_a_repeat() -> None:
    seen = NearRepeats(spaced=True)
    seen.add("=YIELD(1999; 15) returns 7 percent")
    assert seen.largest_overlap("=yield(2004; 3), returns 12 PERCENT.") == 1.0


def test_a_sentence_with_a_common_phrase_is_not_near() -> None:
    seen = NearRepeats(spaced=True)
    seen.add("Click the icon at the left of the toolbar to see the list")
    assert not seen.has_near("Click the icon that you dragged before and wait until all formulas were computed again")


def test_japanese_is_compared_by_characters() -> None:
    seen = NearRepeats(spaced=False)
    seen.add("選択した複数のオブジェクトの右端に整列させます。")
    assert seen.has_near("選択した複数のオブジェクトの左端に整列させます。")
    assert not seen.has_near("印刷するときのページの倍率を定義します。")


def test_test_pairs_near_training_or_near_each_other_are_passed_over() -> None:
    train = [Paragraph("a.html", "p", SIX_WORDS, sentence(1, "el"))]
    near_english = Paragraph("t.html", "1", SIX_WORDS + " too", sentence(2, "el"))
    near_target = Paragraph("t.html", "2", sentence(3, "en"), sentence(1, "el") + " ακόμη")
    twins = [Paragraph("t.html", f"3{n}", sentence(4, "en") + f" {n * 'x'}", sentence(5 + n, "el")) for n in (1, 2)]
    clean = Paragraph("t.html", "4", sentence(8, "en"), sentence(9, "el"))
    drawn, near = help_corpus.draw_pairs(train, [near_english, near_target, *twins, clean], count=9, spaced=True)
    assert clean in drawn
    assert len(set(twins) & set(drawn)) == 1
    assert (len(drawn), near) == (2, 3)


def test_test_pairs_have_6_to_40_words() -> None:
    lengths = {5: False, 6: True, 40: True, 41: False}
    for length, expected in lengths.items():
        candidate = Paragraph("t.html", str(length), " ".join(f"w{chr(97 + n % 26)}{n}" for n in range(length)), "κάτι")
        assert bool(help_corpus.draw_pairs([], [candidate], count=1, spaced=True)[0]) is expected


# Command


def test_the_command_writes_four_tables_and_a_notice(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["--language", "el", "--packages", str(packages), "--output", str(out), "--test-pairs", "2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted((*TABLES, "NOTICE"))
    assert "libreoffice-help-el 7.4" in (out / "NOTICE").read_text()
    for name in TABLES[:2]:
        assert pq.read_schema(out / name).names == ["id", "lang", "text"]
    for name in TABLES[2:]:
        assert pq.read_schema(out / name).names == ["id", "anchor", "positive"]
    assert len(rows(out, "test_pairs.parquet")) == 2
    first = rows(out, "text.parquet")[0]
    assert first == {"id": "swriter/00.html", "lang": "el", "text": f"{sentence(0, 'el')}\nelrelated eltopics"}


def test_short_paragraphs_are_text_but_no_pairs(packages: Path, tmp_path: Path) -> None:
    assert main(["--language", "el", "--packages", str(packages), "--output", str(tmp_path / "out")]) == 0
    assert all(len(row["anchor"].split()) >= 5 for row in rows(tmp_path / "out", "pairs.parquet"))
    assert any("elrelated" in row["text"] for row in rows(tmp_path / "out", "text.parquet"))


def test_two_runs_write_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert main(["--language", "el", "--packages", str(packages), "--output", str(tmp_path / name)]) == 0
    for name in (*TABLES, "NOTICE"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_without_packages_apt_downloads_both_languages(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "apt-get", f'echo "$@" > "{tmp_path}/asked"; cp -r "{packages}"/. .')
    assert main(["--language", "el", "--output", str(tmp_path / "out")]) == 0
    wanted = "-o APT::Sandbox::User=root download libreoffice-help-en-us libreoffice-help-el"
    assert (tmp_path / "asked").read_text().strip() == wanted


def test_an_untranslated_help_is_refused_with_the_counts(tmp_path: Path) -> None:
    english = write_help(tmp_path, "en-US", many_files("en"))
    with pytest.raises(DataError, match=r"no test pair is left of 180 paragraphs \(180 untranslated"):
        build(english, write_help(tmp_path, "hi", many_files("en")), test_pairs=300)


@pytest.mark.parametrize(
    ("language", "apt", "message"),
    [
        ("xx", 'echo "E: Unable to locate package libreoffice-help-xx" >&2; exit 100', "Unable to locate package"),
        ("el", "exit 3", "exit code 3"),
    ],
)
def test_apt_s_message_is_passed_on(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], language: str, apt: str, message: str
) -> None:
    script(tmp_path, "apt-get", apt)
    assert main(["--language", language, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "apt-get update" in error
    assert not (tmp_path / "out").exists()


def test_a_machine_without_apt_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--language", "el", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: apt-get is not installed. Run this on Debian or Ubuntu.\n"


def test_the_error_for_a_missing_package_lists_the_others(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--language", "eu", "--packages", str(packages), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "0 packages for 'eu'" in error
    assert "libreoffice-help-el_7.4_all.deb" in error
    assert "apt-get download libreoffice-help-eu" in error
    assert not (tmp_path / "out").exists()


def test_two_versions_of_a_package_are_refused(packages: Path) -> None:
    (packages / "libreoffice-help-el_7.5_all.deb").mkdir()
    with pytest.raises(DataError, match="2 packages for 'el' where one is needed"):
        help_corpus.find_package(packages, "el")


def test_a_package_without_text_is_refused(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (packages / "libreoffice-help-sk_7.4_all.deb" / "usr").mkdir(parents=True)
    assert main(["--language", "sk", "--packages", str(packages), "--output", str(tmp_path / "out")]) == 2
    assert "holds no help text in 'sk'" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_refused(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["--language", "el", "--packages", str(packages), "--output", str(tmp_path / "file")]) == 2
    assert "--output" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["--language", "en-us"], ["--language", "../el"], ["--language", "", "--x"]])
def test_an_invalid_language_name_is_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--output", str(tmp_path / "out")])
    assert ended.value.code == 2


def test_zero_test_pairs_are_refused_with_the_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--language", "el", "--output", str(tmp_path), "--test-pairs", "0"])
    assert "--test-pairs 0: give 1 or more" in capsys.readouterr().err


def test_the_copied_share_counts_letters_in_words_of_the_other_side() -> None:
    greek = Paragraph("f", "i", "Open the Calc sheet 12", "Ανοίξτε το φύλλο Calc 12")
    assert copied_share(greek, spaced=True) == pytest.approx(6 / 20)
    japanese = Paragraph("f", "i", "Open the Calc sheet", "Calcのシートを開く")
    assert copied_share(japanese, spaced=False) == pytest.approx(4 / 11)


def test_a_pair_that_is_mostly_copied_is_no_test_pair() -> None:
    copied = Paragraph("f", "1", "Use the LibreOffice Calc function SUM here", "Η LibreOffice Calc function SUM")
    original = Paragraph("f", "2", "Click the blue button to close it", "Πατήστε το μπλε κουμπί για να κλείσει")
    assert help_corpus.draw_pairs([], [copied, original], count=9, spaced=True)[0] == [original]
