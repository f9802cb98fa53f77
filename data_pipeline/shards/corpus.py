"""Turns documents into clean text without duplicates, and holds a part out that nothing else sees.

Ray Data passes over the units twice: the first pass hashes every clean document, the driver decides from the hashes which
documents stay, and the second pass writes them. Each file depends on its unit and those decisions only.
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
"""Fates of a document; documents with the first two stay."""
_PARTS = 16
"""Partitions of the hashes that are compared one at a time; equal hashes are in the same partition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Clean documents on disk: files of (id, lang, text), and the fates of all documents read."""

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
    text: list[str],
    heldout_text: list[str] | None,
    folder: str,
    *,
    fraction: float,
    lang: str,
    seed: int,
    forbidden: Iterable[str],
    actors: int,
    progress: Progress,
    layout: bool = False,
) -> Corpus:
    """Writes `folder/train/*.parquet` and `folder/heldout/*.parquet`.

    Args:
        text: files to train on.
        heldout_text: files to hold out as a whole. None holds out `fraction` of `text`, chosen by hash of the id; a language
            of two documents or more has at least one on either side.
        forbidden: texts of the test pairs; lines that contain one (see `ReservedSentences`) are cut from the training
            documents.
        lang: language of documents without one.
        layout: whether to keep indentation and empty lines, see `clean`.

    Raises:
        DataError: no document is left to train on or to hold out.
    """
    if heldout_text is None and not 0.0 < fraction < 1.0:
        raise ConfigError(f"shard.heldout must lie between 0 and 1, got {fraction}.")
    units = [("text", unit) for unit in documents.units(text)]
    units += [("test_text", unit) for unit in documents.units(heldout_text or [])]
    settings: dict[str, Any] = {"fraction": None if heldout_text else fraction, "lang": lang, "seed": seed, "layout": layout}
    reserved = ReservedSentences.of(forbidden)
    run = partial(ray_map, actors=actors, setup=lambda: reserved)  # sends the test set once an actor, not with each job
    jobs = [{"key": key, "unit": unit, **settings} for key, unit in units]
    scans = run(_scan, jobs, progress=lambda done, n: progress(done, 2 * n))
    if heldout_text is None:
        moved = records_to_move(scans)
        jobs = [{**job, "moved": moved.get(place, frozenset())} for place, job in enumerate(jobs)]
        new_scans = run(_scan, [jobs[place] for place in moved])
        for place, scan in zip(moved, new_scans, strict=True):
            scans[place] = scan
    keeps, fates = decide_fates(scans)
    _check_both_sides(fates)
    writes = [
        {**job, "keep": keep, "folder": folder, "name": f"part-{number:05d}.parquet"}
        for number, (job, keep) in enumerate(zip(jobs, keeps, strict=True))
    ]
    paths = run(_write, writes, progress=lambda done, n: progress(n + done, 2 * n))
    return Corpus(
        train=tuple(result["train"] for result in paths if result["train"]),
        heldout=tuple(result["heldout"] for result in paths if result["heldout"]),
        fates=fates,
    )


def _check_both_sides(fates: dict[str, int]) -> None:
    """Checks that documents are left on either side; else raises DataError."""
    if not fates["train"]:
        raise DataError(f"no document is left to train on ({_count_fates(fates)}).", "text", "Give text that is not empty.")
    if not fates["heldout"]:
        raise DataError(
            f"no document is left to hold out ({_count_fates(fates)}).", "shard.heldout", "Give more documents, or test_text=."
        )


def read_texts(paths: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(lang, text) of every document in corpus files, in order."""
    for path in paths:
        table = format.read_groups(path)
        yield from zip(table["lang"].to_pylist(), table["text"].to_pylist(), strict=True)


def _documents(job: dict[str, Any], reserved: ReservedSentences) -> list[tuple[str, str, str, bool]]:
    """(id, lang, clean text, whether held out) of every record of a unit; the text may be empty."""
    unit: Unit = job["unit"]
    table = documents.read(unit, ("text",), ("lang", "id"), key=job["key"])
    kind = table.schema.field("text").type if len(table) else pa.string()
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise DataError(f"column text holds {kind}, not text.", f"{job['key']}={unit.path}", "Write it as strings.")
    records = []
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
        records.append((name, lang, text, heldout))
    return records


def _chance(seed: int, name: str) -> float:
    """A document's random number in [0, 1): it is held out if the number is below the fraction."""
    return float(keyed_random.uniforms(keyed_random.key("heldout", seed, name), np.zeros(1, np.int64))[0])


def _scan(job: dict[str, Any], reserved: ReservedSentences) -> dict[str, Any]:
    """The hash, side, language and random number of each text of a unit, from which `decide_fates` chooses."""
    records = _documents(job, reserved)
    hashes = b"".join(digest(text) if text else bytes(_DIGEST) for _, _, text, _ in records)
    langs = pa.array([lang for _, lang, _, _ in records], pa.string()).dictionary_encode()
    chances = np.array([_chance(job["seed"], name) for name, *_ in records])
    return {
        "hashes": hashes,
        "heldout": np.array([heldout for *_, heldout in records], bool),
        "langs": (langs.dictionary.to_pylist(), langs.indices.to_numpy(zero_copy_only=False)),
        "chances": chances,
    }


