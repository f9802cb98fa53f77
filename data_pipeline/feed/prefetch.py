"""Prefetches items in a background thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2
"""Steps ahead: one is ready and one is being made while another is computed."""


def prefetch(items: Iterator[T], depth: int = DEPTH) -> Iterator[T]:
    """Yields the items in order. One thread makes up to `depth` of them ahead; its errors are raised here."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        futures = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := futures.popleft().result()) is not end:
            futures.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
