"""Embedders to merge: opened without being read, compared, and merged one tensor after the other.

Weights are mapped from their safetensors files, whole or in shards, and the merged ones are mapped to scratch files. A merge
then needs the memory of one tensor of each model; the pages of the files are in the system's cache, which drops them as needed.
Only a BART and the text tower of a multimodal checkpoint are read as a whole, since loading converts their weights.
"""

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError
from data_pipeline.shards.build import fingerprint
from data_pipeline.sources.models import model_folder
from trainer.embedder import WEIGHTS, Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.merging.merge import Column, Models, Recipe, weighted_sum
from trainer.models import encoder_decoders, loading, multimodal

_OF_TEXTS = ("pooling", "normalize", "template", "prompts", "include_prompt")
"""Settings that decide how a text is read and pooled."""
LISTED = 20
"""Most differences in a message."""
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def open_mapped(uri: str) -> Embedder:
    """An embedder whose weights have the dtype of their file, so that they are mapped and not read.

    Raises:
        ModelError: as `Embedder.load`.
    """
    with model_folder(uri) as folder:
        return Embedder.load(folder, dtype=_stored_dtype(folder))


def _stored_dtype(folder: str) -> torch.dtype:
    """The one dtype of all floating-point tensors in a folder; fp32 if there are several, or if loading computes with them."""
    config = loading.model_config(folder)
    if multimodal.is_multimodal(config) or encoder_decoders.is_rebuilt(config):
        return torch.float32
    found = set()
    for name in sorted(os.listdir(folder)):
        if WEIGHTS.fullmatch(name) and name.endswith(".safetensors"):  # not the ranges and maps beside them
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            found |= {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
    floats = [_STORED.get(name, torch.float32) for name in found if name.startswith(("F", "BF"))]
    return floats[0] if len(floats) == 1 else torch.float32


def check_alike(embedders: Mapping[str, Embedder]) -> None:
    """Refuses embedders that do not fit together; compares each with the first.

    Args:
        embedders: by the names that errors use.

    Raises:
        ModelError: they differ in tokenizer, tensors, shapes or kinds of numbers; lists up to `LISTED` differences.
    """
    names = list(embedders)
    found = [line for name in names[1:] for line in _differences(name, embedders[name], embedders[names[0]])]
    if found:
        more = f"\n  and {len(found) - LISTED} more" if len(found) > LISTED else ""
        listed = "".join(f"\n  {line}" for line in found[:LISTED])
        raise ModelError(
            f"the other models differ from it in{listed}{more}\n",
            names[0],
            "Merge models of one architecture with the same tokenizer: equal rows must stand for equal tokens.",
        )


def common_spec(specs: Mapping[str, EmbedderSpec]) -> EmbedderSpec:
    """The spec of a merge of embedders: that of the last, with the widths and exits for which all were trained.

    Args:
        specs: by the names that errors use, at least one.

    Raises:
        ModelError: two of them read or pool texts differently.
    """
    *_, (last, spec) = specs.items()
    for name, other in specs.items():
        for key in _OF_TEXTS:
            if (own := getattr(other, key)) != (expected := getattr(spec, key)):
                raise ModelError(
                    f"its {key} is {own!r}, and that of {last} is {expected!r}: their vectors mean different things.",
                    name,
                    "Merge embedders that read and pool texts alike.",
                )
    shared: dict[str, Any] = {
        key: tuple(value for value in getattr(spec, key) if all(value in getattr(other, key) for other in specs.values()))
        for key in ("dimensions", "layers")
    }
    return replace(spec, **shared)


def is_embedder(uri: str) -> bool:
    """Whether a folder says how texts are pooled; a language model does not."""
    if "://" in uri:
        return storage.exists(storage.join(uri, "modules.json"))
    with model_folder(uri) as folder:
        return os.path.exists(os.path.join(folder, "modules.json"))


def _differences(name: str, embedder: Embedder, first: Embedder) -> Iterator[str]:
    """What an embedder has that the first has not, a line each."""
    if fingerprint(embedder.tokenizer) != fingerprint(first.tokenizer):
        yield f"its tokenizer ({name})"
    tensors, expected = embedder.model.state_dict(), first.model.state_dict()
    for key in sorted(tensors.keys() | expected.keys()):
        if key not in tensors:
            yield f"{key}, which is missing ({name})"
        elif key not in expected:
            yield f"{key}, which the first does not have ({name})"
        elif tensors[key].shape != expected[key].shape:
            yield f"{key}: {tuple(tensors[key].shape)}, not {tuple(expected[key].shape)} ({name})"
        elif tensors[key].is_floating_point() != expected[key].is_floating_point():
            yield f"{key}: {tensors[key].dtype}, not {expected[key].dtype} ({name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """Models that fit together, and the embedder into which they are merged."""

    models: Sequence[Embedder]
    base: Embedder | None
    target: Embedder
    """An embedder of `scratch`."""

    def ask(self, measure: Callable[[Embedder], float], search: Callable[[], Sequence[float]] = lambda: ()) -> Models:
        """What a method may ask of them.

        Args:
            measure: the score of an embedder on the probe pairs.
            search: the weights that a search on them finds.
        """

        def score(weights: Sequence[float]) -> float:
            self.fill(Recipe(merge=lambda column: weighted_sum(column.models, weights)))
            return measure(self.target)

        return Models(
            count=len(self.models),
            columns=lambda: (column for _, column in self._columns(floating=True)),
            score=score,
            search=search,
        )

    def fill(self, recipe: Recipe, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Writes the merged weights into the target; what is no floating-point number is that of the base, else the first."""
        total = len(_unique(self.target))
        with torch.no_grad():
            for done, (tensor, column) in enumerate(self._columns(floating=True)):
                progress(done, total)
                tensor.copy_(recipe.merge(column))
            for tensor, column in self._columns(floating=False):
                tensor.copy_(column.models[0] if column.base is None else column.base)

    def _columns(self, *, floating: bool) -> Iterator[tuple[torch.Tensor, Column]]:
        """Each tensor of the target with those of the models; tied ones once."""
        states = [embedder.model.state_dict() for embedder in self.models]
        base = None if self.base is None else self.base.model.state_dict()
        for name, tensor in _unique(self.target).items():
            if tensor.is_floating_point() == floating:
                yield tensor, Column([state[name] for state in states], None if base is None else base[name])


def _unique(embedder: Embedder) -> dict[str, torch.Tensor]:
    """The tensors of a model by name, tied ones under their first name."""
    firsts: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in embedder.model.state_dict(keep_vars=True).items():
        firsts.setdefault(id(tensor), (name, tensor))
    return dict(firsts.values())


@contextmanager
def scratch(uri: str) -> Iterator[Embedder]:
    """The embedder at `uri` with fp32 weights that are mapped to scratch files, to be filled and saved within the block.

    Raises:
        OSError: the temporary folder has no room for the weights.
    """
    embedder = open_mapped(uri)
    embedder.compensations, embedder.calibrations = {}, {}  # the merged model drifts otherwise, and has other ranges
    with tempfile.TemporaryDirectory(prefix="scion-merge-") as folder:
        for number, tensor in enumerate(_unique(embedder).values()):
            if tensor.is_floating_point():
                tensor.data = _mapped(os.path.join(folder, str(number)), tensor.shape)
        for buffer in embedder.model.buffers():  # those that are computed and not saved
            if buffer.is_floating_point():
                buffer.data = buffer.float()
        yield embedder


def _mapped(path: str, shape: torch.Size) -> torch.Tensor:
    """A tensor of fp32 zeros that is mapped to a new file. A full disk fails here, and not in a write to mapped memory."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4, 4 * shape.numel()))
    return torch.from_file(path, shared=True, size=shape.numel(), dtype=torch.float32).view(shape)
