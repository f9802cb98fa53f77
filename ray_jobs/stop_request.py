"""The wish that a training ends at its next step with a checkpoint: from a signal handler to whoever watches the training."""

import threading

_training, _wished = threading.Event(), threading.Event()


def set_training(under_way: bool) -> None:
    """Says that a training has made a step, and so would have something to save; or that there is none."""
    if under_way:
        _training.set()
    else:
        _training.clear()


def request_stop() -> bool:
    """Asks the training under way to end. Whether it will: a second call answers no, since the user does not want to wait."""
    if not _training.is_set() or _wished.is_set():
        return False
    _wished.set()
    return True


def is_stop_requested() -> bool:
    return _wished.is_set() and _training.is_set()


def clear_request() -> bool:
    """Whether there was a wish that came after a training's last step; it is forgotten now."""
    was = _wished.is_set()
    _wished.clear()
    return was
