"""The functions that Ray Train calls on every worker.

They import nothing heavy, and the run arrives as bytes: Ray Train's controller, which unpickles both and does not train, starts
seconds faster.
"""

import pickle
from typing import Any


def enter(settings: dict[str, bytes]) -> dict[str, Any]:
    from trainer.engine.worker import train_worker

    return train_worker(pickle.loads(settings["run"]))


def enter_search(settings: dict[str, bytes]) -> dict[str, Any]:
    from trainer.engine.position_search import search_worker

    return search_worker(pickle.loads(settings["search"]))
