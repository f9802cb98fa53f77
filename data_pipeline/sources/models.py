"""Where a model is: a folder, a URI, or a name on the hub; in each case a local folder in the end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline import storage
from data_pipeline.errors import ModelError, reason

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""What is fetched from the hub: no pickled weights, no code."""


@contextmanager
def model_folder(spec: str) -> Iterator[str]:
    """A local folder with the files of the model `spec`.

    Raises:
        ModelError: it is neither a folder nor a name that the hub has, or the hub cannot be reached.
    """
    if "://" in spec:
        with storage.local_copy(spec) as folder:
            yield folder
    else:
        yield spec if os.path.isdir(spec) else _from_hub(spec)


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=_FILES)
    except Exception as error:  # the hub's client raises for a bad name, a missing model, no network, no permission
        raise ModelError(
            f"neither a folder nor a model that the hub gives ({reason(error)}).",
            f"model {name}",
            "Name a folder or a hub name.",
        ) from error
