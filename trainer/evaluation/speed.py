"""How fast an embedder encodes: texts and tokens per second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_TEXTS = 128
_REPEATS = 3


class TokenizingEncoder(Protocol):
    """An `Embedder`."""

    def encode(self, texts: Sequence[str], /, *, layers: int | None = None) -> Any: ...

    def tokenize(self, texts: Sequence[str], /) -> Sequence[Sequence[int]]: ...


def speed(
    embedder: TokenizingEncoder,
    texts: Sequence[str],
    layers: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The median of three passes of the first `layers` over at most 128 distinct texts, after a pass that is not timed.

    A pass tokenizes, encodes and returns the vectors to the CPU, which waits for a GPU. A worker has one CPU core, or the GPU,
    and other models may be measured beside it.
    """
    chosen = list(dict.fromkeys(texts))[:_TEXTS]
    tokens = sum(map(len, embedder.tokenize(chosen)))
    embedder.encode(chosen, layers=layers)
    seconds = []
    for _ in range(_REPEATS):
        start = clock()
        embedder.encode(chosen, layers=layers)
        seconds.append(clock() - start)
    median = max(statistics.median(seconds), 1e-9)
    return {"texts_per_second": len(chosen) / median, "tokens_per_second": tokens / median, "texts": len(chosen)}
