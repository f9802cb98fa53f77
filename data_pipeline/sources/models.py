"""Resolves a model, a folder, a URI or a hub name (`NAME`, `NAME@REVISION`), to a local folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline.artifacts import storage
from data_pipeline.errors import ModelError, reason

_WEIGHTS = ".safetensors"
_FILES = [f"*{_WEIGHTS}", "*.json", "*.txt", "*.model"]
"""Files to download from the hub, the weights first: no pickled weights, no code."""


@contextmanager
def model_folder(spec: str, *, has_weights: bool = True) -> Iterator[str]:
    """A local folder with the files of the model `spec`.

    Args:
        has_weights: whether weights are downloaded too; a tokenizer needs none.

    Raises:
        ModelError: it is neither a folder nor a model on the hub, or the hub cannot be reached.
    """
    if "://" in spec:
        with storage.local_copy(spec, lambda name: has_weights or not name.endswith(_WEIGHTS)) as folder:
            yield folder
    elif is_path(spec) and not os.path.isdir(spec):
        raise ModelError("there is no such folder.", f"model {spec}", "Check the path; a hub name has one slash at most.")
    else:
        yield spec if os.path.isdir(spec) else _from_hub(spec, has_weights)


def hub_name(spec: str) -> tuple[str, str | None]:
    """The name on the hub, and the branch, tag or commit; None for the default branch."""
    name, _, revision = spec.partition("@")
    return name, revision or None


def is_path(spec: str) -> bool:
    """Whether it is a path and not a hub name, which has one slash at most."""
    return "://" not in spec and (spec.startswith((".", "/", "~")) or hub_name(spec)[0].count("/") > 1)


def _from_hub(spec: str, has_weights: bool) -> str:
    """The local folder of a model that is downloaded from the hub, or already cached; ModelError if that fails."""
    from huggingface_hub import snapshot_download

    name, revision = hub_name(spec)
    try:
        return snapshot_download(name, revision=revision, allow_patterns=_FILES[0 if has_weights else 1 :])
    except Exception as error:  # the hub's client raises for a bad name, a missing model, no network, no permission
        raise ModelError(
            f"neither a folder nor a model that the hub gives ({reason(error)}).",
            f"model {spec}",
            "Name a folder or a hub name, NAME or NAME@REVISION.",
        ) from error
