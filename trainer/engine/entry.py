"""What Ray Train calls on every worker. Its controller, which trains nothing, unpickles this function and the run as bytes, and
so is there seconds before it would have imported transformers."""

import pickle
from typing import Any


def enter(settings: dict[str, bytes]) -> dict[str, Any]:
    from trainer.engine.loop import train_worker

    return train_worker(pickle.loads(settings["run"]))
