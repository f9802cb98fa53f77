"""What a submission sends, by Ray's own rules."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

MAX_BYTES = GCS_STORAGE_MAX_SIZE
"""What no cluster of Ray takes, whatever its own limit for a request."""
_SILENT = logging.Logger("unused", logging.CRITICAL)


class TooLarge(Exception):
    """More than `MAX_BYTES` would be sent. Its argument holds the sizes of the files that were counted until then."""


def sent(folder: str, excludes: list[str]) -> dict[str, int]:
    """The sizes in bytes of the files that are sent, by their paths below the folder.

    Raises:
        TooLarge: they are more than a cluster can take.
    """
    root, sizes, total = Path(folder).absolute(), dict[str, int](), 0

    def count(path: Path) -> None:
        nonlocal total
        if path.is_file():
            total += path.stat().st_size
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size
            if total > MAX_BYTES:
                raise TooLarge(sizes)

    rules: list[Callable[[Path], bool]] = [_get_excludes(root, [*get_runtime_env_default_excludes(), *excludes])]
    _dir_travel(root, rules, count, os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1", _SILENT)
    return sizes
