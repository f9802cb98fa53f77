"""What is needed next, made while what is there is used."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2
"""Steps: one that is ready while one is computed and one is made."""


def prefetch(items: Iterator[T], depth: int = DEPTH) -> Iterator[T]:
    """The items, in order, made by one thread up to `depth` before they are asked for; what it raises is raised here."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
