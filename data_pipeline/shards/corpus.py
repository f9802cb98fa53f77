"""From documents to clean text without duplicates, with a held-out part that nothing else ever sees.

Two passes of Ray Data over the units: the first hashes every clean document, the driver decides on the hashes alone
which documents stay, the second writes them. Each file depends on its unit and those decisions only.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline import keyed_random
from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, DataError
from data_pipeline.ray_map import ray_map
from data_pipeline.shards import format
from data_pipeline.sources import documents
from data_pipeline.sources.documents import Unit
from data_pipeline.text import language
from data_pipeline.text.clean import clean, digest
from data_pipeline.text.reserved import ReservedSentences

Progress = Callable[[int, int], None]
SCHEMA = pa.schema([("id", pa.string()), ("lang", pa.string()), ("text", pa.string())])
_DIGEST = 16
_FATES = ("train", "heldout", "empty", "duplicate", "in_heldout")
"""What becomes of a document; it stays with the first two."""
_PARTS = 16
"""Parts of the hashes that are compared one after the other: equal ones are in the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Clean documents on disk: files of (id, lang, text), and what became of every document that came in."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    fates: dict[str, int]
    """Documents read = train + heldout + empty + duplicate + in_heldout."""

    def relative_to(self, folder: str) -> dict[str, Any]:
        """As JSON, with paths below `folder`."""
        parts = {"train": self.train, "heldout": self.heldout}
        return {"fates": self.fates} | {
            name: [path.removeprefix(folder.rstrip("/") + "/") for path in paths] for name, paths in parts.items()
        }

    @staticmethod
    def from_relative(folder: str, content: dict[str, Any]) -> "Corpus":
        """The inverse of `relative_to`."""
        paths = {name: tuple(storage.join(folder, path) for path in content[name]) for name in ("train", "heldout")}
        return Corpus(**paths, fates=content["fates"])


def build(
    text: list[str], heldout_text: list[str] | None, folder: str, *, fraction: float, lang: str, seed: int,
    forbidden: Iterable[str], actors: int, progress: Progress, layout: bool = False,
) -> Corpus:  # fmt: skip
    """Writes `folder/train/*.parquet` and `folder/heldout/*.parquet`.

    Args:
        text: files to train on.
        heldout_text: files that are held out whole; None holds out `fraction` of `text`, chosen by hash of the id; a language
            of two documents or more has at least one on either side.
        forbidden: texts of the test pairs; the training documents lose the lines that hold one of them (`ReservedSentences`).
        lang: language of documents that name none.
        layout: whether indentation and empty lines stay, see `clean`.

    Raises:
        DataError: nothing is left to train on or to hold out.
    """
    if heldout_text is None and not 0.0 < fraction < 1.0:
        raise ConfigError(f"shard.heldout must lie between 0 and 1, got {fraction}.")
    units = [("text", unit) for unit in documents.units(text)]
    units += [("test_text", unit) for unit in documents.units(heldout_text or [])]
    settings: dict[str, Any] = {"fraction": None if heldout_text else fraction, "lang": lang, "seed": seed, "layout": layout}
    reserved = ReservedSentences.of(forbidden)
    run = partial(ray_map, actors=actors, setup=lambda: reserved)  # once an actor: the test set would travel with each job
    jobs = [{"key": key, "unit": unit, **settings} for key, unit in units]
    scans = run(_scan, jobs, progress=lambda done, n: progress(done, 2 * n))
    if heldout_text is None:
        moved = _to_move(scans)
        jobs = [{**job, "moved": moved.get(place, frozenset())} for place, job in enumerate(jobs)]
        again = run(_scan, [jobs[place] for place in moved])
        for place, scan in zip(moved, again, strict=True):
            scans[place] = scan
    keeps, fates = _decide(scans)
    if not fates["train"]:
        raise DataError(f"no document is left to train on ({_told(fates)}).", "text", "Give text that is not empty.")
    if not fates["heldout"]:
        raise DataError(
            f"no document is left to hold out ({_told(fates)}).", "shard.heldout", "Give more documents, or test_text=."
        )
    writes = [
        {**job, "keep": keep, "folder": folder, "name": f"part-{number:05d}.parquet"}
        for number, (job, keep) in enumerate(zip(jobs, keeps, strict=True))
    ]
    written = run(_write, writes, progress=lambda done, n: progress(n + done, 2 * n))
    return Corpus(
        train=tuple(result["train"] for result in written if result["train"]),
        heldout=tuple(result["heldout"] for result in written if result["heldout"]),
        fates=fates,
    )


