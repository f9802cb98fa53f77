"""Builds a corpus from LibreOffice's help: monolingual text and English pairs, split so that no test text is in training.

    python -m data_pipeline.sources.libreoffice_help --language el --output data_pipeline/sources/sample

Debian ships the help of each language as the same 2,561 HTML files, in which a paragraph has the same id in every
language. The corpus installs through apt, comes in 30 languages and may be redistributed. The price is one domain and many
near-duplicates ("Opens a dialog where you can ..."). Therefore repeats are dropped before the split, files (not paragraphs)
are drawn for the test side, and a test pair that resembles a training text on either side is dropped.
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
"""Decides the test files and the order of test pairs; a new seed makes a new benchmark."""
TEST_SHARE = 0.1
"""Share of the files on the test side."""
MIN_WORDS, TEST_WORDS = 5, range(6, 41)
"""English words of a pair, and of a test pair: shorter ones are menu names, longer ones are retrieved by length alone."""
MAX_COPIED = 0.2
"""Largest share of a test pair's target letters in words that the English side also has (product names, formulas). Pairs
with more are retrieved without knowledge of the language. Of 300 Greek pairs drawn without this limit, the English MiniLM
finds 1 % of those without a common Latin word or number, and 88 % of those where a fifth to a third of the words are."""
UNSPACED = {"bo", "dz", "ja", "km", "lo", "my", "th", "zh"}
PACKAGED_WITH = {"ca-valencia": "ca"}
"""Languages that are part of another language's package."""

# The classes are MAC, UNIX and WIN in this release; other releases add a suffix (UNIX_...).
_SYSTEM = re.compile(r"(MAC|UNIX|WIN)(_.*)?")
# "code" also matches codeintable, smathcode, bascode and pycode. An inline `span.keycode` is text and stays.
_PARAGRAPHS = etree.XPath(
    '//div[@id="DisplayArea"]//*[@id][self::p or self::h1 or self::h2 or self::h3 or self::h4 or self::h5 or self::h6]'
    '[not(ancestor-or-self::*[contains(@class, "code")])][not(ancestor::pre)]'
)
_UTF8 = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
# A broken reference to a section that the translation renamed: 92 paragraphs of the Japanese help.
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
    """The two sides of the split and the test pairs."""

    train: list[Paragraph]
    test: list[Paragraph]
    test_pairs: list[Paragraph]
    near_repeats: int
    """Candidates for `test_pairs` that were skipped."""
    fates: dict[str, int]
    """Paragraphs of each fate; their sum is the number of paragraphs read."""


def run(*command: str, fix: str, folder: Path | None = None) -> str:
    """The output of a command; `fix` is the advice if it fails.

    Raises:
        DataError: the program is missing or failed; quotes the last line of its error output.
    """
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed.", fix="Run this on Debian or Ubuntu.") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise DataError(f"{command[0]} failed: {last_line}.", fix=fix) from error


def find_package(folder: Path, language: str) -> Path:
    """The downloaded package of a language.

    Raises:
        DataError: it is missing, or there is more than one version.
    """
    packages = sorted(folder.glob(f"libreoffice-help-{language}_*.deb"))
    if len(packages) == 1:
        return packages[0]
    names = ", ".join(sorted(path.name for path in folder.glob("*.deb"))) or "no .deb file"
    what = f"{len(packages)} packages for {language!r} where one is needed; the folder has {names}."
    fix = f"Run `apt-get download libreoffice-help-{language}` there, or leave --packages out."
    raise DataError(what, f"--packages {folder}", fix)


