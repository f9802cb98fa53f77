"""Python collects garbage where a run says so, on every rank at the same steps, and by itself before and after."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from trainer.engine.garbage import EVERY, collect_garbage, manual_collection


class Cycle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def automatic() -> Iterator[None]:
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


def test_garbage_goes_at_chosen_steps_only() -> None:
    collected_at: dict[int, int] = {}
    at = 0

    def note(made_at: int) -> None:
        collected_at[made_at] = at

    with manual_collection():
        assert not gc.isenabled()
        for at in range(1, 2 * EVERY + 1):
            weakref.finalize(Cycle(), note, at)
            for _ in range(100):  # would set the automatic collection off many times
                Cycle()
            collect_garbage(at)
    assert collected_at == {
        allocated_at: EVERY if allocated_at <= EVERY else 2 * EVERY for allocated_at in range(1, 2 * EVERY + 1)
    }
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_objects_from_before_the_training_are_not_collected() -> None:
    with manual_collection():
        assert gc.get_freeze_count() > 10_000


def test_an_error_switches_it_on_again() -> None:
    with pytest.raises(ValueError, match="mine"), manual_collection():
        raise ValueError("mine")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_where_it_was_off_it_stays_off() -> None:
    gc.disable()
    with manual_collection():
        pass
    assert not gc.isenabled()
