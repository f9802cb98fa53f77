"""The wish that a training ends at its next step with a checkpoint: from a signal handler to whoever watches the training."""

import threading

_training, _wished = threading.Event(), threading.Event()


def training(under_way: bool) -> None:
    """Says that a training has made a step, and so would have something to save; or that there is none."""
    if under_way:
        _training.set()
    else:
        _training.clear()
        _wished.clear()


def wish() -> bool:
    """Wishes for the end; whether anybody will heed it. Not a second time, so that who insists is not kept waiting."""
    heeded = _training.is_set() and not _wished.is_set()
    _wished.set()
    return heeded


def wished() -> bool:
    return _wished.is_set() and _training.is_set()
