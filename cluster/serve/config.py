"""The settings of a served embedder."""

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.errors import ConfigError

_COUNTS = ("replicas", "cpus_per_replica", "max_batch_tokens", "max_inputs", "max_body_bytes", "max_queued_requests")


def _place(default: Any) -> Any:
    """A setting of the machine: it leaves what is served, and so the artefact's identity, as it is."""
    return field(default=default, metadata={"identity": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What is served, where, and how much of it at once."""

    model: str = ""
    """Folder, URI or hub name of the embedder."""
    name: str = "embedder"
    """The name that requests give as `model`."""
    host: str = _place("127.0.0.1")
    """The address to listen on; 0.0.0.0 for all of the machine."""
    port: int = _place(8000)
    """0 takes a free one."""
    replicas: int = _place(1)
    """Copies of the model, each with its own CPUs or GPU."""
    cpus_per_replica: int = _place(1)
    """Cores that Ray reserves for a copy, and threads that its forward pass uses."""
    gpu: bool = _place(False)
    """Whether each copy gets a GPU."""
    max_batch_tokens: int = 16384
    """Tokens that are encoded together, of one request or of many. A text longer than that still goes, alone."""
    batch_wait_s: float = 0.002
    """How long an idle copy waits for company before it starts."""
    max_inputs: int = 2048
    """Texts in one request."""
    max_body_bytes: int = 2 * 1024 * 1024
    """Bytes of a request; a larger one is answered with 413."""
    max_queued_requests: int = 256
    """Requests that may be waiting or under way; one more is answered with 503."""

    def __post_init__(self) -> None:
        for key in _COUNTS:
            if getattr(self, key) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, key)}.", f"serve.{key}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"must be within 0 and 65535, got {self.port}.", "serve.port", "0 takes a free one.")
        if self.batch_wait_s < 0:
            raise ConfigError(f"must not be negative, got {self.batch_wait_s}.", "serve.batch_wait_s")
        if not self.name:
            raise ConfigError("must not be empty.", "serve.name", "Requests give it as their model.")
