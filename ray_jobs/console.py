"""What a user sees while jobs run: bars on a terminal; elsewhere a line now and then, and one when a stage is done."""

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
"""Where there is no terminal: how long a stage runs before its first line of progress, and the longest time between two. Each
wait is twice the one before."""


@dataclass(slots=True)
class Reporter:
    """Tells how far a stage is: `reporter("tokenize", done, total)`."""

    _update: Callable[[str, int, int], None]
    note: Callable[[str], None] = lambda text: None
    """Prints a line that stays, e.g. what the stage is about to cost."""

    def __call__(self, what: str, done: int, total: int) -> None:
        self._update(what, done, total)

    def part(self, what: str) -> Callable[[int, int], None]:
        """The same for one part of the stage."""
        return lambda done, total: self(what, done, total)


@contextmanager
def stage(console: Console, name: str) -> Iterator[Reporter]:
    """A bar for the stage on a terminal, lines elsewhere; the closing line is the caller's."""

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
    """Progress as lines, ever more seldom."""
    wait, longest = _LINE_SECONDS
    due = time.monotonic() + wait

    def update(what: str, done: int, total: int) -> None:
        nonlocal wait, due
        if (now := time.monotonic()) >= due:
            wait = min(2 * wait, longest)
            due = now + wait
            note(f"{what}: {done:,} of {total:,}")

    return update


def print_done(console: Console, name: str, seconds: float, said: str) -> None:
    """The line that closes a stage."""
    console.print(f"[bold]{escape(f'{name:<22}')}[/bold] {seconds:7.1f} s  {escape(said)}", highlight=False)


def print_kept(console: Console, name: str) -> None:
    console.print(f"[bold]{escape(f'{name:<22}')}[/bold]    kept     finished earlier with the same settings", highlight=False)


@ray.remote(num_cpus=0)
class _Board:
    """Between the driver and a training run: the newest progress one way, the wish to stop the other."""

    def __init__(self) -> None:
        self._latest, self._stop = (0, 0, ""), False
        self._notes: list[str] = []

    def update(self, done: int, total: int, text: str) -> bool:
        """Told by rank 0 step by step; whether it is to stop."""
        self._latest = (done, total, text)
        return self._stop

    def stop(self) -> None:
        self._stop = True

    def note(self, text: str) -> None:
        """A line for the user that stays."""
        self._notes.append(text)

    def latest(self) -> tuple[int, int, str, list[str]]:
        """How far the run is, and the notes that came since the last call."""
        notes, self._notes = self._notes, []
        return (*self._latest, notes)


@contextmanager
def progress_board(reporter: Reporter, what: str) -> Iterator[Any]:
    """An actor for the workers to report to; while the block runs, a thread passes on what it holds, and the wish to stop."""
    # On the driver's node: any other may go while the run lasts.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = _Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            try:
                number, total, text, notes = ray.get(board.latest.remote())
            except RayError:  # the run goes on without
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
