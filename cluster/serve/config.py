"""The settings of a served embedder."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.errors import ConfigError

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
PRECISIONS = ("fp32", "bf16")
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
    models: dict[str, str] = field(default_factory=dict)
    """More embedders: folders, URIs or hub names by the `model` of requests."""
    aliases: dict[str, str] = field(default_factory=dict)
    """More names for `model` of requests, and the served name for which each stands."""
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
    precision: str = "fp32"
    """fp32, or bf16: faster where the machine computes in it, with vectors that differ; /info says by how much."""
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

    gzip: bool = _machine_setting(False)
    """Whether answers are compressed for clients that accept it, which most do: for slow networks."""
    request_log: bool = _machine_setting(False)
    """Whether each request is a line of JSON in the server's log."""

    def __post_init__(self) -> None:
        for key in _COUNTS:
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, key)}.", f"serve.{key}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"{self.precision!r} is not known.", "serve.precision", f"Choose {' or '.join(PRECISIONS)}.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"must be within 0 and 65535, got {self.port}.", "serve.port", "0 chooses a free one.")
        self._check_names()
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"{origin!r} is no origin.", "serve.cors_origins", "Write https://example.org, without a path."
                )

    def _check_names(self) -> None:
        """ConfigError for a name that means nothing, or two things."""
        for key, names in {"name": (self.name,), "models": self.models, "aliases": self.aliases}.items():
            for name in names:
                if not name or "@" in name:
                    fix = "Requests give it as their model."
                    raise ConfigError(f"must be a name without @, got {name!r}.", f"serve.{key}", fix)
        if self.model and self.name in self.models:
            raise ConfigError(
                f"{self.name!r} is the name of serve.model.", "serve.models", "Choose another, or set serve.name."
            )
        for alias, name in self.aliases.items():
            if name not in (self.name, *self.models) or alias in (self.name, *self.models):
                fix = f"An alias is a new name for one of {', '.join((self.name, *self.models))}."
                raise ConfigError(f"{alias!r} cannot stand for {name!r}.", "serve.aliases", fix)

    @property
    def folders(self) -> dict[str, str]:
        """The folder, URI or hub name of each model, by its name."""
        return {**({self.name: self.model} if self.model else {}), **self.models}


def with_models(config: ServeConfig, models: dict[str, str] | None, aliases: dict[str, str] | None) -> ServeConfig:
    """The settings with other models and aliases, where these are given; ConfigError as for the settings themselves."""
    others = dict(config.models if models is None else models)
    own = others.pop(config.name, config.model)
    return replace(config, model=own, models=others, aliases=config.aliases if aliases is None else aliases)


def require_model(config: ServeConfig) -> None:
    """Checks that the settings name a model.

    Raises:
        ConfigError: they do not.
    """
    if not config.folders:
        raise ConfigError("no model is named.", "serve.model", "Name an embedder's folder, URI or hub name.")
