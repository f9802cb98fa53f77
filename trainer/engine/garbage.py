"""Python's garbage collection at the same steps on every rank.

The automatic collection pauses one rank at a time, and all others wait for it in the next collective. So it is off during
training, and every rank collects at the same steps, as torchtitan does. Objects that are there when training begins, such as
modules and parameters, are frozen: a collection looks at newer ones only, and is short though it is a full one.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 50
"""Steps between collections."""


@contextmanager
def manual_collection() -> Iterator[None]:
    """While the block runs, garbage is collected by `collect_garbage` only."""
    automatic = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if automatic:
            gc.enable()


def collect_garbage(done: int) -> None:
    """Collects garbage after `done` steps if it is time."""
    if done % EVERY == 0:
        gc.collect()
