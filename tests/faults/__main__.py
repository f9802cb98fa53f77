"""Seeded schedules of faults against a real run, and a check of all invariants: `python -m tests.faults --seeds 5`.

Each seed draws a ZeRO stage, whether the run may continue with fewer workers, and three faults with their steps. The last line
is a JSON object; a seed that fails prints how to run it again. `--mutants` tests the harness itself: it must catch three copies
of Scion, each broken in one line.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.check import Leftovers, violations
from tests.faults.inject import FAULTS, flip_weights
from tests.faults.inputs import STEPS, make_inputs
from tests.faults.mutants import MUTANTS, mutant
from tests.faults.rig import ROOT, Rig, Run, copy_inputs, rig

_SPARE = 8
"""Steps between two faults, at least; and steps at the beginning and the end without one."""


@dataclass(frozen=True)
class Schedule:
    """The settings of a run and the faults that disturb it."""

    seed: int
    stage: int
    elastic: bool
    faults: tuple[tuple[int, str], ...]
    """(the step after which it comes, its name)"""

    @classmethod
    def from_seed(cls, seed: int) -> "Schedule":
        draw = random.Random(seed)
        names = draw.sample(sorted(FAULTS), 3)
        steps = sorted(draw.sample(range(1, STEPS // _SPARE - 2), 3))
        faults = tuple((step * _SPARE + draw.randrange(_SPARE), name) for step, name in zip(steps, names, strict=True))
        return cls(seed, 1 + seed % 3, bool(seed // 3 % 2), faults)

    @property
    def overrides(self) -> tuple[str, ...]:
        fewest = ("min_workers=1",) if self.elastic else ()
        return (f"pretrain.train.zero_stage={self.stage}", *fewest)


def run_schedule(rig: Rig, source: Path, folder: Path, schedule: Schedule) -> Run:
    """Runs to the end under the faults of the schedule."""
    run, draw = Run(rig, copy_inputs(source, folder), schedule.overrides), random.Random(schedule.seed)
    with watch_checkpoints(run) as gaps:
        run.start()
        try:
            for step, name in schedule.faults:
                run.wait(lambda step=step: run.step() >= step and len(run.rig.workers()) >= 1, f"step {step}")  # type: ignore[misc]
                print(f"    step {run.step()}: {name}", flush=True)
                (FAULTS | {"flip_weights": flip_weights})[name](run, draw)
            code = run.wait_for_exit()
            assert code == 0, f"the run ended with {code}: {run.stderr}"
        finally:
            run.stop()
    assert not gaps, f"I5 a checkpoint at all times: {gaps[0]}"
    return run


@contextmanager
def watch_checkpoints(run: Run) -> Iterator[list[str]]:
    """Collects the moments of the block at which there is no usable checkpoint, after the first one."""
    gaps, over, was_usable = list[str](), threading.Event(), False

    def look() -> None:
        nonlocal was_usable
        while not over.wait(0.2):
            is_usable = bool(run.store.usable())
            if was_usable and not is_usable and not Path(run.uri, "artifact.json").exists() and Path(run.store.uri).exists():
                gaps.append(f"none at step {run.step()}")
            was_usable = was_usable or is_usable

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield gaps
    finally:
        over.set()
        thread.join()


def try_schedule(root: Path, source: Path, folder: Path, schedule: Schedule, reference: Path) -> list[str]:
    """Runs a schedule and returns the violations."""
    before = Leftovers.now()
    try:
        with rig(root) as nodes:
            run = run_schedule(nodes, source, folder, schedule)
            failures = violations(
                run,
                reference,
                Leftovers(Leftovers.now().shared | before.shared, frozenset()),
                [name for _, name in schedule.faults],
                schedule.elastic,
            )
    except AssertionError as error:
        return [str(error)]
    return failures + [f"I6 nothing left behind: /dev/shm/{name}" for name in sorted(Leftovers.now().shared - before.shared)]


def references(source: Path, folder: Path, stages: set[int]) -> dict[int, Path]:
    """Makes an undisturbed run for each ZeRO stage, and returns their folders."""
    with rig() as nodes:
        return {
            stage: run_schedule(nodes, source, folder / f"reference-{stage}", Schedule(-1, stage, False, ())).folder
            for stage in sorted(stages)
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed-from", type=int, default=0)
    parser.add_argument("--mutants", action="store_true", help="also try the harness on three broken copies of Scion")
    options = parser.parse_args()
    schedules = [Schedule.from_seed(seed) for seed in range(options.seed_from, options.seed_from + options.seeds)]
    folder, began, failed, caught = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic(), {}, {}
    source = make_inputs(folder / "source")
    stages = {schedule.stage for schedule in schedules} | ({1} if options.mutants else set())
    reference_folders = references(source, folder, stages)
    for schedule in schedules:
        print(f"seed {schedule.seed}: ZeRO-{schedule.stage}, {'elastic' if schedule.elastic else 'fixed'}", flush=True)
        if failures := try_schedule(ROOT, source, folder / str(schedule.seed), schedule, reference_folders[schedule.stage]):
            failed[schedule.seed] = failures
            print("\n".join(f"    {failure}" for failure in failures[:20]))
            print(f"    again: make faults SEEDS=1 SEED_FROM={schedule.seed}", flush=True)
    for name in MUTANTS if options.mutants else ():
        print(f"mutant: {name}", flush=True)
        with mutant(name, folder / "mutants") as root:
            failures = try_schedule(
                root, source, folder / f"mutant-{len(caught)}", MUTANTS[name].schedule, reference_folders[1]
            )
        caught[name] = failures[:1]
        print(f"    {failures[0] if failures else 'NOT CAUGHT'}", flush=True)
    shutil.rmtree(folder)
    missed = [name for name, failures in caught.items() if not failures]
    summary = {
        "seeds": options.seeds,
        "seed_from": options.seed_from,
        "failed": failed,
        "mutants_caught": caught,
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(summary))
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