def unpack(language: str, packages: Path | None, folder: Path) -> tuple[Path, list[str]]:
    """Unpacks both languages below `folder`. Returns the folder that holds them, and a `package version` line for each."""
    names = ["en-us", PACKAGED_WITH.get(language, language)]
    if packages is None:
        packages = folder / "packages"
        packages.mkdir()
        # apt's sandbox user cannot write to our temporary folder; as root, apt reports that at length.
        wanted = [f"libreoffice-help-{name}" for name in names]
        fix = "Run `apt-get update`; `apt-cache pkgnames libreoffice-help-` lists the languages."
        run("apt-get", "-o", "APT::Sandbox::User=root", "download", *wanted, folder=packages, fix=fix)
    versions = []
    fix = "Download the packages again."
    for package in [find_package(packages, name) for name in names]:
        run("dpkg", "-x", str(package), str(folder / "root"), fix=fix)
        versions.append(run("dpkg-deb", "--show", str(package), fix=fix).strip().replace("\t", " "))
    return folder / "root/usr/share/libreoffice/help", versions


def _pieces(element: Any) -> Iterator[str]:
    """The text of an element without the variants for other systems.

    Reads only the last variant of a `switchinline`, which is the default if there is one: all together would read
    "slidepage".
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
    """Maps paragraph ids to texts with single spaces, in document order, without program code and broken or empty texts.

    An embedded section keeps its ids, so two sections may have the same id with different texts. Such ids are left out:
    sections are sorted by title, so their order differs between languages.
    """
    texts_of: dict[str, set[str]] = {}
    for element in _PARAGRAPHS(html.document_fromstring(content, parser=_UTF8)):
        text = " ".join("".join(_pieces(element)).split())
        if text and not _BROKEN.search(text):
            texts_of.setdefault(element.get("id"), set()).add(text)
    return {name: next(iter(texts)) for name, texts in texts_of.items() if len(texts) == 1}


def language_folder(root: Path, language: str) -> Path:
    """The folder of a language below `help`. Its name has capitals (pt-BR), unlike the package name.

    Raises:
        DataError: the package has no text, like that of Slovak.
    """
    for folder in sorted(root.glob("*/text")):
        if folder.parent.name.lower() == language:
            return folder
    raise DataError(f"the package holds no help text in {language!r}.", f"--language {language}", "Take another one.")


def read_help(english: Path, target: Path) -> Iterator[Paragraph]:
    """The paragraphs that both languages have, by file name and then in the target's document order."""
    for file in sorted(path.relative_to(target).as_posix() for path in target.rglob("*.html")):
        anchors = read_paragraphs((english / file).read_bytes()) if (english / file).is_file() else {}
        for name, text in read_paragraphs((target / file).read_bytes()).items():
            if name in anchors:
                yield Paragraph(file, name, anchors[name], text)


def is_translated(paragraph: Paragraph) -> bool:
    """Whether the sides differ in more than blanks and punctuation; an untranslated paragraph is in English."""
    return "".join(normalised_words(paragraph.english)) != "".join(normalised_words(paragraph.target))


def drop_repeats(paragraphs: list[Paragraph]) -> list[Paragraph]:
    """Keeps the first of the paragraphs with the same English or target text.

    Called before the split, on paragraphs of all lengths, so that text and pairs cannot have the same paragraph on both
    sides of the split.
    """
    english: set[str] = set()
    target: set[str] = set()
    distinct: list[Paragraph] = []
    for paragraph in paragraphs:
        if paragraph.english not in english and paragraph.target not in target:
            distinct.append(paragraph)
            english.add(paragraph.english)
            target.add(paragraph.target)
    return distinct


def is_test_file(file: str) -> bool:
    return key(SEED, "file", file) / 2**64 < TEST_SHARE


def copied_share(paragraph: Paragraph, spaced: bool) -> float:
    """Share of the target's letters and digits in words that the English side has; without `spaced`, in runs of ASCII."""
    english = set(re.findall(r"\w+", paragraph.english.casefold()))
    target = paragraph.target.casefold()
    words = re.findall(r"\w+" if spaced else r"[a-z0-9_]+", target)
    return sum(len(word) for word in words if word in english) / max(1, len(re.findall(r"\w", target)))


