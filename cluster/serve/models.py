"""What a server serves: models by name, of which each may be replaced by a newer version while requests are answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.serve.answers import TextPieces
from cluster.serve.batching import Vectors
from cluster.serve.protocol import EmbeddingRequest, ModelCard, Output, RequestError, TokenIds, kind_of, shortened


class Model(Protocol):
    """A model behind the front."""

    card: ModelCard

    @property
    def is_stuck(self) -> bool:
        """Whether a forward pass does not end."""
        ...

    def tokenize(self, asked: EmbeddingRequest, /) -> TokenIds:
        """Token ids of the texts of a request."""
        ...

    def pieces(self, asked: EmbeddingRequest, /) -> Sequence[TextPieces]:
        """What each token of the texts of a request stands for."""
        ...

    async def encode(self, rows: TokenIds, output: Output, /) -> Vectors:
        """Vectors of checked token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The models that are served at a time."""

    by_name: Mapping[str, Model]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """More names, and the model for which each stands."""

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(model.card for model in self.by_name.values())

    def find(self, asked: Any) -> Model:
        """The model of a request: by its name, an alias, or NAME@VERSION, which no other version answers.

        Raises:
            RequestError: there is none; 404 if it is a name.
        """
        served = f"Served here: {', '.join([*self.by_name, *self.aliases])}."
        if not isinstance(asked, str):
            what = "is missing." if asked is None else f"must be a string, got {kind_of(asked)}."
            raise RequestError(what, "model", served)
        name, separator, version = asked.partition("@")
        model = self.by_name.get(self.aliases.get(name, name))
        if model is None:
            raise RequestError(f"there is no model {shortened(asked)}.", "model", served, 404, "model_not_found")
        if separator and version != model.card.version:
            what = f"version {shortened(version)} is not served. The served one is {model.card.version}."
            raise RequestError(what, "model", f"Ask for {model.card.id}, or for {name}.", 404, "model_not_found")
        return model


class Shelf:
    """Holds the models of a server. A request takes them once, so that a replacement does not touch it."""

    def __init__(self, models: Models) -> None:
        self.models = models
