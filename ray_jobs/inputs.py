"""Fingerprints of inputs that Scion did not make."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import attrgetter
from typing import Any

from data_pipeline.artifacts import fingerprints, storage
from data_pipeline.errors import ModelError
from data_pipeline.sources import documents
from data_pipeline.sources.models import is_path
from ray_jobs.config.schema import ScionConfig

_answers: ContextVar[dict[tuple[str, str], str] | None] = ContextVar("answers", default=None)
_POOLING = "_Pooling/config.json"
_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")


@contextmanager
def ask_once() -> Iterator[None]:
    """Within the block an object store is asked once about each input: the stages of a pipeline ask sixty times."""
    token = _answers.set({})
    try:
        yield
    finally:
        _answers.reset(token)


def _once(kind: str, spec: str, ask: Callable[[], str]) -> str:
    known = _answers.get()
    if known is None or "://" not in spec:
        return ask()
    return known[kind, spec] if (kind, spec) in known else known.setdefault((kind, spec), ask())


def model_fingerprint(spec: str, *, key: str = "source_model", tokenizer_only: bool = False, pools: bool = False) -> str:
    """Changes when a file of the model folder changes. The fingerprint of a hub name is the name.

    Args:
        key: the setting that names the folder, for the error.
        pools: whether the folder's own pooling is used, which sentence-transformers keeps in a folder below.

    Raises:
        ModelError: the path looks like a folder and does not exist.
    """
    kind = "tokenizer" if tokenizer_only else "embedder" if pools else "model"
    return _once(kind, spec, partial(_model_fingerprint, spec, key, tokenizer_only, pools))


def _model_fingerprint(spec: str, key: str, tokenizer_only: bool, pools: bool) -> str:
    """A hash of each file of the model or its tokenizer; the name itself for a hub model; ModelError if a folder is missing."""
    if "://" not in spec and not os.path.isdir(spec):
        if is_path(spec):
            raise ModelError("no such folder.", f"{key}={spec}", "Name a model folder or a hub name.")
        return f"hub:{spec}"
    every = storage.files(spec)
    names = [name for name in every if "/" not in name and name.endswith(_WEIGHTS)]
    names += [name for name in every if pools and name.endswith(_POOLING)]
    if tokenizer_only:
        # config.json decides the class of the tokenizer, and whether the model is a decoder.
        parts = ("config.json", "tokenizer", "vocab", "special", "merges")
        names = [name for name in names if name.startswith(parts) or name.endswith(".model")]
    return " ".join(f"{name}:{fingerprints.fingerprint(storage.join(spec, name))[:16]}" for name in names)


def data_fingerprints(config: ScionConfig, *keys: str) -> dict[str, str]:
    """The fingerprints of the documents or pairs at the given configuration keys, by key.

    Leaves out keys without a value.
    """
    given = {key: attrgetter(key)(config) for key in keys}
    return {
        key: _once("text", spec, partial(documents.fingerprint, spec, key=key))
        for key, spec in given.items()
        if spec is not None
    }


def method_inputs(settings: Any) -> Iterator[tuple[str, str]]:
    """The files and model folders in a method's settings, with a fingerprint of each.

    A changed dictionary is another input, though its path is the same.
    """
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if dataclasses.is_dataclass(value):
            yield from method_inputs(value)
        elif isinstance(value, str) and os.path.isdir(value):
            yield entry.name, model_fingerprint(value)
        elif isinstance(value, str) and ("://" in value or os.path.isfile(value)) and storage.exists(value):
            yield entry.name, fingerprints.fingerprint(value)[:16]
