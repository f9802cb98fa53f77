"""The check of `make faults` on where attempts begin, on logs by hand."""

from typing import Any

import pytest

from tests.faults.check import began_early

Log = list[list[tuple[str, int]]]


def _said(log: Log, spoilt: int) -> list[str]:
    entries: list[list[dict[str, Any]]] = [[{"kind": kind, "next_step": step} for kind, step in attempt] for attempt in log]
    return list(began_early(entries, spoilt))


@pytest.mark.parametrize(
    ("log", "spoilt"),
    [
        pytest.param([[("start", 0), ("checkpoint", 6)], [("start", 6), ("checkpoint", 12)]], 0, id="each goes on"),
        pytest.param([[("start", 0), ("checkpoint", 6), ("checkpoint", 12)], [("start", 6)]], 1, id="the newest was spoilt"),
        pytest.param(
            [[("start", 0), ("checkpoint", 6), ("checkpoint", 12)], [("start", 6)], [("start", 6)]], 1, id="and died again"
        ),
        pytest.param([[("start", 0)], [("start", 6), ("checkpoint", 12)], [("start", 6)]], 1, id="a kill before the entry"),
    ],
)
def test_attempts_that_lose_nothing(log: Log, spoilt: int) -> None:
    assert not _said(log, spoilt)


@pytest.mark.parametrize(
    ("log", "spoilt"),
    [
        pytest.param([[("start", 0), ("checkpoint", 6)], [("start", 0)]], 0, id="nothing was spoilt"),
        pytest.param([[("start", 0), ("checkpoint", 6), ("checkpoint", 12)], [("start", 9)]], 1, id="at no checkpoint"),
        pytest.param(
            [[("start", 0), ("checkpoint", 6), ("checkpoint", 12)], [("start", 6), ("checkpoint", 12)], [("start", 6)]],
            1,
            id="once more than was spoilt",
        ),
    ],
)
def test_attempts_that_lose_steps(log: Log, spoilt: int) -> None:
    assert len(_said(log, spoilt)) == 1
