"""Spike detection, rollback steps and the steps that are skipped."""

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation

from trainer.engine.guards import (
    MAX_ROLLBACKS,
    ROLLBACK_MEMORY,
    WINDOW,
    rollback_step,
    rollbacks_near,
    spike_score,
    steps_to_skip,
)

LOSSES = st.floats(0.01, 50.0)


@given(st.lists(LOSSES, min_size=WINDOW // 2, max_size=WINDOW), LOSSES)
def test_a_spike_is_a_robust_z_score(recent: list[float], loss: float) -> None:
    deviation = median_abs_deviation(recent, scale="normal")
    middle = float(np.median(recent))
    assume(deviation > 0.0101 * middle)
    assert spike_score(loss, recent) == pytest.approx((loss - middle) / deviation, rel=1e-5, abs=1e-9)


@given(st.lists(LOSSES, max_size=WINDOW // 2 - 1))
def test_nothing_is_a_spike_before_half_the_window(recent: list[float]) -> None:
    assert spike_score(1e9, recent) == 0.0


def test_the_first_spike_may_come_with_half_the_window() -> None:
    draw = random.Random(0)
    recent = [4 + draw.gauss(0, 0.1) for _ in range(WINDOW // 2)]
    assert spike_score(8.0, recent) > 20
    assert spike_score(8.0, recent[1:]) == 0.0


def test_losses_that_do_not_vary_make_no_spike_of_a_thousandth() -> None:
    flat = [2.5] * WINDOW
    assert spike_score(2.5, flat) == 0.0
    assert spike_score(2.5 * 1.001, flat) == pytest.approx(0.1)
    assert spike_score(2.5 * 1.1, flat) == pytest.approx(10.0)
    assert spike_score(1e-9, [0.0] * WINDOW) > 100  # not a division by zero


@given(st.lists(LOSSES, min_size=WINDOW // 2, max_size=WINDOW))
def test_no_loss_at_or_below_the_median_is_a_spike(recent: list[float]) -> None:
    middle = float(np.median(recent))
    assert spike_score(middle, recent) == pytest.approx(0.0)
    assert spike_score(middle / 2, recent) < 0


def test_spikes_in_the_window_do_not_hide_the_next() -> None:
    draw = random.Random(1)
    recent = [4 + draw.gauss(0, 0.1) for _ in range(WINDOW)]
    clean = spike_score(6.0, recent)
    for place in draw.sample(range(WINDOW), WINDOW // 4):
        recent[place] = 50.0
    assert spike_score(6.0, recent) > clean / 2
    assert (6.0 - np.mean(recent)) / np.std(recent) < 1  # what is not robust sees nothing


def test_normal_losses_are_seldom_a_spike() -> None:
    draw, found = random.Random(2), 0
    recent: list[float] = []
    for _ in range(20_000):
        loss = draw.gauss(4.0, 0.2)
        found += spike_score(loss, recent) > 6
        recent = [*recent, loss][-WINDOW:]
    assert found <= 2
    assert math.isfinite(spike_score(4.0, recent))


@st.composite
def gone_back(draw: st.DrawFn) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Planned steps [first, last] since the checkpoint, and what was left out before, below `last`."""
    first = draw(st.integers(0, 500))
    last = draw(st.integers(first, first + 300))
    edges = sorted(draw(st.sets(st.integers(0, last), max_size=6)))
    return first, last, tuple(zip(edges[::2], edges[1::2], strict=False))


@given(gone_back())
def test_skipped_steps_end_with_the_step_that_failed(known: tuple[int, int, tuple[tuple[int, int], ...]]) -> None:
    first, last, skipped = known
    start, end = steps_to_skip(first, last, skipped)
    assert start <= last == end - 1
    assert end - start <= WINDOW
    assert start >= first
    assert all(start >= before for _, before in skipped)
    assert start == first or end - start == WINDOW or start == skipped[-1][1]


def test_two_times_that_went_wrong_leave_nothing_out_twice() -> None:
    one = steps_to_skip(100, 120, ())
    two = steps_to_skip(100, 150, (one,))
    assert one == (100, 121)
    assert two == (121, 151)
    assert steps_to_skip(0, 500, ()) == (501 - WINDOW, 501)


def test_a_rollback_may_skip_steps_before_those_skipped_already() -> None:
    assert steps_to_skip(0, 30, ((40, 105),)) == (0, 31)
    assert steps_to_skip(0, 110, ((40, 105), (200, 240))) == (105, 111)


def test_a_run_goes_back_farther_each_time_and_starts_afresh_after_peace() -> None:
    assert [rollback_step(500, before) for before in range(MAX_ROLLBACKS)] == [500 - WINDOW, 500 - 2 * WINDOW, 500 - 3 * WINDOW]
    skipped = ((100, 164), (200, 230), (900, 910))
    assert rollbacks_near(skipped, 240) == 2
    assert rollbacks_near(skipped, 230 + ROLLBACK_MEMORY) == 2
    assert rollbacks_near(skipped, 910 + ROLLBACK_MEMORY) == 1
    assert rollbacks_near(skipped, 911 + ROLLBACK_MEMORY) == 0
