"""Documents in compressed files and datasets, on disks and object stores."""

import bz2
import gzip
import io
import json
import os
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from data_pipeline.artifacts import fingerprints, retries, storage
from data_pipeline.errors import DataError
from data_pipeline.pairs import text_pairs
from data_pipeline.sources import copies, documents
from tests.flaky_storage import Flaky, every, failing, flaky  # noqa: F401

LINES = [f"γραμμή {number} " + "κείμενο " * (number % 40) for number in range(3000)]


def compress_stream(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as file:
        file.write(content)
    return bytes(sink.getvalue())


COMPRESSED = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": partial(compress_stream, codec="zstd"),
    ".lz4": partial(compress_stream, codec="lz4"),
}


def texts(paths: list[str]) -> list[str]:
    units = documents.units(paths)
    return [text for unit in units for text in documents.read(unit, ("text",), (), key="text")["text"].to_pylist()]


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_compressed_files_are_read_as_their_content(ending: str, kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "UNIT_BYTES", 10_000)  # cut as the plain file is
    lines = LINES if kind == ".txt" else [json.dumps({"text": line}) for line in LINES]
    plain, packed = tmp_path / f"plain{kind}", tmp_path / f"packed{kind}{ending}"
    plain.write_text("\n".join(lines))
    packed.write_bytes(COMPRESSED[ending](plain.read_bytes()))
    paths = documents.resolve(str(packed), str(tmp_path / "cache"), key="text")
    assert texts(paths) == texts([str(plain)]) == LINES
    assert len(documents.units(paths)) == len(documents.units([str(plain)])) > 10


def test_files_of_the_same_name_stay_apart_and_all_gzip_members_are_read(tmp_path: Path) -> None:
    for folder, parts in (("a", ("one\n", "two\n")), ("b", ("three\n",))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt.gz").write_bytes(b"".join(gzip.compress(part.encode()) for part in parts))
    assert texts(documents.resolve(f"{tmp_path}/*/x.txt.gz", str(tmp_path / "cache"), key="text")) == ["one", "two", "three"]


def test_the_copy_is_written_where_the_workers_can_read_it(tmp_path: Path) -> None:
    """The cache of a run on an object store is on the store, not in a local folder called `memory:`."""
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "two"}\n')
    for spec, expected in ((tmp_path / "x.txt.gz", ["one"]), (tmp_path / "set", ["two"])):
        paths = documents.resolve(str(spec), "memory://bucket/run/source", key="text")
        assert paths[0].startswith("memory://bucket/run/source/")
        assert texts(paths) == expected
    assert not Path("memory:").exists()


