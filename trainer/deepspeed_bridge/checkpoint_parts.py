"""DeepSpeed's checkpoint of one rank in memory. Read from DeepSpeed 0.19.8, `save_checkpoint` in runtime/engine.py."""

import os
from collections.abc import Callable
from typing import Any

TAG = "ds"
"""DeepSpeed's name of the folder within a checkpoint."""
_NOWHERE = "nowhere"
"""The folder that DeepSpeed is given."""


def checkpoint_parts(engine: Any) -> dict[str, Any]:
    """What DeepSpeed would write on this rank, by path; writes nothing.

    Its `save_checkpoint` waits for the other ranks between its writes: a full disk on one of them would leave the others
    waiting forever, and a worker that is killed while it waits would leave a folder behind.
    """
    parts: dict[str, Any] = {}
    writer = engine.checkpoint_engine
    stand_ins: dict[tuple[Any, str], Callable[..., None]] = {
        (writer, "save"): lambda state_dict, path: parts.update({os.path.relpath(path, _NOWHERE): state_dict}),
        (writer, "makedirs"): lambda path, exist_ok=False: None,
        (engine, "_copy_recovery_script"): lambda path: None,
    }
    for (owner, name), stand_in in stand_ins.items():
        setattr(owner, name, stand_in)
    try:
        engine.save_checkpoint(_NOWHERE, tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    finally:
        for owner, name in stand_ins:
            delattr(owner, name)
    # DeepSpeed leaves the second names of tied weights in.
    trained = engine.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, weight in trained if not weight.requires_grad}
    for state in parts.values():
        for name in frozen & set(state.get("module", {})):
            del state["module"][name]
    return parts
