"""Traces of chosen steps (`TrainConfig.profile_steps`) by torch.profiler, a file a rank; on a GPU a memory snapshot, too."""

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterator

import torch
from torch.profiler import ProfilerActivity

from data_pipeline.artifacts import storage

FOLDER = "profile"
"""Below a run's folder."""


@contextlib.contextmanager
def profiled(uri: str, step: int, steps: Collection[int], rank: int) -> Iterator[None]:
    """Records the block with torch.profiler if `step` is among `steps`. A failing storage loses the trace only.

    `step-STEP-rank-RANK.json.gz` opens in https://ui.perfetto.dev, `...-memory.pickle` in https://pytorch.org/memory_viz.
    """
    if step not in steps:
        yield
        return
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    if gpu:
        torch.cuda.memory._record_memory_history()
    with torch.profiler.profile(activities=activities, profile_memory=True) as trace:
        yield
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder:
        name = f"step-{step:09d}-rank-{rank:05d}"
        trace.export_chrome_trace(os.path.join(folder, f"{name}.json.gz"))
        if gpu:
            torch.cuda.memory._dump_snapshot(os.path.join(folder, f"{name}-memory.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        for path in storage.files(folder):
            with open(os.path.join(folder, path), "rb") as file:
                storage.write_bytes(storage.join(uri, FOLDER, path), file.read())