def test_the_fingerprint_is_the_compressed_file_s_and_needs_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n', mtime=0))
    assert documents.fingerprint(str(path), key="text") == fingerprints.fingerprint(str(path))[:16]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl.gz"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt.gz", b"no gzip at all", "cannot be decompressed .*Compress the file again"),
        ("x.txt.gz", gzip.compress(b"cut " * 9999, mtime=0)[:-30], "cannot be decompressed"),
        ("x.txt.zst", gzip.compress(b"another codec", mtime=0), "cannot be decompressed"),
        ("x.parquet.gz", b"", "not a Parquet, JSONL or text file.*also with .gz, .bz2, .zst, .lz4"),
        ("x.csv.gz", b"", "not a Parquet, JSONL or text file"),
    ],
)
def test_the_error_for_an_unreadable_file_says_how_to_fix_it(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        documents.resolve(str(tmp_path / name), str(tmp_path / "cache"), key="text")
    assert name in str(raised.value)


def test_a_dataset_is_written_in_a_stream(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(copies, "BATCH_ROWS", 100)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": line, "id": str(n)}) for n, line in enumerate(LINES))
    )
    paths = documents.resolve(str(tmp_path / "set"), str(tmp_path / "cache"), key="text")
    assert texts(paths) == LINES


def test_the_error_for_a_dataset_that_breaks_off_names_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(copies, "BATCH_ROWS", 2)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text('{"text": "one"}\n' * 3)
    (tmp_path / "set" / "b.jsonl").write_text("no JSON\n")
    with pytest.raises(DataError, match=r"broke off.*name them, text=.*set/\*.: then their other columns"):
        documents.resolve(str(tmp_path / "set"), str(tmp_path / "cache"), key="text")


def write_lines(path: Path, *rows: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def table(path: str, columns: tuple[str, ...], optional: tuple[str, ...]) -> pa.Table:
    return pa.concat_tables(documents.read(unit, columns, optional, key="text") for unit in documents.units([path]))


def test_a_column_that_the_first_line_lacks_is_read(tmp_path: Path) -> None:
    rows = [{"text": "header"}, *({"text": f"text {i}", "lang": "el", "id": i} for i in range(5))]
    rows = table(write_lines(tmp_path / "a.jsonl", *rows), ("text",), ("lang", "id"))
    assert rows["lang"].to_pylist() == [None, *["el"] * 5]
    assert rows["id"].to_pylist() == [None, *map(str, range(5))]
    later = write_lines(tmp_path / "b.jsonl", {"lang": "el"}, {"text": "there", "lang": "el"})
    assert table(later, ("text",), ())["text"].to_pylist() == [None, "there"]
    with pytest.raises(DataError, match="column text is missing; the file has body, lang"):
        table(write_lines(tmp_path / "c.jsonl", {"body": "x", "lang": 1}), ("text",), ())


def test_numbers_of_ids_and_half_a_surrogate_pair_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "cut \\ud83d here", "id": 1}\n{"text": "whole \\ud83d\\ude00", "id": "b"}\n')
    rows = table(str(path), ("text",), ("id",))
    assert rows["text"].to_pylist() == ["cut \ufffd here", "whole \U0001f600"]
    assert rows["id"].to_pylist() == ["1", "b"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text", 5, "a text"),
        ("lang", ["el"], "a text"),
        ("negatives", [1, None], "a list of texts"),
        ("negatives", "one string", "a list of texts"),
    ],
)
def test_the_error_for_a_value_of_the_wrong_type_names_its_line(
    name: str, value: object, expected: str, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "fine"}, {"text": "fine"} | {name: value})
    with pytest.raises(DataError, match=f"{name} in line 2 is .* not {expected}"):
        table(path, ("text",), ("lang", "negatives"))


def test_records_of_files_of_the_same_name_in_two_folders_have_different_ids(tmp_path: Path) -> None:
    for folder in ("train", "test", "el", "tr"):
        write_lines(tmp_path / folder / "pairs.jsonl", {"anchor": f"to {folder}", "positive": f"προς {folder}"})
    sides = {key: text_pairs.load(str(tmp_path / key / "pairs.jsonl"), "", key=key) for key in ("train", "test")}
    text_pairs.check_disjoint(sides["train"], sides["test"])
    both = text_pairs.load(f"{tmp_path}/[et][lr]/pairs.jsonl", "", key="pairs")
    assert len(set(both.ids)) == len(both) == 2
    moved = text_pairs.load(f"{tmp_path}/el/pairs.jsonl", "", key="pairs")
    assert moved.ids == ["pairs/pairs.jsonl:0:0"]


def test_a_repeated_id_is_found_in_one_pass(tmp_path: Path) -> None:
    many = [{"id": str(i), "anchor": f"a {i}", "positive": f"b {i}"} for i in [*range(40_000), 39_999]]
    path, began = write_lines(tmp_path / "pairs.jsonl", *many), time.process_time()
    with pytest.raises(DataError, match="the id '39999' occurs more than once"):
        text_pairs.load(path, "", key="pairs")
    assert time.process_time() - began < 5  # 15 s by counting each


def test_paths_are_found_in_a_working_folder_with_brackets_in_its_name(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "[2024] corpora"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)
    monkeypatch.chdir(folder)
    for spec in ("a.txt", "[ab].txt", str(folder)):
        assert os.path.basename(storage.expand(storage.absolute(spec))[0]) == "a.txt", spec


