"""Work that is not done twice: what a killed run had finished is kept when its files are still what they were."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.artifacts import storage


def cached_step(
    folder: str, name: str, key: Mapping[str, Any], make: Callable[[], tuple[dict[str, Any], list[str]]]
) -> dict[str, Any]:
    """What `make` answers, or what it answered before with an equal `key` if every file that it wrote is unchanged.

    Args:
        folder: that the files lie in.
        name: of the record, a JSON file in `folder` that is written last.
        key: everything that the answer depends on.
        make: writes files and answers with a JSON object and the files' paths below `folder`.
    """
    record = storage.join(folder, name)
    found = _read(record)
    if found is not None and found["key"] == dict(key) and all(_same(folder, *file) for file in found["files"].items()):
        return dict(found["answer"])
    storage.remove(record)
    answer, files = make()
    hashes = {path: storage.sha256(storage.join(folder, path)) for path in files}
    content = {"key": dict(key), "files": hashes, "answer": answer}
    storage.write_bytes(record, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return answer


def _read(record: str) -> dict[str, Any] | None:
    if not storage.exists(record):
        return None
    try:
        content = json.loads(storage.read_bytes(record))
        return content if isinstance(content, dict) and {"key", "files", "answer"} <= content.keys() else None
    except ValueError:
        return None  # torn or flipped: then it is made again


def _same(folder: str, path: str, known: str) -> bool:
    uri = storage.join(folder, path)
    return storage.exists(uri) and storage.sha256(uri) == known
