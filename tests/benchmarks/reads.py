"""What the workers of a run read beside what they train on, and what the driver holds: many shards, many workers.

    python -m tests.benchmarks.reads [--rows 1000000] [--shards 10000] [--worlds 1 8 64] [--batch 2048] [--languages 1]

Shards of made-up rows of 8 tokens are written; then each worker's first window of reads (512 rows, as the feed takes them) is
read by the library's own reader in this process, and the row groups and files that it opens are counted. `amplification` is
rows read by all workers over rows trained on. The last line is one JSON object.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np

from data_pipeline.feed.planned import _WINDOW_ROWS, PlannedRows, RankFeed
from data_pipeline.feed.reader import RowReader
from data_pipeline.order.plan import OrderPlan, Slots
from data_pipeline.shards import format
from data_pipeline.shards.manifest import Manifest
from tests.benchmarks import made_up

LENGTH, VOCABULARY = 8, 1000


def measured(manifest: Manifest, folder: str, world: int, batch: int, sample: int) -> dict[str, Any]:
    """The reads of `sample` workers of `world`, evenly chosen."""
    began = time.perf_counter()
    plan = OrderPlan(streams=manifest.order_streams(dict.fromkeys(manifest.streams, 1.0)), batch=batch, seed=0)
    rows = PlannedRows(plan=plan, folder=folder, manifest=manifest, micro=None)
    feeds = [RankFeed(rows=rows, rank=rank, world=world) for rank in range(world)]
    share = len(feeds[0].expected(0))
    first_plan, reader = time.perf_counter() - began, rows.reader()
    steps = range(max(1, _WINDOW_ROWS // share))
    needed = files = read = seconds = 0.0
    chosen = np.unique(np.linspace(0, world - 1, min(sample, world)).astype(int))
    for rank in chosen:
        window = Slots.joined([feeds[rank].expected(step) for step in steps])
        counted = groups_of(reader, window)
        began = time.perf_counter()
        reader.read(window)
        seconds += time.perf_counter() - began
        needed += float((window.weight > 0).sum())
        files, read = files + len(counted), read + sum(counted.values()) * format.GROUP_ROWS
    workers = len(chosen)
    return {
        "world": world, "rows_a_worker_and_step": share, "amplification": round(read / needed, 2),
        "files_a_window": round(files / workers, 1), "row_groups_a_window": round(read / workers / format.GROUP_ROWS, 1),
        "seconds_a_window": round(seconds / workers, 3), "seconds_to_first_plan": round(first_plan, 4),
    }  # fmt: skip


def groups_of(reader: RowReader, window: Slots) -> dict[tuple[int, int], int]:
    """Row groups by file, as the reader asks for them."""
    found: dict[tuple[int, int], int] = {}
    for number, name in enumerate(reader._names):
        here = window.stream == number
        shard, row = reader._rows[name].places(np.asarray(window.row, np.int64)[here])
        for one in np.unique(shard):
            found[number, int(one)] = len(np.unique(row[shard == one] // format.GROUP_ROWS))
    return found


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--languages", type=int, default=1, help="of equal size")
    parser.add_argument("--workers", type=int, default=8, help="whose reads are measured, at most")
    given = parser.parse_args(argv)
    made_up.SHARD_ROWS = given.rows // given.shards
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        names = [f"l{number:02d}" for number in range(given.languages)]
        manifest = made_up.rows(folder, dict.fromkeys(names, given.rows // given.languages), LENGTH, VOCABULARY, seed=0)
        cells = [measured(manifest, folder, world, given.batch, given.workers) for world in given.worlds]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = vars(given) | {"cells": cells, "largest_process_mib": round(memory)}
    ratios = {f"amplification_{cell['world']}": cell["amplification"] for cell in cells}
    print(json.dumps({"benchmark": "reads", "device": "cpu", "ratios": ratios, "figures": figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