class TestOnAStore:
    """Text that lies on an object store."""

    @pytest.fixture(autouse=True)
    def store(self, flaky: type[Flaky]) -> None:  # noqa: F811
        for number in range(100):
            storage.write_bytes(f"flaky://run/corpus/{number:03d}.txt", b"alpha beta gamma\n" * 20)
        storage.write_bytes("flaky://run/one.txt.gz", gzip.compress(b"alpha beta\n" * 20))

    def test_every_tenth_request_fails(self, tmp_path: Path) -> None:
        Flaky.fault = every(10, TimeoutError("no answer"))
        paths = documents.resolve("flaky://run/corpus/*.txt", str(tmp_path), key="text")
        paths += documents.resolve("flaky://run/one.txt.gz", str(tmp_path), key="text")
        tables = [documents.read(unit, ("text",), (), key="text") for unit in documents.units(paths)]
        assert sum(map(len, tables)) == 101 * 20

    def test_a_slow_large_read_does_not_time_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A row group of Parquet is one read and is never cut."""
        content = io.BytesIO()
        pq.write_table(pa.table({"text": [f"{number:064d}" for number in range(2000)]}), content, compression="none")
        storage.write_bytes("flaky://run/large.parquet", content.getvalue())
        monkeypatch.setattr(retries, "ANSWER_SECONDS", 0.2)
        monkeypatch.setattr(documents, "MANY_FILES_SECONDS", 0.0)
        monkeypatch.setattr(documents, "MAX_READ", 8000)
        read, sizes = documents.ClockedReader.readinto, []

        def slow(self: documents.ClockedReader, buffer: Any) -> int:
            sizes.append(len(buffer))
            time.sleep(0.03)
            return read(self, buffer)

        monkeypatch.setattr(documents.ClockedReader, "readinto", slow)
        (unit,) = documents.units(["flaky://run/large.parquet"])
        assert len(documents.read(unit, ("text",), (), key="text")) == 2000
        assert 15 < len(sizes) < 40

    def test_a_read_without_an_answer_is_retried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retries, "ANSWER_SECONDS", 0.3)
        monkeypatch.setattr(documents, "MANY_FILES_SECONDS", 0.0)
        (unit,) = documents.units(["flaky://run/corpus/000.txt"])
        never, calls = threading.Event(), []

        def fault(operation: str, path: str) -> None:
            calls.append(operation)
            if len(calls) == 1:
                never.wait()

        Flaky.fault = fault
        assert len(documents.read(unit, ("text",), (), key="text")) == 20
        never.set()

    @pytest.mark.parametrize("error", [FileNotFoundError("404"), PermissionError("403")])
    def test_files_are_read_although_their_folder_cannot_be_listed(self, error: OSError) -> None:
        """Like most web servers, or with permission to read only."""
        expected = documents.fingerprint("flaky://run/corpus/000.txt", key="text")
        paths = [f"flaky://run/corpus/{number:03d}.txt" for number in range(100)]
        Flaky.fault = failing("list", "corpus", error)
        assert documents.fingerprint("flaky://run/corpus/000.txt", key="text") == expected
        assert fingerprints.fingerprints(paths) == [fingerprints.fingerprint(path) for path in paths]


def test_the_error_for_a_damaged_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text('{"text": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"deep\.jsonl: line 1 is not JSON that can be read"):
        texts([str(tmp_path / "deep.jsonl")])
    pq.write_table(pa.table({"text": [f"line {n}" for n in range(1000)]}), path := tmp_path / "page.parquet")
    content = bytearray(path.read_bytes())
    content[50:500] = bytes(450)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"page\.parquet"):
        texts([str(path)])


def test_a_full_disk_is_not_reported_as_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"line\n"))
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(copies.shutil, "copyfileobj", lambda *arguments: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left"):
        documents.resolve(str(tmp_path / "x.txt.gz"), str(tmp_path / "cache"), key="text")


def test_a_file_of_unknown_size_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a file on a web server that does not report sizes."""
    (tmp_path / "x.txt").write_text("\n".join(LINES))
    monkeypatch.setattr(LocalFileSystem, "size", lambda self, path: None)
    assert texts([str(tmp_path / "x.txt")]) == LINES


def test_a_wrong_line_is_named_by_its_number(tmp_path: Path) -> None:
    lines = ['{"text": "ναι"}', "", '{"text": "όχι"}', "{broken"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    [unit] = documents.units(documents.resolve(str(path), str(tmp_path / "cache"), key="text"))
    with pytest.raises(DataError, match=r"a\.jsonl: line 4 is not JSON"):
        documents.read(unit, ("text",), (), key="text")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_not_jsonl(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([{"text": "a"}], indent=indent))
    [unit] = documents.units(documents.resolve(str(path), str(tmp_path / "cache"), key="text"))
    with pytest.raises(DataError, match=r"it is a JSON array\. .* one object on each line"):
        documents.read(unit, ("text",), (), key="text")
