"""What is known of a request while it is answered: for its log line, its trace and the metrics."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter


@dataclass(slots=True)
class RequestRecord:
    """The moments of a request, by `time.perf_counter`, and its size. None where it has not been."""

    id: str = ""
    began: float = field(default_factory=perf_counter)
    read: float | None = None
    """Its body is there."""
    tokenized: float | None = None
    taken: float | None = None
    """The first forward pass with one of its texts begins."""
    encoded: float | None = None
    """The last one has ended."""
    model: str = ""
    texts: int = 0
    tokens: int = 0
    status: int = 0

    def phases(self) -> dict[str, tuple[float, float]]:
        """Begin and end of each phase that is over."""
        moments = {"read": self.began, "tokenize": self.read, "queue": self.tokenized, "encode": self.taken}
        ends = (self.read, self.tokenized, self.taken, self.encoded)
        return {
            name: (begin, end)
            for (name, begin), end in zip(moments.items(), ends, strict=True)
            if begin is not None and end is not None
        }


CURRENT: ContextVar[RequestRecord] = ContextVar("request_record")
"""The record of the request that this task answers."""


def current() -> RequestRecord:
    """The record of the request that this task answers; one that nobody reads outside of a request."""
    return CURRENT.get(None) or RequestRecord()
