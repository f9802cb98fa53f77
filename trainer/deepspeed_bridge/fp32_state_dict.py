"""Joins the fp32 weights of a checkpoint, written by any number of ranks under any ZeRO stage.

Read from DeepSpeed 0.19.8, utils/zero_to_fp32.py.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import torch

from data_pipeline.errors import CorruptError, ScionError, reason
from trainer.deepspeed_bridge.checkpoint_parts import TAG
from trainer.deepspeed_bridge.environment import prepare_environment
from trainer.deepspeed_bridge.plain_path import plain_path
from trainer.deepspeed_bridge.weight_average import KEY


def fp32_state_dict(folder: str) -> dict[str, torch.Tensor]:
    """The optimizer's fp32 weights, or their averages (`TrainConfig.ema`), and the module's buffers, without frozen weights.

    Args:
        folder: of the checkpoint, on a local disk.

    Raises:
        CorruptError: the files do not fit together.
        OSError: a file cannot be read.
    """
    prepare_environment()
    from deepspeed.utils import zero_to_fp32

    with plain_path(folder) as path, _joining_averages(zero_to_fp32):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return dict(zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(path, tag=TAG))
        except (ScionError, OSError):
            raise
        except Exception as error:  # whatever a pickle or a shape that does not fit raises
            raise CorruptError(f"the weights cannot be joined: {reason(error)}", os.path.join(folder, TAG)) from error


@contextlib.contextmanager
def _joining_averages(joiner: Any) -> Iterator[None]:
    """Within the block DeepSpeed's `zero_to_fp32` joins the averages in place of the weights, where a checkpoint holds them."""
    read = joiner.parse_optim_states

    def averages(files: list[str], folder: str) -> tuple[Any, ...]:
        """DeepSpeed's parsed optimizer states, with the weights replaced by their averages where the files hold them."""
        stage, world, groups, paddings = read(files, folder)
        for path, weights in zip(files, groups, strict=True):
            saved = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
            states = saved["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"]
            for number, state in states.items():
                if KEY in state:
                    weights[number] = state[KEY][: len(weights[number])]  # without the padding of the group
        return stage, world, groups, paddings

    joiner.parse_optim_states = averages
    try:
        yield
    finally:
        joiner.parse_optim_states = read
