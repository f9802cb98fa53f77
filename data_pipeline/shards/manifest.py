"""`manifest.json`: the shards of a folder, their contents and their hashes."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.artifacts import storage
from data_pipeline.errors import ArtifactError
from data_pipeline.order.row_order import Stream

NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of rows. `text_tokens` leaves out special tokens; `text_bytes` are the UTF-8 bytes of the text."""

    path: str
    rows: int
    tokens: int
    text_tokens: int
    text_bytes: int
    padding: int
    documents: int
    cut: int
    """Documents in more than one row."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All rows of a folder by stream (a language, or `pairs`). `length` is 0 where rows differ in length."""

    length: int
    vocab_size: int
    tokenizer: str
    """SHA-256 of the tokenizer's tokenizer.json."""
    streams: dict[str, tuple[Shard, ...]]

    @property
    def id(self) -> str:
        return hashlib.sha256(self._json()).hexdigest()[:32]

    def total(self, field: str) -> int:
        """Sum of a Shard field over all shards."""
        return sum(getattr(shard, field) for shards in self.streams.values() for shard in shards)

    def share(self, field: str) -> float:
        """A Shard field's sum as a share of all token positions."""
        return self.total(field) / max(1, self.total("rows") * self.length)

    def order_streams(self, weights: dict[str, float], *, of_tokens: bool = True) -> tuple[Stream, ...]:
        """The order's streams, sorted by name, for the languages or tasks in `weights`.

        Args:
            of_tokens: weights are shares of tokens, so that a stream whose rows hold more padding gets more rows; else of rows.
        """
        parts = {name: self.streams[name] for name in sorted(weights)}
        rows = {name: sum(shard.rows for shard in shards) for name, shards in parts.items()}
        tokens = {name: sum(shard.tokens for shard in shards) for name, shards in parts.items()}
        shares = {name: weights[name] * rows[name] / max(1, tokens[name]) if of_tokens else weights[name] for name in parts}
        return tuple(Stream(name=name, rows=rows[name], weight=shares[name]) for name in parts)

    def save(self, folder: str) -> None:
        storage.write_bytes(storage.join(folder, NAME), self._json())

    def _json(self) -> bytes:
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


def load(folder: str) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        ArtifactError: it is missing or cannot be read.
    """
    path = storage.join(folder, NAME)
    if not storage.exists(path):
        raise ArtifactError("no manifest.json here.", folder, "Build the shards with `scion shard`.")
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(path))
        streams = {name: tuple(Shard(**shard) for shard in shards) for name, shards in content.pop("streams").items()}
        return Manifest(streams=streams, **content)
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"cannot be read ({error}).", path, "Build the shards again.") from error
