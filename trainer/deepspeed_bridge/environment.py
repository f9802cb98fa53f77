"""What DeepSpeed reads from the environment when it is imported."""

import os
import sys

import torch


def prepare_environment() -> None:
    """What DeepSpeed reads at import: the device, and where compiled ops are kept: beside the packages that they were
    compiled for, so that two environments do not overwrite each other's."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", os.path.join(sys.prefix, "torch_extensions"))
