"""Creates a file that does not exist yet, as one of several processes."""

import errno
import os
import secrets
from pathlib import Path

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.retries import filesystem, is_local, with_retries

_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of a store that does not know conditional requests."""


def create(uri: str, content: bytes) -> bool:
    """Writes a new file, whole or not at all; False if there is one already with other content.

    Of several processes that create it at the same time one succeeds: on a disk by a hard link, or by an empty file where there
    are none, on S3, Google and Azure by a conditional request. Other stores may let several succeed.
    """
    try:
        _create(uri, content)
    except FileExistsError:
        return storage.read_bytes(uri) == content  # ours, if the answer to the first attempt was lost
    return True


def _create_once(uri: str, content: bytes) -> None:
    """Raises FileExistsError if there is a file; without hard links or conditional requests, the next best thing is done."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        try:
            fs.pipe_file(path, content, mode="create")
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
                raise
            fs.pipe_file(path, content)
        return
    draft = f"{path}.{secrets.token_hex(6)}.draft"
    storage.write_once(draft, content)
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # vfat, many mounts of FUSE and SMB, each with an error number of its own
        with open(path, "xb"):
            pass
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


_create = with_retries(_create_once)
