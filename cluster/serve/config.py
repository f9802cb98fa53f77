"""The settings of a served embedder."""

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.errors import ConfigError

_COUNTS = ("replicas", "cpus_per_replica", "max_batch_tokens", "max_inputs", "max_body_bytes", "max_queued_requests")


def _machine_setting(default: Any) -> Any:
    """A setting of the machine. It is not part of the artefact's identity, because it does not change what is served."""
    return field(default=default, metadata={"identity": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """The model to serve, its address and its limits."""

    model: str = ""
    """Folder, URI or hub name of the embedder."""
    name: str = "embedder"
    """The `model` of requests."""
    host: str = _machine_setting("127.0.0.1")
    """The address to listen on; 0.0.0.0 for all of the machine."""
    port: int = _machine_setting(8000)
    """0 chooses a free port."""
    replicas: int = _machine_setting(1)
    """Replicas of the model, each with its own CPUs or GPU."""
    cpus_per_replica: int | None = _machine_setting(None)
    """Threads of a forward pass, and cores that Ray reserves for a replica: by default all of this machine, or one on Ray."""
    gpu: bool = _machine_setting(False)
    """Whether each replica gets a GPU."""
    max_batch_tokens: int = 16384
    """Padded tokens that are encoded together, at most. A longer text is encoded alone."""
    max_inputs: int = 2048
    """Texts in one request."""
    max_body_bytes: int = 2 * 1024 * 1024
    """Bytes of a request; a larger one is answered with 413."""
    max_queued_requests: int = 256
    """Requests that may wait or run at the same time; one more is answered with 429."""
    source_tokenizer: str = _machine_setting("")
    """Folder, URI or hub name of the model whose tokenizer the page shows beside the embedder's; `scion serve` fills it in."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may ask, such as https://example.org; ["*"] for all."""

    def __post_init__(self) -> None:
        for key in _COUNTS:
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, key)}.", f"serve.{key}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"must be within 0 and 65535, got {self.port}.", "serve.port", "0 chooses a free one.")
        if not self.name:
            raise ConfigError("must not be empty.", "serve.name", "Requests give it as their model.")


def require_model(config: ServeConfig) -> None:
    """Checks that the settings name a model.

    Raises:
        ConfigError: they do not.
    """
    if not config.model:
        raise ConfigError("no model is named.", "serve.model", "Name an embedder's folder, URI or hub name.")
