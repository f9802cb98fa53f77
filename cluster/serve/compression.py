"""Compressed bodies of requests."""

import zlib

from cluster.serve.protocol import RequestError

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""What zlib calls the formats."""


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """A body whose head says that it has this encoding, unpacked as far as `limit` bytes.

    Raises:
        RequestError: 413 for a longer one, 415 for another encoding, 400 for a broken one.
    """
    encoding = encoding.strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in _WINDOW:
        what = f"{encoding[:40]!r} is not known."
        raise RequestError(
            what, "Content-Encoding", f"Send {', '.join(_WINDOW)}, or a plain body.", 415, "unsupported_encoding"
        )
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        content = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(f"the body is not {encoding} ({error}).", "Content-Encoding", "Leave the header out.") from error
    if len(content) > limit:
        fix = "Send fewer inputs in a request."
        raise RequestError(f"the body has more than {limit:,} bytes.", "", fix, 413, "request_too_large")
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(f"the body is not one whole {encoding} stream.", "Content-Encoding", "Send all of it, and only it.")
    return content
