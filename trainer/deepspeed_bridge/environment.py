"""The environment variables that DeepSpeed reads at import."""

import os
import shutil
import sys
import tempfile

import torch


def prepare_environment() -> None:
    """Sets the device, and a folder for compiled ops beside the packages that they are compiled for.

    Two environments must not overwrite each other's. Variables that the user has set stay.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        cache = os.path.join(os.path.expanduser("~"), ".cache", "scion", "torch_extensions")
        os.environ["TORCH_EXTENSIONS_DIR"] = writable_folder(os.path.join(sys.prefix, "torch_extensions"), cache)


def writable_folder(folder: str, cache: str) -> str:
    """`folder`, or its copy at `cache` where this process may not write.

    torch locks the folder of an op even to load what is compiled, which fails in a container whose file system is read-only.
    Times of files are kept, so that nothing is compiled again.
    """
    if os.access(folder if os.path.isdir(folder) else os.path.dirname(folder), os.W_OK):
        return folder
    if not os.path.isdir(cache):
        os.makedirs(os.path.dirname(cache), exist_ok=True)
        copy = tempfile.mkdtemp(dir=os.path.dirname(cache))
        if os.path.isdir(folder):
            shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))
        try:
            os.rename(copy, cache)
        except OSError:  # another process of this node was faster
            shutil.rmtree(copy)
    return cache
