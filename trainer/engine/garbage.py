"""Python's garbage collection at the same steps on every rank.

Automatic collection pauses one rank at a time, and all others wait for it in the next collective. So it is off during training,
and every rank collects at the same steps, as torchtitan does. Objects that exist when training begins, such as modules and
parameters, are frozen: a collection visits newer objects only, and is short though it is a full one.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 50
"""Steps between collections."""


@contextmanager
def manual_collection() -> Iterator[None]:
    """Within the block only `collect_garbage` collects."""
    was_automatic = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_automatic:
            gc.enable()


def collect_garbage(done: int) -> None:
    """Collects after every `EVERY` of the `done` steps."""
    if done % EVERY == 0:
        gc.collect()
