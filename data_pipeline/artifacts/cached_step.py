"""Work that is done once: the result of a killed run is reused if its files are unchanged."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.artifacts import fingerprints, storage


def cached_step(
    folder: str, name: str, key: Mapping[str, Any], make: Callable[[], tuple[dict[str, Any], list[str]]]
) -> dict[str, Any]:
    """Returns the result of `make`, or its earlier result for an equal `key` if every file it wrote is unchanged.

    Args:
        folder: holds the files.
        name: of the record, a JSON file in `folder` that is written last.
        key: everything that the result depends on.
        make: writes files; returns a JSON object and the files' paths below `folder`.
    """
    uri = storage.join(folder, name)
    record = _read(uri)
    if record is not None and record["key"] == dict(key) and _are_unchanged(folder, record["files"]):
        return dict(record["answer"])
    storage.remove(uri)
    result, files = make()
    hashes = {path: fingerprints.sha256(storage.join(folder, path)) for path in files}
    content = {"key": dict(key), "files": hashes, "answer": result}
    storage.write_bytes(uri, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return result


def _read(uri: str) -> dict[str, Any] | None:
    """The record of an earlier run of the step; None if the file is missing or damaged."""
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_bytes(uri))
        return content if isinstance(content, dict) and {"key", "files", "answer"} <= content.keys() else None
    except ValueError:
        return None  # torn or damaged: the work is done again


def _are_unchanged(folder: str, hashes: Mapping[str, str]) -> bool:
    files = ((storage.join(folder, path), sha256) for path, sha256 in hashes.items())
    return all(storage.exists(uri) and fingerprints.sha256(uri) == sha256 for uri, sha256 in files)
