"""Encodes text into vectors: the one encode path, which evaluation measures and the server uses.

An embedder is a sentence-transformers folder with an `embed.json`. Any model folder can be loaded as one: without those
files it uses mean pooling and normalises.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.pairs.batch import batches_by_length, pad_rows
from data_pipeline.pairs.text_form import TEXT, TextForm, TokenizedText
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train as tokenizers
from trainer import quantization, query_drift
from trainer.embedder_spec import EmbedderSpec, read_spec, write_spec
from trainer.models import latent_attention, loading
from trainer.models.exits import first_layers
from trainer.models.onednn_linear import use_onednn
from trainer.models.pooling import LATENT_ATTENTION, check_pooling, places, pooling_of
from trainer.quantization import Calibration
from trainer.query_drift import Compensation

MAX_SHARD_SIZE = "5GB"
"""Size limit of a weight file in a model folder."""
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""Weight files that `save_pretrained` writes, whole or in shards."""
BATCH_TOKENS = 4096
"""Padded tokens of one forward pass."""


class Embedder:
    """A model, its tokenizer and a spec. `encode` gives the same vector for a text in any batch, to 1e-5."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        spec: EmbedderSpec,
        compensations: Mapping[query_drift.Key, Compensation] | None = None,
        calibrations: Mapping[quantization.Key, Calibration] | None = None,
    ) -> None:
        """
        Raises:
            ConfigError: the vectors of this model and pooling would not depend on the text, or the pooling has no weights.
        """
        reads_once = spec.template.count(TEXT) == 1  # the first token of a second copy has read the first
        check_pooling(spec.pooling, reads_once and loading.is_causal(model.config), type(model).__name__)
        if spec.pooling == LATENT_ATTENTION and not hasattr(model, latent_attention.NAME):
            raise ConfigError("the model has no latent attention.", f"pooling={spec.pooling}", "Train it with `scion embed`.")
        self.model = model.eval()
        self.compensations = dict(compensations or {})
        """Maps of queries to the spaces of earlier versions, which `scion drift` makes."""
        self.calibrations = dict(calibrations or {})
        """Ranges of values by width and depth, for vectors of bytes; `scion embed` measures them."""
        self.tokenizer = with_padding(tokenizer)
        self.spec = spec
        self._shallow: dict[int, PreTrainedModel] = {}
        """Models of some layers, by their number; they share the weights."""
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id

    @classmethod
    def load(
        cls, uri: str | os.PathLike[str], dtype: loading.Dtype = torch.float32, spec: EmbedderSpec | None = None
    ) -> "Embedder":
        """Loads an embedder, or any model folder or hub name.

        Args:
            dtype: of the weights; weights that are stored in it are mapped from their file and not read.
            spec: in place of the folder's own, to use a language model without a training.

        Raises:
            ModelError: the model or the tokenizer is missing, or the pooling is unknown.
            ConfigError: the spec does not fit the model.
        """
        with model_folder(os.fspath(uri)) as folder:
            model = loading.encoder(folder, dtype)
            spec = spec or read_spec(folder, loading.max_length(model.config))
            if spec.pooling == LATENT_ATTENTION:
                latent_attention.attach(model, folder, latents=None)
            maps, ranges = query_drift.load(folder), quantization.load(folder)
            return cls(model, tokenizers.load(folder), spec, maps, ranges)

    @classmethod
    def load_for_inference(cls, uri: str, device: str | torch.device | None = None) -> "Embedder":
        """As `load`, to encode only: it cannot be saved. Runs on this process's own device when none is given."""
        embedder = cls.load(uri)
        embedder.model.to(own_device() if device is None else device)
        use_onednn(embedder.model)
        return embedder

    def __repr__(self) -> str:
        return f"Embedder({self.model.config.model_type}, {self.spec})"

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The widths that a request may ask for, the full width first."""
        return tuple(sorted({self.width, *self.spec.dimensions}, reverse=True))

    @cached_property
    def width(self) -> int:
        """Width of the model's output vectors, measured: OPT-350m's is smaller than its `hidden_size`."""
        with torch.inference_mode():
            ids = torch.tensor([[self.tokenizer.pad_token_id]], device=self.model.device)
            return int(self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape[-1])

    def tokenize(
        self, texts: Sequence[str], prompt_name: str | None = None, prompt: str | None = None, *, truncate: str = "end"
    ) -> list[TokenizedText]:
        """Token ids of the texts as `encode_ids` reads them: with prompt and special tokens, and cut to `max_length`.

        Args:
            truncate: where a text that is too long is cut: `end`, `start`, or `none` for nowhere.

        Raises:
            ConfigError: there is no prompt of this name, it leaves no room for a text, or its template must keep the start.
        """
        if truncate == "start" and self.spec.template != TEXT:
            raise ConfigError("a text in a template is cut at its end only.", "truncate", "Ask for end or none.")
        form = self.spec.form(prompt_name, prompt)
        if form != TextForm():
            form.check(self.tokenizer, self.spec.max_length)
        limit = sys.maxsize if truncate == "none" else self.spec.max_length
        return form.tokenize(self.tokenizer, texts, limit, keeps_end=truncate == "start")

    def encode(
        self,
        texts: Sequence[str],
        dimensions: int | None = None,
        layers: int | None = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        index: str | None = None,
        output_dtype: str = "float",
    ) -> NDArray[Any]:
        """Vectors [n, d] of n texts.

        Args:
            dimensions: the width d, one of `dimensions`; the full width when not given.
            layers: how many layers compute them, one of `spec.layers`; all when not given.
            prompt_name: of a prompt in `spec.prompts`; its default prompt when not given. `query` and `document`, the sides of
                a search, may be asked of every embedder.
            prompt: a text to put in front, in place of a named one.
            index: an earlier version of the embedder, whose vectors are in the index that these queries search.
            output_dtype: `float`, `int8` or `uint8` for bytes, `binary` or `ubinary` for bits, [n, d / 8].

        Raises:
            ConfigError: `texts` is no list of texts, there is no such prompt, version or type, or the embedder was not trained
                or calibrated for this width or depth.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ConfigError("expected a list of texts.", "encode", 'Write encode(["..."]).')
        vectors = self.encode_ids(self.tokenize(texts, prompt_name, prompt), dimensions, layers)
        return self.quantized(self.for_index(index, vectors, layers), output_dtype, layers)

    def encode_ids(
        self, ids: Sequence[Sequence[int]], dimensions: int | None = None, layers: int | None = None
    ) -> NDArray[np.float32]:
        """Vectors [n, d] of n lists of token ids, including special tokens.

        Vectors are truncated to the first `dimensions` values, then normalised.

        Raises:
            ConfigError: the embedder was not trained for this width or depth.
        """
        self._check_layers(layers)
        if dimensions is not None and dimensions not in self.dimensions:
            raise ConfigError(
                f"this embedder has no {dimensions} dimensions.", "dimensions", f"Ask for one of {self.dimensions}."
            )
        vectors = np.empty((len(ids), dimensions or self.width), np.float32)
        for indices in batches_by_length(ids, BATCH_TOKENS):
            vectors[indices] = self.finish(self.pooled([ids[index] for index in indices], layers), dimensions)
        return vectors

    def pooled(self, ids: Sequence[Sequence[int]], layers: int | None = None) -> NDArray[np.float32]:
        """What `finish` makes vectors of, [n, width], of n lists of token ids in one forward pass.

        Raises:
            ConfigError: the embedder was not trained for this depth.
        """
        self._check_layers(layers)
        # An empty text has no tokens if the tokenizer inserts none: `pad_rows` gives it one.
        chunk = pad_rows(ids, int(self.tokenizer.pad_token_id))
        token_ids, mask, skipped = (part.to(self.model.device) for part in chunk)
        with torch.inference_mode():
            states = self._model_of(layers)(input_ids=token_ids, attention_mask=mask).last_hidden_state.float()
            vectors = pooling_of(self.spec.pooling, self.model)(states, places(mask, skipped))
        found: NDArray[np.float32] = vectors.float().cpu().numpy()
        return found

    def finish(
        self, pooled: NDArray[np.float32], dimensions: int | None = None, is_normalized: bool | None = None
    ) -> NDArray[np.float32]:
        """Vectors [n, dimensions] of pooled states: the first `dimensions` values, normalised as the spec says by default."""
        vectors = torch.from_numpy(pooled)[:, :dimensions]
        if is_normalized is None:
            is_normalized = self.spec.normalize
        return (torch.nn.functional.normalize(vectors, dim=1) if is_normalized else vectors).numpy()

    def for_index(self, index: str | None, queries: NDArray[np.float32], layers: int | None = None) -> NDArray[np.float32]:
        """Queries [n, d] in the space of an earlier version, whose index they search; as they are for None.

        Raises:
            ConfigError: there is no map to this version for their width and depth.
        """
        if index is None:
            return queries
        width = queries.shape[1]
        if (index, width, layers) not in self.compensations:
            known = sorted({version for version, *rest in self.compensations if rest == [width, layers]})
            fix = f"Ask for one of: {', '.join(known)}." if known else "Make it with `scion drift`."
            raise ConfigError(f"this embedder cannot search an index of {index!r}.", "index", fix)
        return self.compensations[index, width, layers].queries(queries)

    def quantized(self, vectors: NDArray[np.float32], dtype: str, layers: int | None = None) -> NDArray[Any]:
        """Vectors [n, d] of the embedder in another type; ConfigError as `quantization.quantize`."""
        return quantization.quantize(vectors, dtype, self.calibrations.get((vectors.shape[1], layers)))

    def calibrate(self, ids: Sequence[Sequence[int]]) -> None:
        """Measures the ranges of values at each width and depth, by n lists of token ids."""
        for layers in (None, *self.spec.layers):
            whole = self.encode_ids(ids, layers=layers)
            self.calibrations |= {(width, layers): quantization.fit(self.finish(whole, width)) for width in self.dimensions}

    def save(self, uri: str) -> None:
        """Writes a sentence-transformers folder (the layout that all versions since 2 read) with `embed.json`."""
        with model_output(uri) as folder:
            self.model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
            self.tokenizer.model_max_length = self.spec.max_length
            self.tokenizer.save_pretrained(folder)
            write_spec(self.spec, folder, self.width)
            query_drift.save(folder, self.compensations)
            quantization.save(folder, self.calibrations)

    def _model_of(self, layers: int | None) -> PreTrainedModel:
        """The model without the layers behind the first `layers`."""
        if layers is None:
            return self.model
        if layers not in self._shallow:
            self._shallow[layers] = first_layers(self.model, layers)
        return self._shallow[layers]

    def _check_layers(self, layers: int | None) -> None:
        if layers is not None and layers not in self.spec.layers:
            offered = f"Ask for one of {self.spec.layers}." if self.spec.layers else "Leave it out."
            raise ConfigError(f"this embedder has no exit behind {layers} layers.", "layers", offered)


def own_device() -> torch.device:
    """The GPU that Ray gives this process, if it gives one, or that there is without Ray; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    import ray

    return torch.device("cpu" if ray.is_initialized() and not ray.get_gpu_ids() else "cuda")


@contextmanager
def model_output(uri: str) -> Iterator[str]:
    """A local folder whose files are uploaded to `uri` when the block ends without an error.

    Weights of an earlier save are removed first: a resumed run may write other shards, or a single file instead of shards,
    and loaders prefer `model.safetensors` to an index.
    """
    for name in filter(WEIGHTS.fullmatch, storage.files(uri)):
        storage.remove(storage.join(uri, name))
    with storage.local_output(uri) as folder:
        yield folder


def with_padding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Makes the tokenizer pad on the right; without a padding token it pads with its end token, as the shards do.

    Raises:
        ModelError: the tokenizer has no token to pad with.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no token to pad with.", tokenizer.name_or_path, "Give it a pad_token or an eos_token."
        )
    return tokenizer