def read_texts(paths: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(lang, text) of every document of a corpus file list, in order."""
    for path in paths:
        table = format.read_groups(path)
        yield from zip(table["lang"].to_pylist(), table["text"].to_pylist(), strict=True)


def _documents(job: dict[str, Any], reserved: ReservedSentences) -> list[tuple[str, str, str, bool]]:
    """(id, lang, clean text, held out) of every row of a unit; the text is empty when nothing is left of it."""
    unit: Unit = job["unit"]
    table = documents.read(unit, ("text",), ("lang", "id"), key=job["key"])
    kind = table.schema.field("text").type if len(table) else pa.string()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise DataError(f"column text holds {kind}, not text.", f"{job['key']}={unit.path}", "Write it as strings.")
    found = []
    for number, row in enumerate(table.to_pylist()):
        name = documents.row_id(unit, number) if row.get("id") is None else str(row["id"])
        heldout = job["key"] == "test_text"
        if job["fraction"] is not None:
            heldout = (_chance(job["seed"], name) < job["fraction"]) != (number in job.get("moved", ()))
        text = clean(row["text"] or "", job["layout"])
        if not heldout:
            text = "\n".join(line for line in text.split("\n") if not reserved.occurs_in(line)).strip("\n")
        tag = row.get("lang")
        lang = job["lang"] if tag is None or tag == "" else language.check_tag(tag, f"column lang of {job['key']}={unit.path}")
        found.append((name, lang, text, heldout))
    return found


def _chance(seed: int, name: str) -> float:
    """A document's number in [0, 1): it is held out if that lies below the share."""
    return float(keyed_random.uniforms(keyed_random.key("heldout", seed, name), np.zeros(1, np.int64))[0])


def _scan(job: dict[str, Any], reserved: ReservedSentences) -> dict[str, Any]:
    found = _documents(job, reserved)
    hashes = b"".join(digest(text) if text else bytes(_DIGEST) for _, _, text, _ in found)
    langs = pa.array([lang for _, lang, _, _ in found], pa.string()).dictionary_encode()
    chances = np.array([_chance(job["seed"], name) for name, *_ in found])
    return {
        "hashes": hashes,
        "heldout": np.array([heldout for *_, heldout in found], bool),
        "langs": (langs.dictionary.to_pylist(), langs.indices.to_numpy(zero_copy_only=False)),
        "chances": chances,
    }


def _to_move(scans: list[dict[str, Any]]) -> dict[int, frozenset[int]]:
    """Rows by unit that go to the other side, so that each language of two documents or more has some on both: where chance has
    held out none, the row that it came nearest to; where it has held out all, as where they share an id, all but that one's
    text. A language of one document has it in training."""
    trained, held = (_languages(scans, side) for side in (False, True))
    seen: dict[str, set[bytes]] = {}
    nearest: dict[str, tuple[float, int, int, bytes]] = {}
    for place, row, lang, name in _rows_of(scans, trained ^ held):
        if len(texts := seen.setdefault(lang, set())) < 2:
            texts.add(name)
        nearest[lang] = min(nearest.get(lang, (2.0, 0, 0, b"")), (float(scans[place]["chances"][row]), place, row, name))
    several = {lang: found for lang, found in nearest.items() if len(seen[lang]) > 1}
    moved: dict[int, set[int]] = {}
    for lang, (_, place, row, _) in several.items():
        if lang in trained:
            moved.setdefault(place, set()).add(row)
    for place, row, lang, name in _rows_of(scans, held - trained):
        if lang not in several or several[lang][-1] != name:
            moved.setdefault(place, set()).add(row)
    return {place: frozenset(rows) for place, rows in sorted(moved.items())}


def _languages(scans: list[dict[str, Any]], heldout: bool) -> set[str]:
    """Those with text on one side."""
    codes = ((scan, np.unique(scan["langs"][1][_is_text(scan) & (scan["heldout"] == heldout)])) for scan in scans)
    return {scan["langs"][0][code] for scan, own in codes for code in own}


def _rows_of(scans: list[dict[str, Any]], langs: set[str]) -> Iterator[tuple[int, int, str, bytes]]:
    """Unit, row, language and hash of each text in these languages."""
    for place, scan in enumerate(scans):
        names, codes = scan["langs"]
        among = np.array([lang in langs for lang in names], bool)
        for row in np.flatnonzero(_is_text(scan) & among[codes]).tolist():
            yield place, row, names[codes[row]], scan["hashes"][row * _DIGEST : (row + 1) * _DIGEST]


def _is_text(scan: dict[str, Any]) -> np.ndarray:
    """Which rows of a unit have text left."""
    return np.frombuffer(scan["hashes"], np.dtype(f"S{_DIGEST}")) != b""


def _decide(scans: list[dict[str, Any]]) -> tuple[list[np.ndarray], dict[str, int]]:
    """Which rows of each unit stay: the first of equal documents, and none that is also held out.

    A row takes 16 bytes of hash and one of fate; what is needed besides is needed for a part of the hashes at a time.
    """
    ends = np.cumsum([0, *(len(scan["heldout"]) for scan in scans)])
    names = np.frombuffer(b"".join(scan["hashes"] for scan in scans), np.dtype(f"S{_DIGEST}"))
    held = np.concatenate([scan["heldout"] for scan in scans]) if scans else np.zeros(0, bool)
    fates = np.full(len(names), _FATES.index("empty"), np.uint8)
    parts = names.view(np.uint8)[::_DIGEST] % _PARTS
    for part in range(_PARTS):
        rows = np.flatnonzero((parts == part) & (names != b""))
        fates[rows] = _fates(names[rows], held[rows])
    kept = fates <= _FATES.index("heldout")
    counts = dict(zip(_FATES, np.bincount(fates, minlength=len(_FATES)).tolist(), strict=True))
    return [kept[start:end] for start, end in pairwise(ends.tolist())], counts


def _fates(names: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The fate of each row by number, of rows in their order with all that have the same name."""
    groups, group = np.unique(names, return_inverse=True)
    reserved = np.zeros(len(groups), bool)
    reserved[group[held]] = True
    may_stay = np.flatnonzero(held | ~reserved[group])
    first = np.zeros(len(groups), np.int64)
    first[group[may_stay[::-1]]] = may_stay[::-1]  # what is written last stays: the first row
    place = np.arange(len(names))
    found = np.where(place < first[group], _FATES.index("in_heldout"), _FATES.index("duplicate"))
    return np.where(place == first[group], held, found)


def _write(job: dict[str, Any], reserved: ReservedSentences) -> dict[str, str]:
    kept = [row for row, keep in zip(_documents(job, reserved), job["keep"], strict=True) if keep]
    paths = {}
    for part in ("train", "heldout"):
        rows = [row[:3] for row in kept if row[3] == (part == "heldout")]
        paths[part] = storage.join(job["folder"], part, job["name"]) if rows else ""
        if rows:
            columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            format.write(paths[part], pa.Table.from_arrays(columns, schema=SCHEMA), group_rows=1024)
    return paths


def _told(fates: dict[str, int]) -> str:
    return f"{sum(fates.values()):,} read: " + ", ".join(f"{count:,} {fate}" for fate, count in fates.items())
