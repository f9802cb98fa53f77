"""LibreOffice's help as a corpus: monolingual text and English pairs, split so that no test text is in training.

    python -m data_pipeline.sources.libreoffice_help --language el --output data_pipeline/sources/sample

Debian ships the help of each language as the same 2,561 HTML files, in which a paragraph has the same id in every
language. The corpus is chosen because it installs through apt wherever Debian does, comes in 30 languages and may be
redistributed; its price is one domain and many near-repeats ("Opens a dialog where you can ..."). Hence the order of
the steps: repeats leave before the split, files (not paragraphs) are drawn for the test side, and a test pair that
resembles a training text on either side is dropped.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lxml import etree, html

from data_pipeline.artifacts import storage
from data_pipeline.errors import DataError, ScionError
from data_pipeline.keyed_random import key
from data_pipeline.text.near_repeats import NearRepeats, normalised_words

SEED = "libreoffice help 1"
"""Decides which files are test files and in which order test pairs are drawn; a new seed makes a new benchmark."""
TEST_SHARE = 0.1
"""Share of the files on the test side."""
MIN_WORDS, TEST_WORDS = 5, range(6, 41)
"""English words of a pair, and of a test pair: shorter ones are menu names, longer ones are found by length alone."""
MAX_COPIED = 0.2
"""Share of a test pair's target letters that may stand in English words of the other side (product names, formulas):
such pairs are found without knowing the language. Of 300 Greek pairs drawn without this limit, the English MiniLM finds
1 % of those that share no Latin word or number and 88 % of those where a fifth to a third of the words is such."""
UNSPACED = {"bo", "dz", "ja", "km", "lo", "my", "th", "zh"}
PACKAGED_WITH = {"ca-valencia": "ca"}
"""Languages that live in another language's package."""

