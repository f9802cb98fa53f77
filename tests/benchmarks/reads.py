"""Rows that workers read per row that they train on, and memory of the driver, with many shards and workers.

    python -m tests.benchmarks.reads [--rows 1000000] [--shards 10000] [--worlds 1 8 64] [--batch 2048] [--languages 1]

Writes shards of random rows of 8 tokens, runs the read tasks that the feed makes for each worker in a span of steps, in this
process, and counts the rows of the row groups that they open. `amplification` is rows read over rows trained on.
`seconds_to_first_rows` is planning and reading the first window, alone. The last line is one JSON object.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from data_pipeline.feed.reader import read_located
from data_pipeline.order.row_order import RowOrder
from data_pipeline.shards import format
from data_pipeline.shards.manifest import Manifest
from tests.benchmarks import made_up

LENGTH, VOCABULARY = 8, 1000


def measure(manifest: Manifest, folder: str, world: int, batch: int, sample: int) -> dict[str, Any]:
    """The reads of `sample` workers of `world`, evenly chosen, in a span of the length that spans grow to."""
    order = RowOrder(streams=manifest.order_streams(dict.fromkeys(manifest.streams, 1.0)), batch=batch, seed=0)
    rows = OrderedRows(order=order, folder=folder, manifest=manifest, micro_batch=None)
    feeds = [RankFeed(rows=rows, rank=rank, world=world) for rank in range(world)]
    first, *_, longest = feeds[0].spans(0, 1 << 20)[:-1]
    began = time.perf_counter()
    for task in feeds[0].read_tasks([feeds[0].slots(step) for step in range(*first)]):
        read_located(folder, task)
    soon = time.perf_counter() - began
    needed = rows_read = files = tasks = 0
    ranks = np.unique(np.linspace(0, world - 1, min(sample, world)).astype(int))
    for rank in ranks:
        steps = [feeds[rank].slots(step) for step in range(*longest)]
        needed += sum(int((step.weight > 0).sum()) for step in steps)
        for task in feeds[rank].read_tasks(steps):
            counts = rows_by_file(manifest, task)
            files, rows_read, tasks = files + len(counts), rows_read + sum(counts.values()), tasks + 1
    return {
        "world": world,
        "rows_a_worker_and_step": len(steps[0]),
        "steps_a_span": longest[1] - longest[0],
        "amplification": round(rows_read / needed, 2),
        "files_a_task": round(files / tasks, 1),
        "rows_a_task": round(needed / tasks),
        "seconds_to_first_rows": round(soon, 3),
    }


def rows_by_file(manifest: Manifest, task: pa.Table) -> dict[str, int]:
    """Rows in the row groups that a task opens, by file."""
    sizes = {shard.path: shard.rows for shards in manifest.streams.values() for shard in shards}
    groups = {
        (path, place // format.GROUP_ROWS)
        for path, place in zip(*(task[n].to_pylist() for n in ("path", "place")), strict=True)
    }
    counts: dict[str, int] = {}
    for path, group in groups:
        rows = min(format.GROUP_ROWS, sizes[path] - group * format.GROUP_ROWS)
        counts[path] = counts.get(path, 0) + rows
    return counts


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--languages", type=int, default=1, help="of equal size")
    parser.add_argument("--workers", type=int, default=8, help="whose reads are measured, at most")
    options = parser.parse_args(argv)
    made_up.SHARD_ROWS = options.rows // options.shards
    with tempfile.TemporaryDirectory(prefix="scion-") as folder:
        names = [f"l{number:02d}" for number in range(options.languages)]
        manifest = made_up.rows(folder, dict.fromkeys(names, options.rows // options.languages), LENGTH, VOCABULARY, seed=0)
        cells = [measure(manifest, folder, world, options.batch, options.workers) for world in options.worlds]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = vars(options) | {"cells": cells, "largest_process_mib": round(memory)}
    ratios = {f"amplification_{cell['world']}": cell["amplification"] for cell in cells}
    print(json.dumps({"benchmark": "reads", "device": "cpu", "ratios": ratios, "figures": figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