def records_to_move(scans: list[dict[str, Any]]) -> dict[int, frozenset[int]]:
    """Records, by unit, that change sides so that each language of two documents or more has some on both sides.

    If none of a language is held out, the record with the lowest chance is. If all are, for example because they share an
    id, all texts but that of this record go to training. The only document of a language goes to training.
    """
    in_training, in_heldout = (_languages(scans, side) for side in (False, True))
    seen: dict[str, set[bytes]] = {}
    nearest: dict[str, tuple[float, int, int, bytes]] = {}
    for place, row, lang, name in _texts_in(scans, in_training ^ in_heldout):
        if len(texts := seen.setdefault(lang, set())) < 2:
            texts.add(name)
        nearest[lang] = min(nearest.get(lang, (2.0, 0, 0, b"")), (float(scans[place]["chances"][row]), place, row, name))
    several = {lang: record for lang, record in nearest.items() if len(seen[lang]) > 1}
    moved: dict[int, set[int]] = {}
    for lang, (_, place, row, _) in several.items():
        if lang in in_training:
            moved.setdefault(place, set()).add(row)
    for place, row, lang, name in _texts_in(scans, in_heldout - in_training):
        if lang not in several or several[lang][-1] != name:
            moved.setdefault(place, set()).add(row)
    return {place: frozenset(rows) for place, rows in sorted(moved.items())}


def _languages(scans: list[dict[str, Any]], heldout: bool) -> set[str]:
    """Languages with text on one side."""
    codes = ((scan, np.unique(scan["langs"][1][_has_text(scan) & (scan["heldout"] == heldout)])) for scan in scans)
    return {scan["langs"][0][code] for scan, present in codes for code in present}


def _texts_in(scans: list[dict[str, Any]], langs: set[str]) -> Iterator[tuple[int, int, str, bytes]]:
    """Unit, record, language and hash of each text in these languages."""
    for place, scan in enumerate(scans):
        names, codes = scan["langs"]
        is_wanted = np.array([lang in langs for lang in names], bool)
        for row in np.flatnonzero(_has_text(scan) & is_wanted[codes]).tolist():
            yield place, row, names[codes[row]], scan["hashes"][row * _DIGEST : (row + 1) * _DIGEST]


def _has_text(scan: dict[str, Any]) -> np.ndarray:
    """Which records of a unit have text."""
    return np.frombuffer(scan["hashes"], np.dtype(f"S{_DIGEST}")) != b""


def decide_fates(scans: list[dict[str, Any]]) -> tuple[list[np.ndarray], dict[str, int]]:
    """Which records of each unit stay, and the count of each fate.

    The first of equal documents stays; if some of them are held out, the first of those.

    Memory: 16 bytes of hash and one of fate a record, plus working space for one partition of the hashes at a time.
    """
    ends = np.cumsum([0, *(len(scan["heldout"]) for scan in scans)])
    names = np.frombuffer(b"".join(scan["hashes"] for scan in scans), np.dtype(f"S{_DIGEST}"))
    is_heldout = np.concatenate([scan["heldout"] for scan in scans]) if scans else np.zeros(0, bool)
    fates = np.full(len(names), _FATES.index("empty"), np.uint8)
    parts = names.view(np.uint8)[::_DIGEST] % _PARTS
    for part in range(_PARTS):
        rows = np.flatnonzero((parts == part) & (names != b""))
        fates[rows] = _fates(names[rows], is_heldout[rows])
    stays = fates <= _FATES.index("heldout")
    counts = dict(zip(_FATES, np.bincount(fates, minlength=len(_FATES)).tolist(), strict=True))
    return [stays[start:end] for start, end in pairwise(ends.tolist())], counts


def _fates(names: np.ndarray, is_heldout: np.ndarray) -> np.ndarray:
    """The fate of each record, as its index in `_FATES`.

    Args:
        names: hashes of the texts, in the records' order; all records with one of these hashes are included.
    """
    groups, group = np.unique(names, return_inverse=True)
    has_heldout = np.zeros(len(groups), bool)
    has_heldout[group[is_heldout]] = True
    candidates = np.flatnonzero(is_heldout | ~has_heldout[group])
    first = np.zeros(len(groups), np.int64)
    first[group[candidates[::-1]]] = candidates[::-1]  # the last assignment wins: the first record
    place = np.arange(len(names))
    dropped = np.where(place < first[group], _FATES.index("in_heldout"), _FATES.index("duplicate"))
    return np.where(place == first[group], is_heldout, dropped)


def _write(job: dict[str, Any], reserved: ReservedSentences) -> dict[str, str]:
    """Writes the kept records of a unit to a training and a held-out Parquet file; returns the paths, empty if none."""
    records = [record for record, keep in zip(_documents(job, reserved), job["keep"], strict=True) if keep]
    paths = {}
    for part in ("train", "heldout"):
        rows = [record[:3] for record in records if record[3] == (part == "heldout")]
        paths[part] = storage.join(job["folder"], part, job["name"]) if rows else ""
        if rows:
            columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            format.write(paths[part], pa.Table.from_arrays(columns, schema=SCHEMA), group_rows=1024)
    return paths


def _count_fates(fates: dict[str, int]) -> str:
    return f"{sum(fates.values()):,} read: " + ", ".join(f"{count:,} {fate}" for fate, count in fates.items())
