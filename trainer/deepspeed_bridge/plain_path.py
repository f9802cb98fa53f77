"""Checkpoints at any path: DeepSpeed 0.19 reads the path of a folder as a glob, or as a regular expression."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_path(folder: str) -> Iterator[str]:
    """A link to the local `folder`, at a path without special characters such as brackets or `+`."""
    with tempfile.TemporaryDirectory(prefix="scion-") as home:
        link = os.path.join(home, "folder")
        os.symlink(os.path.abspath(folder), link)
        yield link
