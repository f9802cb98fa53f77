"""Goodput, replayed steps and recovery time of a run, from its log: pure functions."""

from itertools import pairwise
from typing import Any

from trainer.monitoring import run_log

Attempts = list[list[dict[str, Any]]]


def account(attempts: Attempts) -> dict[str, float | int | None]:
    """Goodput, replayed steps and recovery time of a run.

    `goodput` is the time of the steps that count, each once, as a share of the time from the first entry to the last. `idle`
    time, in which no command ran, does not count: it begins when the run stops, ends or is killed with its driver, and ends
    with the first entry of the next command. `time_to_recover` is the mean time from the last entry of an attempt that died, or
    from the next command, to the first step after it, without those that a reset clock hides.
    """
    ran, begun = _attempts_and_commands(attempts)
    if not ran:
        return {"attempts": 0, "replayed_steps": 0, "goodput": None, "time_to_recover": None, "seconds": 0.0, "idle": 0.0}
    counted = run_log.steps(attempts)
    made = sum(entry["kind"] == "step" for entries in ran for entry in entries)
    idle, waiting, recoveries = _gaps(ran, begun)
    seconds = waiting + sum(_passed(entries[0]["time"], entries[-1]["time"]) for entries in ran)
    useful = sum(entry["seconds"] for entry in counted)
    return {
        "attempts": len(ran),
        "replayed_steps": made - len(counted),
        "goodput": round(min(1.0, useful / seconds), 4) if seconds > 0 else None,
        "time_to_recover": round(sum(recoveries) / len(recoveries), 1) if recoveries else None,
        "seconds": round(seconds, 1),
        "idle": round(idle, 1),
    }


def _attempts_and_commands(attempts: Attempts) -> tuple[Attempts, list[float | None]]:
    """The attempts in which workers ran, and the time of the command before each, if one came before it."""
    ran: Attempts = []
    begun: list[float | None] = []
    command: float | None = None
    for entries in filter(None, attempts):
        if entries[0]["kind"] == "driver":
            command = entries[0]["time"]
            continue
        ran.append(entries)
        begun.append(command)
        command = None
    return ran, begun


def _gaps(ran: Attempts, begun: list[float | None]) -> tuple[float, float, list[float]]:
    """Between attempts: the seconds without a command, those with one, and the times to recover."""
    idle, waiting, recoveries = 0.0, 0.0, []
    for (before, after), command in zip(pairwise(ran), begun[1:], strict=True):
        last = before[-1]
        ended = last["kind"] in ("stopped", "finished")
        since = command if command is not None else after[0]["time"] if ended else last["time"]
        between = _passed(last["time"], after[0]["time"])
        idle_here = min(between, _passed(last["time"], since))
        idle, waiting = idle + idle_here, waiting + between - idle_here
        first = next((entry["time"] for entry in after if entry["kind"] == "step"), None)
        if first is not None and first >= since and not ended:
            recoveries.append(first - since)
    return idle, waiting, recoveries


def _passed(earlier: float, later: float) -> float:
    """Seconds between two entries; 0 if the clock was set back, or another machine's is behind."""
    return max(0.0, later - earlier)
