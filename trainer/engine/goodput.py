"""What became of a run's time, from its log: pure functions."""

from itertools import pairwise
from typing import Any

from trainer.engine import runlog


def account(attempts: list[list[dict[str, Any]]]) -> dict[str, float | int | None]:
    """Goodput, replays and recovery of a run.

    `goodput` is the time of the steps that count, each once, as a share of the time from the first entry to the last. A run
    that was stopped on purpose, or had ended before it grew, is not charged for the time until it went on. `time_to_recover` is
    the mean time from the last entry of an attempt that died to the first step after it.
    """
    ran = [entries for entries in attempts if entries and entries[0]["kind"] != "driver"]
    if not ran:
        return {"attempts": 0, "replayed_steps": 0, "goodput": None, "time_to_recover": None, "seconds": 0.0}
    counted = runlog.steps(attempts)
    made = sum(entry["kind"] == "step" for entries in ran for entry in entries)
    pauses, recoveries = 0.0, []
    for before, after in pairwise(ran):
        first = next((entry["time"] for entry in after if entry["kind"] == "step"), None)
        if before[-1]["kind"] in ("stopped", "finished"):
            pauses += after[0]["time"] - before[-1]["time"]
        elif first is not None:
            recoveries.append(first - before[-1]["time"])
    seconds = ran[-1][-1]["time"] - ran[0][0]["time"] - pauses
    useful = sum(entry["seconds"] for entry in counted)
    return {
        "attempts": len(ran),
        "replayed_steps": made - len(counted),
        "goodput": round(min(1.0, useful / seconds), 4) if seconds > 0 else None,
        "time_to_recover": round(sum(recoveries) / len(recoveries), 1) if recoveries else None,
        "seconds": round(seconds, 1),
    }
