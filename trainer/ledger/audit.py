"""Compares a run's ledger with its order: every slot exactly once, in order, and the same rows in repeated steps."""

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
    """The history of a run, as the run records it."""

    lineage: tuple[str, ...]
    """The segments of the ledger that count, in order."""
    steps: int
    """Their training steps."""
    skipped: tuple[tuple[int, int], ...]
    """Steps [first, last) of the order that the run skipped."""


def read_history(uri: str) -> History | None:
    """The history in the ledger of a finished run; None of a run that goes on."""
    path = storage.join(uri, ledger.HISTORY)
    return parse_history(json.loads(storage.read_bytes(path))) if storage.exists(path) else None


def parse_history(content: dict[str, Any]) -> History:
    """A history from JSON."""
    skipped = tuple((int(first), int(last)) for first, last in content["skipped"])
    return History(lineage=tuple(content["lineage"]), steps=int(content["steps"]), skipped=skipped)


def audit(uri: str, rows: OrderedRows, history: History) -> list[CheckResult]:
    """Compares the ledger in folder `uri` with the order, and with the shards if they still exist."""
    order, content, again = [], list[str](), list[str]()
    present = bool(rows.manifest.streams) and storage.exists(storage.join(rows.folder, manifests.NAME))
    step, count = 0, 0
    for name in history.lineage:
        last = step_of(name)
        order += [f"{name}: {problem}" for problem in _missing_parts(uri, name)]
        found, problems = _read(uri, name)
        order += problems
        count += len(found)
        order += list(_differences(_expected(rows.order, step, last, history.skipped), found))
        content += _content(rows, found) if present else []
        step = last
    if step != history.steps:
        order.append(f"the segments end after step {step}, the run after step {history.steps}")
    others = sorted(set(ledger.segments(uri)) - set(history.lineage))
    for name in others:
        found, problems = _read(uri, name)
        again += (
            problems
            + list(_differences(_expected_again(rows.order, found), found))
            + (_content(rows, found) if present else [])
        )
    compared = "compared with the shards" if present else "the shards are gone: not compared"
    left = sum(last - first for first, last in history.skipped)
    return [
        CheckResult.from_failures(
            "order", f"{count:,} rows of {step:,} steps, each slot of the order once; {left} steps skipped", order
        ),
        CheckResult.from_failures("rows", compared, content),
        CheckResult.from_failures("replays", f"{len(others)} segments that do not count, all in the order", again),
    ]


def _missing_parts(uri: str, name: str) -> list[str]:
    """Compares the number of parts with the number of ranks in the segment's name."""
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


def _expected_again(plan: RowOrder, found: pa.Table) -> Slots:
    """The order's rows at the steps and slots of `found`, each once."""
    places = np.unique(np.stack([found[name].to_numpy().astype(np.int64) for name in ("step", "slot")], axis=1), axis=0)
    offsets = {int(step): plan.sizes.offset(int(step)) for step in np.unique(places[:, 0])}
    return plan.lookup(np.array([offsets[int(step)] + int(slot) for step, slot in places], np.int64))


def _differences(expected: Slots, found: pa.Table) -> Iterator[str]:
    """How a ledger's rows differ from the expected ones."""
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
    yield from (f"step {step} slot {slot} is not in the order" for step, slot in once if (step, slot) not in planned)
    for (step, slot), other in once.items():
        if planned.get((step, slot), other) != other:
            yield f"step {step} slot {slot} had (stream, epoch, row) {other}, the order has {planned[step, slot]}"


def _content(rows: OrderedRows, found: pa.Table) -> list[str]:
    """Rows whose checksum in the ledger is not that of the row in the shards."""
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
            wrong.append(f"step {step} slot {slot} had other content than the shards have now")
    return wrong
