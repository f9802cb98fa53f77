"""The trained weights of an engine, for the trained model's folder.

Read from DeepSpeed 0.19.8, utils/tensor_fragment.py.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.artifacts import storage
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.partitioned import return_freed_memory
from trainer.ledger.step_name import DRAFT_PREFIX

_PREFIX = f"{DRAFT_PREFIX}export-"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextmanager
def trained_weights(engine: Any, config: TrainConfig, uri: str) -> Iterator[dict[str, torch.Tensor]]:
    """The module's state dict on rank 0, without frozen weights, in the format of `config.export`; every rank enters it.

    A bf16 run exported in fp32 gives the optimizer's fp32 weights: small updates live in the digits that bf16 lacks.
    Each weight is gathered by itself and written to a file below `uri`, or below the temporary folder if `uri` is not local.
    The files are mapped into memory: they take pages of the file cache, which the system may write out.

    Raises:
        OSError: there is no room for the files.
    """
    home = storage.filesystem(uri)[1] if storage.is_local(uri) else None
    if home is not None:
        os.makedirs(home, exist_ok=True)
        remove_leftovers(home)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=home) if dist.get_rank() == 0 else nullcontext("") as folder:
        yield _weights(engine, config, lambda number: os.path.join(folder, str(number)))


def remove_leftovers(home: str) -> None:
    """Removes the files of killed attempts, to make room."""
    if dist.get_rank() == 0:
        for name in filter(lambda name: name.startswith(_PREFIX), os.listdir(home)):
            storage.remove(os.path.join(home, name))


def _weights(engine: Any, config: TrainConfig, file_of: Callable[[int], str]) -> dict[str, torch.Tensor]:
    """The trained weights and the buffers by name, on the CPU of rank 0; empty on other ranks. Every rank calls it."""
    first, dtype = dist.get_rank() == 0, _DTYPES[config.export]
    use_fp32 = config.precision == "bf16" and config.export == "fp32"
    gathered: dict[str, torch.Tensor] = {}
    with return_freed_memory():
        for name, weight in engine.module.named_parameters():
            if not weight.requires_grad:
                continue
            with _whole(weight, use_fp32) as value:
                if first:
                    gathered[name] = mapped_copy(value.detach(), dtype, file_of(len(gathered)))
    if first:
        weights = dict(engine.module.named_parameters(remove_duplicate=False))
        buffers = {name: value for name, value in engine.module.state_dict().items() if name not in weights}
        gathered |= {
            name: value.cpu().to(dtype) if value.is_floating_point() else value.cpu() for name, value in buffers.items()
        }
    return gathered


@contextmanager
def _whole(weight: torch.nn.Parameter, is_fp32: bool) -> Iterator[torch.Tensor]:
    """A weight, or its fp32 value in the optimizer, gathered from all ranks."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if is_fp32:
        yield safe_get_full_fp32_param(weight)
    else:
        with GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
            yield weight.data


def mapped_copy(value: torch.Tensor, dtype: torch.dtype, path: str) -> torch.Tensor:
    """A copy in `dtype`, mapped into the host's memory from a new file.

    Raises:
        OSError: the disk has no room for it.
    """
    if not value.numel():
        return value.to("cpu", dtype)
    _allocate(path, value.numel() * dtype.itemsize)
    return torch.from_file(path, shared=True, size=value.numel(), dtype=dtype).view(value.shape).copy_(value)


def _allocate(path: str, size: int) -> None:
    """Makes a file with disk blocks for all its bytes: on a full disk a write to a mapped file kills the process by SIGBUS."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
