"""The function that Ray Train calls on every worker.

It imports nothing heavy, and the run arrives as bytes: Ray Train's controller, which unpickles both and does not train, starts
seconds faster.
"""

import pickle
from typing import Any


def enter(settings: dict[str, bytes]) -> dict[str, Any]:
    from trainer.engine.worker import train_worker

    return train_worker(pickle.loads(settings["run"]))
