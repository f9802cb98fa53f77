"""The request that a training stops after its next step with a checkpoint: from a signal handler to the progress board."""

import threading

_training, _requested = threading.Event(), threading.Event()


def set_training(is_training: bool) -> None:
    """Notes that a training has made a step, and so has something to save, or that none runs."""
    if is_training:
        _training.set()
    else:
        _training.clear()


def request_stop() -> bool:
    """Requests a stop. False if no training runs, and on the second call: a second SIGTERM exits at once."""
    if not _training.is_set() or _requested.is_set():
        return False
    _requested.set()
    return True


def is_stop_requested() -> bool:
    return _requested.is_set() and _training.is_set()


def clear_request() -> bool:
    """Drops the request. True if there was one: it came after the training's last step."""
    was_requested = _requested.is_set()
    _requested.clear()
    return was_requested
