"""Copies of Scion with one line broken, which the checks must catch."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.rig import ROOT


@dataclass(frozen=True)
class Mutant:
    """A change of one line, and the fault that makes it show."""

    path: str
    right: str
    wrong: str
    fault: str

    @property
    def schedule(self) -> Any:
        from tests.faults.__main__ import Schedule

        return Schedule(0, 1, False, ((24, self.fault),))


MUTANTS = {
    "a run that goes on leaves a step out": Mutant(
        "trainer/engine/loop.py",
        "        self._recovery.restore()\n        self._start(",
        "        self._recovery.restore()\n        self._state.next_step += bool(self._state.lineage)\n        self._start(",
        "kill_worker",
    ),
    "rows in an order of their own in each reading task": Mutant(
        "data_pipeline/feed/reader.py",
        "    for tag in SLOT_COLUMNS:\n",
        "    rows = rows.take(pa.array(np.random.default_rng().permutation(len(rows))))\n    for tag in SLOT_COLUMNS:\n",
        "kill_worker",
    ),
    "a checkpoint that is taken without a look at its hashes": Mutant(
        "trainer/checkpoints/store.py",
        "        if actual != expected:\n",
        "        if actual is None:\n",
        "flip_weights",
    ),
}


@contextmanager
def mutant(name: str, folder: Path) -> Iterator[Path]:
    """Makes a broken copy, and removes it after the block."""
    broken = MUTANTS[name]
    for part in ("ray_jobs", "trainer", "data_pipeline", "cluster"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / broken.path
    text = path.read_text()
    assert text.count(broken.right) == 1, f"{broken.path} has changed: write the mutant {name!r} anew"
    path.write_text(text.replace(broken.right, broken.wrong))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
