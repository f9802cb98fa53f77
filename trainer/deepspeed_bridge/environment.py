"""The environment variables that DeepSpeed reads at import."""

import os
import sys

import torch


def prepare_environment() -> None:
    """Sets the device, and a folder for compiled ops beside the packages that they are compiled for.

    Two environments must not overwrite each other's. Variables that the user has set stay.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