# In this release the classes are MAC, UNIX and WIN; others write them with a suffix (UNIX_...).
_SYSTEM = re.compile(r"(MAC|UNIX|WIN)(_.*)?")
# `code` is also in codeintable, smathcode, bascode and pycode. An inline `span.keycode` is text and stays.
_PARAGRAPHS = etree.XPath(
    '//div[@id="DisplayArea"]//*[@id][self::p or self::h1 or self::h2 or self::h3 or self::h4 or self::h5 or self::h6]'
    '[not(ancestor-or-self::*[contains(@class, "code")])][not(ancestor::pre)]'
)
_UTF8 = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
# Left in the HTML where a section has another name in the translation: 92 paragraphs of the Japanese help.
_BROKEN = re.compile(r"\[text/\S+ not found\]")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph in both languages; `file` is relative to the language's `text` folder."""

    file: str
    id: str
    english: str
    target: str

    @property
    def key(self) -> str:
        return f"{self.file}#{self.id}"

    @property
    def words(self) -> int:
        return len(self.english.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The two sides of the split and the drawn test pairs."""

    train: list[Paragraph]
    test: list[Paragraph]
    test_pairs: list[Paragraph]
    near_repeats: int
    """Candidates for `test_pairs` that were passed over."""
    fates: dict[str, int]
    """Counts that sum to the paragraphs read."""


def run(*command: str, fix: str, folder: Path | None = None) -> str:
    """The output of a command; `fix` is what to do when it fails.

    Raises:
        DataError: the program is missing or failed; names it with the last line it said.
    """
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed.", fix="Run this on Debian or Ubuntu.") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise DataError(f"{command[0]} failed: {said}.", fix=fix) from error


def find_package(folder: Path, language: str) -> Path:
    """The downloaded package of a language.

    Raises:
        DataError: there is none, or more than one version.
    """
    found = sorted(folder.glob(f"libreoffice-help-{language}_*.deb"))
    if len(found) == 1:
        return found[0]
    there = ", ".join(sorted(path.name for path in folder.glob("*.deb"))) or "no .deb file"
    what = f"{len(found)} packages for {language!r} where one is needed; the folder has {there}."
    fix = f"Run `apt-get download libreoffice-help-{language}` there, or leave --packages out."
    raise DataError(what, f"--packages {folder}", fix)


def unpack(language: str, packages: Path | None, folder: Path) -> tuple[Path, list[str]]:
    """Unpacks both languages below `folder`; the folder that holds them, and a `package version` line for each."""
    names = ["en-us", PACKAGED_WITH.get(language, language)]
    if packages is None:
        packages = folder / "packages"
        packages.mkdir()
        # The sandbox user may not write into our temporary folder, which apt reports at length when it runs as root.
        wanted = [f"libreoffice-help-{name}" for name in names]
        fix = "Run `apt-get update`; `apt-cache pkgnames libreoffice-help-` lists the languages that there are."
        run("apt-get", "-o", "APT::Sandbox::User=root", "download", *wanted, folder=packages, fix=fix)
    versions = []
    fix = "Download the packages again."
    for package in [find_package(packages, name) for name in names]:
        run("dpkg", "-x", str(package), str(folder / "root"), fix=fix)
        versions.append(run("dpkg-deb", "--show", str(package), fix=fix).strip().replace("\t", " "))
    return folder / "root/usr/share/libreoffice/help", versions


def _pieces(element: Any) -> Iterator[str]:
    """Text of an element without the variants that are for other systems.

    Of a `switchinline` only the last variant is read, which is the default where there is one: read together they
    would glue to "slidepage".
    """
    yield element.text or ""
    variants = [child for child in element if not any(map(_SYSTEM.fullmatch, (child.get("class") or "").split()))]
    if element.get("class") == "switchinline":
        variants = variants[-1:]
    for child in element:
        if child.tag == "br":
            yield " "
        elif child in variants:
            yield from _pieces(child)
        yield child.tail or ""


def read_paragraphs(content: bytes) -> dict[str, str]:
    """Paragraph id to text with single spaces, in document order; no program code, nothing broken or empty.

    An embedded section keeps its ids, so two sections may bring the same id with different texts. Such ids are left
    out: sections are sorted by title, so their order differs between languages and the n-th is not the n-th.
    """
    found: dict[str, set[str]] = {}
    for element in _PARAGRAPHS(html.document_fromstring(content, parser=_UTF8)):
        text = " ".join("".join(_pieces(element)).split())
        if text and not _BROKEN.search(text):
            found.setdefault(element.get("id"), set()).add(text)
    return {name: next(iter(texts)) for name, texts in found.items() if len(texts) == 1}


def language_folder(root: Path, language: str) -> Path:
    """The folder of a language below `help`, whose name has capitals (pt-BR) that the package name has not.

    Raises:
        DataError: the package has no text, as that of Slovak.
    """
    for folder in sorted(root.glob("*/text")):
        if folder.parent.name.lower() == language:
            return folder
    raise DataError(f"the package holds no help text in {language!r}.", f"--language {language}", "Take another one.")


def read_help(english: Path, target: Path) -> Iterator[Paragraph]:
    """The paragraphs that both languages have, files in sorted order, paragraphs in the target's document order."""
    for file in sorted(path.relative_to(target).as_posix() for path in target.rglob("*.html")):
        anchors = read_paragraphs((english / file).read_bytes()) if (english / file).is_file() else {}
        for name, text in read_paragraphs((target / file).read_bytes()).items():
            if name in anchors:
                yield Paragraph(file, name, anchors[name], text)


def is_translated(paragraph: Paragraph) -> bool:
    """Whether the sides differ in more than blanks and punctuation; an untranslated paragraph is the English one."""
    return "".join(normalised_words(paragraph.english)) != "".join(normalised_words(paragraph.target))


def drop_repeats(paragraphs: list[Paragraph]) -> list[Paragraph]:
    """The first of the paragraphs that share their English or their target text.

    Over all lengths and before the split: whatever is built from the result, text or pairs, cannot have the same
    paragraph on both sides of it.
    """
    english: set[str] = set()
    target: set[str] = set()
    kept: list[Paragraph] = []
    for paragraph in paragraphs:
        if paragraph.english not in english and paragraph.target not in target:
            kept.append(paragraph)
            english.add(paragraph.english)
            target.add(paragraph.target)
    return kept


def is_test_file(file: str) -> bool:
    return key(SEED, "file", file) / 2**64 < TEST_SHARE


def copied_share(paragraph: Paragraph, spaced: bool) -> float:
    """Share of the target's letters and digits in words (in runs of ASCII, without spaces) that the English side has."""
    english = set(re.findall(r"\w+", paragraph.english.casefold()))
    target = paragraph.target.casefold()
    words = re.findall(r"\w+" if spaced else r"[a-z0-9_]+", target)
    return sum(len(word) for word in words if word in english) / max(1, len(re.findall(r"\w", target)))


def draw_pairs(train: list[Paragraph], test: list[Paragraph], count: int, spaced: bool) -> tuple[list[Paragraph], int]:
    """`count` test pairs in the seed's order, none near a training text or another test pair; and how many were near.

    Any prefix of the result is a sample, too. All of the training paragraphs count, also those too short for a pair,
    because they are in the training text.
    """
    english, target = NearRepeats(spaced=True), NearRepeats(spaced=spaced)
    for paragraph in train:
        english.add(paragraph.english)
        target.add(paragraph.target)
    drawn: list[Paragraph] = []
    near = 0
    candidates = [p for p in test if p.words in TEST_WORDS and copied_share(p, spaced) <= MAX_COPIED]
    for paragraph in sorted(candidates, key=lambda paragraph: key(SEED, "pair", paragraph.key)):
        if len(drawn) == count:
            break
        if english.has_near(paragraph.english) or target.has_near(paragraph.target):
            near += 1
        else:
            drawn.append(paragraph)
            english.add(paragraph.english)
            target.add(paragraph.target)
    return drawn, near


def build(english: Path, target: Path, test_pairs: int) -> Corpus:
    """The corpus of two languages' `text` folders.

    Raises:
        DataError: nothing is left for training, or for testing.
    """
    language = target.parent.name
    found = list(read_help(english, target))
    rows = [paragraph for paragraph in found if is_translated(paragraph)]
    kept = drop_repeats(rows)
    test = [paragraph for paragraph in kept if is_test_file(paragraph.file)]
    train = [paragraph for paragraph in kept if not is_test_file(paragraph.file)]
    drawn, near = draw_pairs(train, test, test_pairs, spaced=language.split("-")[0] not in UNSPACED)
    fates = {"untranslated": len(found) - len(rows), "repeated": len(rows) - len(kept)}
    fates |= {"train": len(train), "test": len(test)}
    if not drawn or all(paragraph.words < MIN_WORDS for paragraph in train):
        counts = ", ".join(f"{count:,} {fate}" for fate, count in fates.items())
        what = f"no {'training' if drawn else 'test'} pair is left of {len(found):,} paragraphs ({counts})."
        raise DataError(what, f"--language {language}", "Take a language whose help is translated.")
    return Corpus(train=train, test=test, test_pairs=drawn, near_repeats=near, fates=fates)


def text_table(paragraphs: list[Paragraph], language: str) -> pa.Table:
    """One document a file: its translated paragraphs, a line each."""
    files: dict[str, list[str]] = {}
    for paragraph in paragraphs:
        files.setdefault(paragraph.file, []).append(paragraph.target)
    return pa.Table.from_pylist([{"id": f, "lang": language, "text": "\n".join(files[f])} for f in files])


def pair_table(paragraphs: list[Paragraph]) -> pa.Table:
    return pa.Table.from_pylist([{"id": p.key, "anchor": p.english, "positive": p.target} for p in paragraphs])


def to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # No dictionaries: nearly every value is distinct. Level 19 costs a second, once, for a smaller repository.
    pq.write_table(table, sink, compression="zstd", compression_level=19, use_dictionary=False)
    return bytes(sink.getvalue().to_pybytes())


def notice(language: str, versions: list[str]) -> bytes:
    """Where the text is from, under which licence, and how to make the files again."""
    packages = "\n".join(f"    {version}" for version in versions)
    return f"""\
The Parquet files in this folder hold text of the LibreOffice help, in English and in the language {language!r}.

Copyright 2000, 2010 Oracle and/or its affiliates; 2000, 2010 and later LibreOffice contributors and their affiliates.
The text is under the Mozilla Public License, version 2.0 (https://mozilla.org/MPL/2.0/). Parts of it come from
Apache OpenOffice and are under the Apache License, version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).

It was taken from these Debian packages (the source is at https://www.libreoffice.org/):

{packages}

What was changed: paragraphs were taken out of the HTML files; program code, untranslated and repeated paragraphs
and phrases for one operating system were left out; the rest was split into a training and a test side.

These files are made again by

    python -m data_pipeline.sources.libreoffice_help --language {language.lower()} --output FOLDER
""".encode()


def write(corpus: Corpus, language: str, versions: list[str], output: Path) -> dict[str, int]:
    """Writes the five files and gives the rows of each table. All are complete in memory before the first is written.

    Raises:
        DataError: the folder cannot be written.
    """
    tables = {
        "text.parquet": text_table(corpus.train, language),
        "test_text.parquet": text_table(corpus.test, language),
        "pairs.parquet": pair_table([paragraph for paragraph in corpus.train if paragraph.words >= MIN_WORDS]),
        "test_pairs.parquet": pair_table(corpus.test_pairs),
    }
    contents = {name: to_parquet(table) for name, table in tables.items()} | {"NOTICE": notice(language, versions)}
    try:
        for name, content in contents.items():
            storage.write_bytes(str(output / name), content)
    except OSError as error:
        raise DataError(f"{error.strerror}.", f"--output {output}", "Name a folder you can write to.") from error
    return {name: table.num_rows for name, table in tables.items()}


def parse(argv: list[str]) -> argparse.Namespace:
    about = "Builds a corpus with English pairs and a held-out side from the LibreOffice help in a language."
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.sources.libreoffice_help", description=about)
    parser.add_argument("--language", required=True, type=str.lower, help="as Debian names its package: el, eu, pt-br")
    parser.add_argument("--output", required=True, type=Path, help="folder for the four Parquet files and NOTICE")
    parser.add_argument("--packages", type=Path, help="folder with downloaded .deb files, instead of apt-get")
    parser.add_argument("--test-pairs", type=int, default=300, help="how many test pairs to draw (%(default)s)")
    given = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", given.language) or given.language == "en-us":
        parser.error(f"--language {given.language!r}: give a language other than en-us, such as el or pt-br")
    if given.test_pairs < 1:
        parser.error(f"--test-pairs {given.test_pairs}: give 1 or more")
    return given


def main(argv: list[str]) -> int:
    """Exit code 0, or 2 with one line that says what was wrong and what to do."""
    given = parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="scion-") as folder:
            root, versions = unpack(given.language, given.packages, Path(folder))
            target = language_folder(root, given.language)
            corpus = build(language_folder(root, "en-us"), target, given.test_pairs)
        rows = write(corpus, target.parent.name, versions, given.output)
    except ScionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("paragraphs: " + ", ".join(f"{count:,} {fate}" for fate, count in corpus.fates.items()))
    print(f"test pairs: {len(corpus.test_pairs):,}, with {corpus.near_repeats:,} near-repeats passed over")
    for name, count in rows.items():
        print(f"{given.output / name}: {count:,} rows, {(given.output / name).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
