"""Whether a run was trained on what its plan says: every planned slot of its history exactly once, in order, and the same rows
wherever an attempt went over them again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.check_result import CheckResult
from data_pipeline.errors import ScionError
from data_pipeline.feed.rank_feed import OrderedRows
from data_pipeline.feed.reader import SLOT_COLUMNS
from data_pipeline.order.row_order import RowOrder, Slots, order_step
from data_pipeline.shards import manifest as manifests
from trainer.ledger import ledger
from trainer.ledger.step_name import step_of, world_of

_COLUMNS = tuple(name for name in SLOT_COLUMNS if name != "weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a run says of itself."""

    lineage: tuple[str, ...]
    """Segments of the ledger that count, in order."""
    steps: int
    """Training steps that they hold."""
    skipped: tuple[tuple[int, int], ...]
    """Planned steps [first, last) that were left out."""


def read_history(uri: str) -> History | None:
    """What a run that has ended left in its ledger; None before."""
    path = storage.join(uri, ledger.HISTORY)
    return parse_history(json.loads(storage.read_bytes(path))) if storage.exists(path) else None


def parse_history(told: dict[str, Any]) -> History:
    skipped = tuple((int(first), int(last)) for first, last in told["skipped"])
    return History(lineage=tuple(told["lineage"]), steps=int(told["steps"]), skipped=skipped)


def audit(uri: str, rows: OrderedRows, history: History) -> list[CheckResult]:
    """The ledger in folder `uri` against the plan, and against the shards if they are still there."""
    order, content, again = [], list[str](), list[str]()
    present = bool(rows.manifest.streams) and storage.exists(storage.join(rows.folder, manifests.NAME))
    step, count = 0, 0
    for name in history.lineage:
        last = step_of(name)
        order += [f"{name}: {said}" for said in _complete(uri, name)]
        found, said = _read(uri, name)
        order += said
        count += len(found)
        order += list(_against(_expected(rows.order, step, last, history.skipped), found))
        content += _content(rows, found) if present else []
        step = last
    if step != history.steps:
        order.append(f"the segments end after step {step}, the run after step {history.steps}")
    others = sorted(set(ledger.segments(uri)) - set(history.lineage))
    for name in others:
        found, said = _read(uri, name)
        again += said + list(_against(_planned(rows.order, found), found)) + (_content(rows, found) if present else [])
    read = "compared with the shards" if present else "the shards are gone: not compared"
    left = sum(last - first for first, last in history.skipped)
    return [
        CheckResult.from_failures(
            "order", f"{count:,} rows of {step:,} steps, each planned slot once; {left} steps left out", order
        ),
        CheckResult.from_failures("rows", read, content),
        CheckResult.from_failures("replays", f"{len(others)} segments that do not count, all as planned", again),
    ]


def _complete(uri: str, name: str) -> list[str]:
    """Whether every rank's part is there: the name says how many ranks there were."""
    parts, world = len(ledger.parts(uri, name)), world_of(name)
    return [] if parts == world else [f"{parts} parts of {world} ranks"]


def _read(uri: str, name: str) -> tuple[pa.Table, list[str]]:
    try:
        return ledger.read(uri, name), []
    except ScionError as error:
        return ledger.SCHEMA.empty_table(), [str(error)]


def _expected(plan: RowOrder, first: int, last: int, skipped: tuple[tuple[int, int], ...]) -> Slots:
    """All slots of the training steps [first, last)."""
    offsets = [np.zeros(0, np.int64)]
    for step in range(first, last):
        planned = order_step(step, skipped)
        offsets.append(plan.sizes.offset(planned) + np.arange(plan.sizes.size(planned)))
    return plan.lookup(np.concatenate(offsets))


def _planned(plan: RowOrder, found: pa.Table) -> Slots:
    """What the plan has at the steps and slots of `found`, each once."""
    places = np.unique(np.stack([found[name].to_numpy().astype(np.int64) for name in ("step", "slot")], axis=1), axis=0)
    offsets = {int(step): plan.sizes.offset(int(step)) for step in np.unique(places[:, 0])}
    return plan.lookup(np.array([offsets[int(step)] + int(slot) for step, slot in places], np.int64))


def _against(expected: Slots, found: pa.Table) -> Iterator[str]:
    """How rows of a ledger differ from those planned."""
    wanted = list(zip(*(getattr(expected, name).tolist() for name in _COLUMNS), strict=True))
    had = list(zip(*(found[name].to_pylist() for name in _COLUMNS), strict=True))
    if wanted == had:
        return
    once, several = dict[tuple[int, int], tuple[int, ...]](), list[tuple[int, int]]()
    for step, slot, *row in had:
        if (step, slot) in once:
            several.append((step, slot))
        once[step, slot] = tuple(row)
    planned = {(step, slot): tuple(row) for step, slot, *row in wanted}
    yield from (f"step {step} slot {slot} was trained on twice" for step, slot in several)
    yield from (f"step {step} slot {slot} was never trained on" for step, slot in planned if (step, slot) not in once)
    yield from (f"step {step} slot {slot} was not to be trained on" for step, slot in once if (step, slot) not in planned)
    for (step, slot), other in once.items():
        if planned.get((step, slot), other) != other:
            yield f"step {step} slot {slot} had (stream, epoch, row) {other}, the plan {planned[step, slot]}"


def _content(rows: OrderedRows, found: pa.Table) -> list[str]:
    """Where the checksum of a row that was trained on is not that of the row in the shards."""
    reader, wrong = rows.reader(), list[str]()
    for start in range(0, len(found), 4096):
        part = found.slice(start, 4096)
        columns = {name: part[name].to_numpy().astype(np.int64) for name in _COLUMNS}
        try:
            own = ledger.crcs(reader.read(Slots(weight=np.ones(len(part), np.float32), **columns)))
        except (ScionError, LookupError) as error:
            unknown = f"rows {part['row'][0]} to {part['row'][-1]} cannot be found in the shards"
            return [*wrong, str(error) if isinstance(error, ScionError) else unknown]
        for place in np.flatnonzero(own != part["crc"].to_numpy()):
            step, slot = columns["step"][place], columns["slot"][place]
            wrong.append(f"step {step} slot {slot} held something else than the shards now do")
    return wrong
