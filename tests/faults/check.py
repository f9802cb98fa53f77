"""What must hold of a run after whatever was done to it. Each check says what it found wrong; nothing is well."""

import contextlib
import glob
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from data_pipeline.feed import rank_feed
from tests.faults.rig import Run
from trainer.ledger import audit, ledger
from trainer.monitoring import run_log

_RELATIVE = 1e-4
"""Weights of runs whose number of workers changed: sums in another order, carried on by Adam for all steps."""


@dataclass(frozen=True)
class Leftovers:
    """Files in shared memory and temporary folders that no living process holds."""

    shared: frozenset[str]
    temporary: frozenset[str]

    @classmethod
    def now(cls) -> "Leftovers":
        folders = glob.glob(os.path.join(tempfile.gettempdir(), "scion-*"))
        return cls(frozenset(os.listdir("/dev/shm")) - _mapped_names(), frozenset(folders))


def _mapped_names() -> set[str]:
    """Names in /dev/shm that some process has mapped."""
    names = set()
    for path in glob.glob("/proc/[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended
            names |= set(re.findall(r" /dev/shm/(\S+)", Path(path).read_text()))
    return names


def violations(run: Run, reference: Path, before: Leftovers, faults: list[str], elastic: bool) -> list[str]:
    """All violations, each with the name of its invariant."""
    checks = {
        "I1 every planned slot once": lambda: _ledger(run, ("order", "rows")),
        "I2 replays identical": lambda: _ledger(run, ("replays",)),
        "I3 final weights": lambda: _weights(run, reference, elastic),
        "I4 no step before the last commit": lambda: _commits(run, faults),
        "I6 nothing left behind": lambda: _left(run, before),
        "I7 attempts bounded": lambda: _attempts(run, faults),
        "I8 metrics": lambda: _metrics(run, reference, elastic),
    }
    return [f"{name}: {failure}" for name, check in checks.items() for failure in check()]


def _ledger(run: Run, names: tuple[str, ...]) -> Iterator[str]:
    uri = f"{run.uri}/{ledger.FOLDER}"
    rows, history = rank_feed.load(f"{uri}/{ledger.PLAN}", None), audit.read_history(uri)
    if history is None:
        yield "the run left no history"
        return
    for finding in audit.audit(uri, rows, history):
        if finding.check in names:
            yield from finding.failures


def _weights(run: Run, reference: Path, elastic: bool) -> Iterator[str]:
    """Compares the weights with those of the reference: bit for bit, unless the number of workers changed."""
    weights, other = (
        AutoModelForMaskedLM.from_pretrained(path).state_dict() for path in (run.uri, reference / "run" / "pretrain")
    )
    for name, tensor in weights.items():
        far = float((tensor - other[name]).abs().max() / other[name].abs().max().clamp_min(1e-6)) if tensor.numel() else 0.0
        if (far > _RELATIVE) if elastic else not torch.equal(tensor, other[name]):
            yield f"{name} differs by {far:.2g}"


def _commits(run: Run, faults: list[str]) -> Iterator[str]:
    return began_early(run.log(), sum(fault in ("flip_checkpoint", "tear_checkpoint", "flip_weights") for fault in faults))


def began_early(log: list[list[dict[str, Any]]], spoilt: int) -> Iterator[str]:
    """An attempt begins at the newest checkpoint, or at an earlier one if that was spoilt, as `spoilt` of them were.

    If a worker dies between a commit and its log entry, only the start of the next attempt shows the checkpoint.
    """
    committed = set[int]()
    for entry in (entry for entries in log for entry in entries):
        at, newest = entry.get("next_step", 0), max(committed, default=0)
        if entry["kind"] == "start" and at < newest:
            if not spoilt or at not in committed:
                yield f"an attempt began at step {at}, though {newest} was committed"
            spoilt -= 1
            committed = {step for step in committed if step < at}
        if entry["kind"] in ("start", "checkpoint"):
            committed.add(at)


def _left(run: Run, before: Leftovers) -> Iterator[str]:
    now = Leftovers.now()
    yield from sorted(now.temporary - before.temporary)
    yield from (f"/dev/shm/{name}" for name in sorted(now.shared - before.shared))
    yield from (f"process {name}" for name in run.rig.strangers())
    expected = {"ledger", "log", "artifact.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    present = {path.name for path in Path(run.uri).iterdir()}
    yield from sorted(present - expected - {"special_tokens_map.json", "vocab.txt", "generation_config.json"})
    yield from (str(path) for path in Path(run.uri).parent.glob("*.lease.json"))


def _attempts(run: Run, faults: list[str]) -> Iterator[str]:
    count = len(run.entries("start"))
    # A worker group that Ray starts while a node is going may fail once more before it runs.
    if count > 2 * len(faults) + run.drivers:
        yield f"{count} attempts for {len(faults)} faults and {run.drivers} drivers"


def _metrics(run: Run, reference: Path, elastic: bool) -> Iterator[str]:
    steps, other = (run_log.steps(run_log.read(f"{path}/log")) for path in (run.uri, reference / "run" / "pretrain"))
    if [entry["step"] for entry in steps] != [entry["step"] for entry in other]:
        yield f"{len(steps)} steps in the log, {len(other)} in that of the undisturbed run"
        return
    for step, expected in zip(steps, other, strict=True):
        far = abs(step["loss"] - expected["loss"])
        if far > (1e-4 if elastic else 0):
            yield f"the loss of step {step['step']} is {step['loss']!r}, undisturbed {expected['loss']!r}"
            return
