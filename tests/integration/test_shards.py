"""Shards have the same bytes for any number of actors and kind of file, and contain no held-out text."""

import json

import numpy as np
import pytest

from data_pipeline.artifacts import fingerprints, storage
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.shards import build, corpus, format, manifest
from data_pipeline.sources import documents
from data_pipeline.tokenizers import train as tokenizers

pytestmark = pytest.mark.usefixtures("ray_session")


def quiet(done: int, total: int) -> None:
    pass


def build_shards(path: list[str], folder: str, source_folder: str, actors: int, **changes) -> manifest.Manifest:  # type: ignore[no-untyped-def]
    settings = {"fraction": 0.1, "lang": "el", "seed": 0, "forbidden": ()} | changes
    text = corpus.build(path, None, f"{folder}/text", actors=actors, progress=quiet, **settings)
    return build.build(text.train, source_folder, f"{folder}/rows", length=32, packing="concat", actors=actors, progress=quiet)


@pytest.fixture
def jsonl(tmp_path, greek) -> str:
    path = tmp_path / "text.jsonl"
    rows = [{"id": str(i), "text": text, "lang": "el" if i % 3 else "grc"} for i, text in enumerate(greek)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)))
    return str(path)


@pytest.mark.slow
def test_the_same_bytes_for_one_and_three_actors(jsonl, tmp_path, source_folder, monkeypatch) -> None:
    monkeypatch.setattr(documents, "UNIT_BYTES", 60_000)
    assert len(documents.units([jsonl])) > 5
    first = build_shards([jsonl], str(tmp_path / "one"), source_folder, actors=1)
    second = build_shards([jsonl], str(tmp_path / "three"), source_folder, actors=3)
    assert first == second
    assert set(first.streams) == {"el", "grc"}
    for name in storage.files(str(tmp_path / "one")):
        assert storage.read_bytes(str(tmp_path / "one" / name)) == storage.read_bytes(str(tmp_path / "three" / name)), name


def test_intact_shards_are_reused_and_corrupt_or_missing_ones_rebuilt(jsonl, tmp_path, source_folder, monkeypatch) -> None:
    monkeypatch.setattr(documents, "UNIT_BYTES", 60_000)
    first = build_shards([jsonl], str(tmp_path / "run"), source_folder, actors=2)
    rows = tmp_path / "run" / "rows"
    content = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(rows.glob("*/*.parquet"))}
    flipped, missing, torn, *intact = content
    flipped.write_bytes(bytes([*content[flipped][0][:-3], content[flipped][0][-3] ^ 1, *content[flipped][0][-2:]]))
    missing.unlink()
    torn.write_bytes(content[torn][0][:100])
    (rows / "manifest.json").unlink()
    assert build_shards([jsonl], str(tmp_path / "run"), source_folder, actors=1) == first
    assert {path: path.read_bytes() for path in content} == {path: old for path, (old, _) in content.items()}
    redone = {path for path in content if path.stat().st_mtime_ns != content[path][1]}
    # A corpus file gives one shard per language, and all of them are rebuilt together.
    assert {path.name for path in redone} == {path.name for path in (flipped, missing, torn)}
    assert intact


def test_units_cover_every_line_once(jsonl, monkeypatch) -> None:
    whole = documents.read(documents.units([jsonl])[0], ("text",), ("id",), key="text")["id"].to_pylist()
    for size in (1, 777, 5_000, 10**9):
        monkeypatch.setattr(documents, "UNIT_BYTES", size)
        tables = [documents.read(unit, ("text",), ("id",), key="text") for unit in documents.units([jsonl])[:2000]]
        ids = [name for table in tables if len(table) for name in table["id"].to_pylist()]
        assert ids == whole[: len(ids)]
        assert size == 1 or ids == whole


def test_rows_hold_the_text_and_nothing_that_is_held_out(jsonl, tmp_path, source_folder, greek) -> None:
    line = greek[5].split("\n")[0]
    text = corpus.build(
        [jsonl], None, str(tmp_path / "text"), fraction=0.2, lang="x", seed=1, forbidden=[line], actors=2, progress=quiet
    )
    train, heldout = ([t for _, t in corpus.read_texts(paths)] for paths in (text.train, text.heldout))
    assert sum(text.fates.values()) == len(greek)
    assert (len(train), len(heldout)) == (text.fates["train"], text.fates["heldout"])
    assert 0.1 < len(heldout) / len(greek) < 0.3
    assert not set(train) & set(heldout)
    assert not any(line in document.split("\n") for document in train)
    rows_manifest = build.build(
        text.train, source_folder, str(tmp_path / "rows"), length=32, packing="concat", actors=1, progress=quiet
    )
    tokenizer = tokenizers.load(source_folder)
    ids = []
    for shards in rows_manifest.streams.values():
        for shard in shards:
            path = str(tmp_path / "rows" / shard.path)
            assert fingerprints.fingerprint(path) == shard.sha256
            table = format.read_groups(path)
            rows = format.token_ids(table["input_ids"], 32)
            ids += [int(t) for row, n in zip(rows, table["n_tokens"].to_pylist(), strict=True) for t in row[:n]]
    by_language = sorted(corpus.read_texts(text.train), key=lambda pair: pair[0])
    assert ids == [t for _, document in by_language for t in tokenizer(document).input_ids]
    assert (
        rows_manifest.total("text_tokens") + 2 * rows_manifest.total("documents") == rows_manifest.total("tokens") == len(ids)
    )


def test_duplicates_go_and_the_held_out_side_wins(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("same line\nSAME  line\nother line\nthird line\n")
    heldout_path = tmp_path / "b.txt"
    heldout_path.write_text("Third line\n")
    text = corpus.build(
        [str(path)],
        [str(heldout_path)],
        str(tmp_path / "out"),
        fraction=0.5,
        lang="x",
        seed=0,
        forbidden=(),
        actors=1,
        progress=quiet,
    )
    assert text.fates == {"train": 2, "heldout": 1, "empty": 0, "duplicate": 1, "in_heldout": 1}
    assert [t for _, t in corpus.read_texts(text.train)] == ["same line", "other line"]


def test_a_dataset_name_is_loaded_by_datasets(tmp_path, greek) -> None:
    """The code path of the hub, with a local folder instead."""
    folder = tmp_path / "hub" / "greek"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in greek[:9]))
    paths = documents.resolve(str(folder), str(tmp_path / "cache"), key="text")
    table = documents.read(documents.units(paths)[0], ("text",), ("lang", "id"), key="text")
    assert table["text"].to_pylist() == greek[:9]


def test_pairs_from_jsonl_with_negatives(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"anchor": "a  b", "positive": "γ", "negatives": ["x", " "]},
        {"anchor": "", "positive": "dropped"},
        {"anchor": "c", "positive": "δ"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    text_pairs = pairs.load(str(path), "", key="pairs")
    assert (text_pairs.anchors, text_pairs.positives, text_pairs.negatives) == (["a b", "c"], ["γ", "δ"], [["x"], []])
    assert len(set(text_pairs.ids)) == 2
    assert np.array(text_pairs.ids).dtype.kind == "U"
