"""Names of checkpoints and ledger segments: the step, the number of ranks and a time, unique to an attempt."""

import re
import time

DRAFT_PREFIX = ".rank-"
"""Begins the names of folders in which ranks write drafts; a killed rank leaves its own."""
_NAME = re.compile(r"step_(\d{9})-w(\d+)-[0-9a-f]+")


def new_name(step: int, world: int) -> str:
    return f"step_{step:09d}-w{world}-{time.time_ns():x}"


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def step_of(name: str) -> int:
    return _parts(name)[0]


def world_of(name: str) -> int:
    return _parts(name)[1]


def _parts(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a step")
    return int(match[1]), int(match[2])
