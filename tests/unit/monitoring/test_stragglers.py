"""A rank that is slow for a while is named; one that pauses now and then is not."""

import random
from typing import Any

import pytest

from trainer.monitoring.stragglers import WINDOW, StragglerDetector, describe


def findings(world: int, steps: int, slow: Any) -> list[dict[str, Any]]:
    """Of times with a spread of 5 %, and a pause of 20 times as long in one step of 20 on each rank; `slow(step, rank)` is a
    factor."""
    draw, watch, found = random.Random(world), StragglerDetector([f"host{rank // 2}" for rank in range(world)]), []
    for step in range(steps):
        times = [draw.gauss(1.0, 0.05) * (20 if draw.random() < 0.05 else 1) * slow(step, rank) for rank in range(world)]
        if (finding := watch.note(times)) is not None:
            found.append({"step": step, **finding})
    return found


@pytest.mark.parametrize("world", [2, 3, 8, 64])
def test_pauses_are_no_stragglers(world: int) -> None:
    assert findings(world, 10 * WINDOW, lambda step, rank: 1.0) == []


@pytest.mark.parametrize("world", [2, 3, 64])
def test_a_slow_rank_is_named_once_and_so_is_its_recovery(world: int) -> None:
    begin, end = 2 * WINDOW, 5 * WINDOW
    found = findings(world, 8 * WINDOW, lambda step, rank: 1.6 if rank == 1 and begin <= step < end else 1.0)
    assert [(one["step"], one["rank"], one["host"]) for one in found] == [
        (begin + WINDOW - 1, 1, "host0"),
        (end + WINDOW - 1, None, None),
    ]
    assert found[0]["seconds"] == pytest.approx(1.6, rel=0.05)
    assert found[0]["others"] == pytest.approx(1.0, rel=0.05)
    assert describe(found[0]).startswith("rank 1 on host0 needs 1.")


def test_another_rank_that_becomes_slow_is_news() -> None:
    found = findings(4, 2 * WINDOW, lambda step, rank: 2.0 if rank == (3 if step < WINDOW else 2) else 1.0)
    assert [(one["rank"], one["host"]) for one in found] == [(3, "host1"), (2, "host1")]


def test_one_rank_and_steps_without_times_say_nothing() -> None:
    assert findings(1, 3 * WINDOW, lambda step, rank: 5.0) == []
    watch = StragglerDetector(["a", "b"])
    assert all(watch.note([0.0, 0.0]) is None for _ in range(3 * WINDOW))
