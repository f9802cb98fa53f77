"""An embedder as mteb asks for it (https://github.com/embeddings-benchmark/mteb, `EncoderProtocol` of version 2)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError
from trainer.embedder import Embedder


class MtebEncoder:
    """What `mteb.evaluate` measures: `mteb.evaluate(scion.mteb_encoder("runs/el/embed"), tasks)`.

    Queries and documents get the prompts `query` and `document` of the embedder, other texts its default prompt.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        dimensions: int | None = None,
        layers: int | None = None,
        name: str | None = None,
    ) -> None:
        """Loads the embedder.

        Args:
            model_name: a folder, or any model that `Embedder.load` takes.
            revision: under which mteb keeps the results.
            device: where it computes; a GPU if there is one, when not given.
            dimensions, layers: of the vectors, as in `Embedder.encode`.
            name: the model's name in mteb, `organisation/model`; made of the folder's name when not given.

        Raises:
            ConfigError: mteb is not installed, or the embedder was not trained for this width or depth.
        """
        try:
            import mteb  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name != "mteb":
                raise
            raise ConfigError("mteb is not installed.", "mteb_encoder", "pip install mteb") from None
        self.embedder = Embedder.load_for_inference(model_name, device)
        self.dimensions, self.layers = dimensions, layers
        self._name = name or f"scion/{os.path.basename(os.path.normpath(model_name))}"
        self._revision = revision
        self.embedder.encode(["a text"], dimensions, layers)  # a wrong width fails here, not in each task

    def encode(self, inputs: Iterable[dict[str, Any]], *, prompt_type: Any = None, **others: Any) -> NDArray[np.float32]:
        """Vectors [n, d] of the texts of all batches.

        Args:
            inputs: batches with a list of texts under `text`.
            prompt_type: mteb's `PromptType`, query or document; None for texts without sides.
            others: the task and its options, of which vectors do not depend.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        side = None if prompt_type is None else str(prompt_type.value)
        return self.embedder.encode(texts, self.dimensions, self.layers, prompt_name=side)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs, [n, m]."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of vectors in the same places, [n]."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside the results. Fields that the folder does not say stay empty."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        experiment = {name: value for name in ("dimensions", "layers") if (value := getattr(self, name)) is not None}
        known = {
            "name": self._name,
            "revision": self._revision,
            "n_parameters": sum(weights.numel() for weights in self.embedder.model.parameters()),
            "max_tokens": self.embedder.spec.max_length,
            "embed_dim": self.dimensions or self.embedder.dimensions[0],
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
            "use_instructions": bool(self.embedder.spec.prompts),
            "experiment_kwargs": experiment or None,
        }
        return ModelMeta.create_empty({name: value for name, value in known.items() if value is not None})


def mteb_encoder(folder: str | os.PathLike[str], **settings: Any) -> MtebEncoder:
    """An embedder that `mteb.evaluate` measures.

    Args:
        folder: of the embedder, or any model that `Embedder.load` takes.
        settings: `dimensions`, `layers`, `device`, and `name` and `revision` under which mteb keeps the results.

    Raises:
        ConfigError: mteb is not installed, or the embedder was not trained for this width or depth.
    """
    return MtebEncoder(os.fspath(folder), **settings)
