"""Notes of a training worker reach the user's terminal."""

import time

import pytest
import ray

from ray_jobs.console import Reporter, progress_board

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_note_of_a_worker_becomes_a_line_that_stays() -> None:
    notes: list[str] = []
    with progress_board(Reporter(lambda what, done, total: None, notes.append), "train") as board:
        for text in ("rows of one document each", "a second one"):
            ray.get(board.note.remote(text))
        deadline = time.monotonic() + 30
        while len(notes) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert notes == ["rows of one document each", "a second one"]
