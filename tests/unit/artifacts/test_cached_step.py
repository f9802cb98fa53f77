"""A cached step runs once, and again when its key or its files change."""

import json

import pytest

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.cached_step import cached_step


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path)
    storage.remove("memory://test-once")
    return "memory://test-once"


def test_a_finished_step_is_reused_until_its_key_or_its_files_change(folder: str) -> None:
    calls = []

    def make() -> tuple[dict, list[str]]:
        calls.append(1)
        storage.write_bytes(storage.join(folder, "a", "data"), b"abc")
        return {"rows": len(calls)}, ["a/data"]

    def answer(**key: int) -> int:
        return cached_step(folder, "record.json", key, make)["rows"]

    assert [answer(x=1), answer(x=1)] == [1, 1]
    assert answer(x=2) == 2
    storage.write_bytes(storage.join(folder, "a", "data"), b"abd")
    assert [answer(x=2), answer(x=2)] == [3, 3]
    storage.remove(storage.join(folder, "a", "data"))
    assert answer(x=2) == 4
    record = storage.join(folder, "record.json")
    for torn in (b"", storage.read_bytes(record)[:-9], b"[]", json.dumps({"key": {"x": 2}}).encode()):
        storage.write_bytes(record, torn)
        before = len(calls)
        assert answer(x=2) == before + 1


def test_work_that_fails_leaves_no_record(folder: str) -> None:
    def make() -> tuple[dict, list[str]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_step(folder, "record.json", {}, make)
    assert not storage.exists(storage.join(folder, "record.json"))
