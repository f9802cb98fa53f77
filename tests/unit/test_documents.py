"""Documents in compressed files and in datasets, on disks and on object stores."""

import bz2
import gzip
import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.sources import copies, documents

LINES = [f"γραμμή {number} " + "κείμενο " * (number % 40) for number in range(3000)]


def streamed(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as file:
        file.write(content)
    return bytes(sink.getvalue())


COMPRESSED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": partial(streamed, codec="zstd"),
    ".lz4": partial(streamed, codec="lz4"),
}


def texts(paths: list[str]) -> list[str]:
    units = documents.units(paths)
    return [text for unit in units for text in documents.read(unit, ("text",), (), key="text")["text"].to_pylist()]


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_compressed_text_is_read_as_what_it_holds(ending: str, kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "UNIT_BYTES", 10_000)  # cut as the plain file is
    lines = LINES if kind == ".txt" else [json.dumps({"text": line}) for line in LINES]
    plain, packed = tmp_path / f"plain{kind}", tmp_path / f"packed{kind}{ending}"
    plain.write_text("\n".join(lines))
    packed.write_bytes(COMPRESSED[ending](plain.read_bytes()))
    found = documents.resolve(str(packed), str(tmp_path / "cache"), key="text")
    assert texts(found) == texts([str(plain)]) == LINES
    assert len(documents.units(found)) == len(documents.units([str(plain)])) > 10


def test_files_of_one_name_are_kept_apart_and_one_member_follows_another(tmp_path: Path) -> None:
    for folder, parts in (("a", ("one\n", "two\n")), ("b", ("three\n",))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt.gz").write_bytes(b"".join(gzip.compress(part.encode()) for part in parts))
    assert texts(documents.resolve(f"{tmp_path}/*/x.txt.gz", str(tmp_path / "cache"), key="text")) == ["one", "two", "three"]


def test_the_copy_lies_where_the_workers_can_read_it(tmp_path: Path) -> None:
    """The cache of a run on an object store is there too, not in a folder of this machine that is called `memory:`."""
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "two"}\n')
    for spec, expected in ((tmp_path / "x.txt.gz", ["one"]), (tmp_path / "set", ["two"])):
        found = documents.resolve(str(spec), "memory://bucket/run/source", key="text")
        assert found[0].startswith("memory://bucket/run/source/")
        assert texts(found) == expected
    assert not Path("memory:").exists()


def test_a_fingerprint_is_that_of_the_compressed_file_and_copies_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n', mtime=0))
    assert documents.fingerprint(str(path), key="text") == storage.fingerprint(str(path))[:16]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl.gz"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt.gz", b"no gzip at all", "cannot be decompressed .*Compress the file again"),
        ("x.txt.gz", gzip.compress(b"cut " * 9999)[:-30], "cannot be decompressed"),
        ("x.txt.zst", gzip.compress(b"another codec"), "cannot be decompressed"),
        ("x.parquet.gz", b"", "not a Parquet, JSONL or text file.*also with .gz, .bz2, .zst, .lz4"),
        ("x.csv.gz", b"", "not a Parquet, JSONL or text file"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        documents.resolve(str(tmp_path / name), str(tmp_path / "cache"), key="text")
    assert name in str(raised.value)


def test_a_dataset_is_written_in_a_stream(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(copies, "_ROWS", 100)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": line, "id": str(n)}) for n, line in enumerate(LINES))
    )
    found = documents.resolve(str(tmp_path / "set"), str(tmp_path / "cache"), key="text")
    assert texts(found) == LINES


def test_a_dataset_that_breaks_off_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(copies, "_ROWS", 2)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text('{"text": "one"}\n' * 3)
    (tmp_path / "set" / "b.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError, match="broke off"):
        documents.resolve(str(tmp_path / "set"), str(tmp_path / "cache"), key="text")