def draw_pairs(train: list[Paragraph], test: list[Paragraph], count: int, spaced: bool) -> tuple[list[Paragraph], int]:
    """Draws `count` test pairs in the seed's order, none near a training text or another test pair.

    Also returns the number of near ones.

    Any prefix of the result is a sample, too. Training paragraphs too short for a pair also count, because they are in the
    training text.
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
        DataError: no pair is left for training or testing.
    """
    language = target.parent.name
    paragraphs = list(read_help(english, target))
    translated = [paragraph for paragraph in paragraphs if is_translated(paragraph)]
    distinct = drop_repeats(translated)
    test = [paragraph for paragraph in distinct if is_test_file(paragraph.file)]
    train = [paragraph for paragraph in distinct if not is_test_file(paragraph.file)]
    drawn, near = draw_pairs(train, test, test_pairs, spaced=language.split("-")[0] not in UNSPACED)
    fates = {"untranslated": len(paragraphs) - len(translated), "repeated": len(translated) - len(distinct)}
    fates |= {"train": len(train), "test": len(test)}
    if not drawn or all(paragraph.words < MIN_WORDS for paragraph in train):
        counts = ", ".join(f"{count:,} {fate}" for fate, count in fates.items())
        what = f"no {'training' if drawn else 'test'} pair is left of {len(paragraphs):,} paragraphs ({counts})."
        raise DataError(what, f"--language {language}", "Take a language whose help is translated.")
    return Corpus(train=train, test=test, test_pairs=drawn, near_repeats=near, fates=fates)


def text_table(paragraphs: list[Paragraph], language: str) -> pa.Table:
    """One document a file, with a line for each translated paragraph."""
    files: dict[str, list[str]] = {}
    for paragraph in paragraphs:
        files.setdefault(paragraph.file, []).append(paragraph.target)
    return pa.Table.from_pylist([{"id": f, "lang": language, "text": "\n".join(files[f])} for f in files])


def pair_table(paragraphs: list[Paragraph]) -> pa.Table:
    return pa.Table.from_pylist([{"id": p.key, "anchor": p.english, "positive": p.target} for p in paragraphs])


def to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # No dictionaries: nearly every value is distinct. Level 19 costs a second, once, and makes the repository smaller.
    pq.write_table(table, sink, compression="zstd", compression_level=19, use_dictionary=False)
    return bytes(sink.getvalue().to_pybytes())


def notice(language: str, versions: list[str]) -> bytes:
    """The origin of the text, its licence, and how to rebuild the files."""
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
    """Writes the five files and returns the rows of each table. All are complete in memory before the first is written.

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
    """The command-line options; prints the usage and exits if one is missing or invalid."""
    about = "Builds a corpus with English pairs and a held-out side from the LibreOffice help in a language."
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.sources.libreoffice_help", description=about)
    parser.add_argument("--language", required=True, type=str.lower, help="as Debian names its package: el, eu, pt-br")
    parser.add_argument("--output", required=True, type=Path, help="folder for the four Parquet files and NOTICE")
    parser.add_argument("--packages", type=Path, help="folder with downloaded .deb files, instead of apt-get")
    parser.add_argument("--test-pairs", type=int, default=300, help="how many test pairs to draw (%(default)s)")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", arguments.language) or arguments.language == "en-us":
        parser.error(f"--language {arguments.language!r}: give a language other than en-us, such as el or pt-br")
    if arguments.test_pairs < 1:
        parser.error(f"--test-pairs {arguments.test_pairs}: give 1 or more")
    return arguments


def main(argv: list[str]) -> int:
    """Exit code 0, or 2 with one line that says what is wrong and how to fix it."""
    arguments = parse(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="scion-") as folder:
            root, versions = unpack(arguments.language, arguments.packages, Path(folder))
            target = language_folder(root, arguments.language)
            corpus = build(language_folder(root, "en-us"), target, arguments.test_pairs)
        rows = write(corpus, target.parent.name, versions, arguments.output)
    except ScionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("paragraphs: " + ", ".join(f"{count:,} {fate}" for fate, count in corpus.fates.items()))
    print(f"test pairs: {len(corpus.test_pairs):,}, with {corpus.near_repeats:,} near-repeats skipped")
    for name, count in rows.items():
        print(f"{arguments.output / name}: {count:,} rows, {(arguments.output / name).stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
