"""Prefetching does not change the items, their order or their errors."""

import threading
import time
from collections.abc import Iterator

import pytest

from data_pipeline.feed.prefetch import prefetch


def test_all_items_come_in_order() -> None:
    assert list(prefetch(iter(range(50)))) == [*range(50)]
    assert list(prefetch(iter([]))) == []


def test_items_are_prefetched_up_to_the_depth_and_no_more() -> None:
    numbers: list[int] = []
    items = prefetch((numbers.append(number) or number for number in range(50)), depth=3)
    assert next(items) == 0
    end = time.monotonic() + 10
    while len(numbers) < 4 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert numbers == [0, 1, 2, 3]


def test_an_error_is_raised_in_place_of_its_item() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    prefetched = prefetch(items())
    assert next(prefetched) == 1
    with pytest.raises(ValueError, match="no more"):
        next(prefetched)


def test_closing_early_leaves_no_thread() -> None:
    before = threading.active_count()
    items = prefetch(iter(range(1000)))
    next(items)
    items.close()
    assert threading.active_count() == before
