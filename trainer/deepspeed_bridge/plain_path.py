"""Checkpoints at any path, for DeepSpeed: it takes the path of a folder for a glob, or for a regular expression."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_path(folder: str) -> Iterator[str]:
    """A link to the local `folder`, in whose own path nothing stands for anything else: no brackets, no `+`."""
    with tempfile.TemporaryDirectory(prefix="scion-") as home:
        link = os.path.join(home, "folder")
        os.symlink(os.path.abspath(folder), link)
        yield link
