"""Progress of jobs: bars on a terminal or in a notebook, lines elsewhere, and a line at the end of each stage."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ray_jobs import stop_request

_POLL_SECONDS = 0.5
_LINE_SECONDS = (60.0, 600.0)
"""Without bars: the time before the first line of progress, and the longest time between two. Each wait is twice the one
before."""


@dataclass(slots=True)
class Reporter:
    """Reports the progress of a stage: `reporter("tokenize", done, total)`."""

    _update: Callable[[str, int, int], None]
    note: Callable[[str], None] = lambda text: None
    """Prints a line that stays, e.g. an estimate of the costs."""

    def __call__(self, what: str, done: int, total: int) -> None:
        self._update(what, done, total)

    def part(self, what: str) -> Callable[[int, int], None]:
        """Reports the progress of one part of the stage."""
        return lambda done, total: self(what, done, total)


@contextmanager
def stage(console: Console, name: str) -> Iterator[Reporter]:
    """A bar or lines for a stage; the caller prints the closing line."""

    def note(text: str) -> None:
        console.print(f"{name:<22}           {text}", style="dim", highlight=False, markup=False)

    if not _shows_bars(console):
        yield Reporter(_lines(note), note)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield Reporter(
            lambda what, done, total: bars.update(task, description=f"{name}: {what}", completed=done, total=total), note
        )


def _shows_bars(console: Console) -> bool:
    """Whether there is a terminal, or a notebook in which bars can move."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def _lines(note: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Progress as lines, at growing intervals."""
    wait, longest = _LINE_SECONDS
    due = time.monotonic() + wait

    def update(what: str, done: int, total: int) -> None:
        nonlocal wait, due
        if (now := time.monotonic()) >= due:
            wait = min(2 * wait, longest)
            due = now + wait
            note(f"{what}: {done:,} of {total:,}")

    return update


def print_done(console: Console, name: str, seconds: float, line: str) -> None:
    """Prints the closing line of a stage."""
    console.print(f"[bold]{escape(f'{name:<22}')}[/bold] {seconds:7.1f} s  {escape(line)}", highlight=False)


def print_kept(console: Console, name: str) -> None:
    console.print(f"[bold]{escape(f'{name:<22}')}[/bold]    kept     finished earlier with the same settings", highlight=False)


@ray.remote(num_cpus=0)
class _Board:
    """Carries the newest progress from a training to the driver, and the request to stop the other way."""

    def __init__(self) -> None:
        self._latest, self._stop = (0, 0, ""), False
        self._notes: list[str] = []

    def update(self, done: int, total: int, text: str) -> bool:
        """Called by rank 0 in each step; returns whether to stop."""
        self._latest = (done, total, text)
        return self._stop

    def stop(self) -> None:
        self._stop = True

    def note(self, text: str) -> None:
        """Adds a line for the user."""
        self._notes.append(text)

    def latest(self) -> tuple[int, int, str, list[str]]:
        """The progress, and the notes since the last call."""
        notes, self._notes = self._notes, []
        return (*self._latest, notes)


@contextmanager
def progress_board(reporter: Reporter, what: str) -> Iterator[Any]:
    """An actor to which the workers report. Within the block a thread forwards the progress, and the request to stop."""
    # On the driver's node: any other may be lost during the run.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = _Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def poll() -> None:
        """Shows the workers' progress and notes, and passes on the user's request to stop; runs in a thread."""
        while not stop.wait(_POLL_SECONDS):
            try:
                number, total, text, notes = ray.get(board.latest.remote())
            except RayError:  # the run continues without a board
                return
            for note in notes:
                reporter.note(note)
            if total:
                stop_request.set_training(True)
                reporter(f"{what}, {text}", number, total)
            if stop_request.is_stop_requested():
                board.stop.remote()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join(timeout=5)
        stop_request.set_training(False)
        ray.kill(board)


def stopwatch() -> Callable[[], float]:
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
