"""Finds the rank that the others wait for.

All ranks finish a step together, so that its length does not show the slow one. What differs is the time that a rank needs by
itself (`own_seconds`). Each rank sends that of its last step in the next step's first all-reduce, without a message of its own.
A pause of one step, such as a save, is not a straggler: medians over a window of steps are compared.
"""

from statistics import median
from typing import Any

WINDOW = 50
"""Steps over which medians are taken."""
_FACTOR = 1.25
"""A straggler needs so many times the others' median. Ranks have as many rows, so that their medians lie closer."""


def own_seconds(seconds: float, waited: float, communication: float | None, parts: dict[str, float]) -> float:
    """The seconds of a step that a rank needed by itself.

    On a CPU collectives block: that is the step without the time in collectives. On a GPU they do not, and waiting for the
    others hides in the backward pass: that is the time `waited` for rows plus that of the forward passes by the device's clock.
    Under ZeRO-3 these gather weights, so that a slow device shows less than slow rows do.
    """
    if communication is None:
        return waited + parts.get("device_forward", 0.0)
    return seconds - communication - parts["agree"]


class StragglerDetector:
    """Finds the rank that is slow for a whole window; on the first rank."""

    def __init__(self, hosts: list[str]) -> None:
        """`hosts`: the machine of each rank."""
        self._hosts = hosts
        self._times: list[list[float]] = []
        self._slow: int | None = None

    def note(self, times: list[float]) -> dict[str, Any] | None:
        """Adds the ranks' own seconds of a step.

        Returns a finding when the slow rank changes: its `rank` and `host`, None if no rank is slow any more, its `seconds` a
        step and those of the `others`, both medians.
        """
        if len(times) < 2 or min(times) <= 0:  # at the first step there is no measurement
            return None
        self._times.append(times)
        if len(self._times) < WINDOW:
            return None
        medians = [median(column) for column in zip(*self._times, strict=True)]
        self._times = []
        slowest = max(range(len(medians)), key=medians.__getitem__)
        others = median(medians[:slowest] + medians[slowest + 1 :])
        before, self._slow = self._slow, slowest if medians[slowest] > _FACTOR * others else None
        if self._slow == before:
            return None
        host = None if self._slow is None else self._hosts[self._slow]
        return {"rank": self._slow, "host": host, "seconds": round(medians[slowest], 5), "others": round(others, 5)}


def describe(finding: dict[str, Any]) -> str:
    """A finding in one line for the user."""
    if finding["rank"] is None:
        return "no worker is slower than the others any more"
    return (
        f"rank {finding['rank']} on {finding['host']} needs {finding['seconds']:.3g} s a step, the others "
        f"{finding['others']:.3g} s: they wait for it"
    )
