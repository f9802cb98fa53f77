"""Where the time of a training step goes, and what is left to the limit.

    python -m tests.benchmarks.step_profile [--steps 6]

Our engine and forward in one process, without Ray, under torch's profiler: the shapes of `train_cpu` on a CPU, those of
`train_gpu` on a GPU. Kernels are put together by name. The limit is the time that the step's useful operations
(`trainer.models.flops`) take at the speed of a product of two large matrices on the same device, measured in the same run. The
last line is one JSON object; shares are of the time in kernels.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from tests.benchmarks import made_up, train_cpu, train_gpu, training
from trainer.config.train import TrainConfig

FIRST = 3
KINDS = {
    "optimizer": ("adam",),
    "attention kernels": ("flash", "fmha", "flex"),
    "matrix products": ("mm", "gemm", "nvjet", "cutlass", "cublas"),
    "softmax, GELU, norms, loss": (
        "softmax", "gelu", "norm", "exp", "sub", "max", "scatter", "gather", "triton", "tanh", "silu",
    ),
    "dropout": ("where", "bernoulli", "dropout"),
    "copies, sums and fills": (
        "copy", "cat", "fill", "zero", "add", "mul", "div", "sum", "memcpy", "memset", "elementwise", "empty",
    ),
    "rows of the embeddings": ("embedding", "index"),
}  # fmt: skip
"""Parts of kernel names by kind; the first match counts."""


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")


def shapes(gpu: bool) -> dict[str, tuple[Any, int, int, int]]:
    """Configuration, vocabulary, rows of a step and their length, by name."""
    if gpu:
        return {
            name: (shape.config(name, "ours", True), shape.vocabulary["ours"], shape.micro["ours"], shape.length)
            for name, shape in train_gpu.shapes(True).items()
        }
    return {name: (train_cpu.shape(size), size, 32, train_cpu.LENGTH) for name, size in train_cpu.VOCABULARIES.items()}


def profile_steps(folder: str, vocabulary: int, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Seconds of a step, and of its kernels by their kind."""
    gpu = torch.cuda.is_available()
    config = TrainConfig(steps=FIRST + 2 * steps, batch_size=rows, precision="bf16" if gpu else "fp32", warmup_steps=2)
    made_up.rows(f"{folder}/rows", {"xx": rows * config.steps}, length, vocabulary, seed=1)
    task = training.task(f"{folder}/model", length)
    outcomes = training.steps(task, f"{folder}/rows", config)
    timed = [next(outcomes) for _ in range(FIRST + steps)][FIRST:]
    kinds: Counter[str] = Counter()
    with torch.profiler.profile() as profile:
        for _ in range(steps):
            next(outcomes)
    for event in profile.key_averages():
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        if microseconds and (gpu or event.key.startswith("aten::")):
            kinds[kind_of(event.key.removeprefix("aten::"))] += microseconds / 1e6 / steps
    flops, record = task.module().flops(), timed[-1]
    return {
        "seconds": statistics.median(sum(one.seconds.values()) for one in timed),
        "kinds": dict(kinds.most_common()),
        "operations": flops.step(record.tokens, sum(record.targets), record.attention_pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.step_profile")
    parser.add_argument("--steps", type=int, default=6)
    options, gpu = parser.parse_args(), torch.cuda.is_available()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl" if gpu else "gloo")
    top, records = training.peak(), {}
    for name, (config, vocabulary, rows, length) in shapes(gpu).items():
        with tempfile.TemporaryDirectory(prefix="scion-bench-") as folder:
            made_up.model(f"{folder}/model", config)
            records[name] = profile_steps(folder, vocabulary, rows, length, options.steps)
    dist.destroy_process_group()
    shares = {name: record["operations"] / top / record["seconds"] for name, record in records.items()}
    for name, record in records.items():
        print(
            f"{name}: {record['seconds']:.3f} s a step; at the speed of a large product its work takes {shares[name]:.0%} of it"
        )
        for kind, seconds in record["kinds"].items():
            print(f"  {kind:<28} {seconds:7.3f} s  {seconds / sum(record['kinds'].values()):5.1%}")
    device = torch.cuda.get_device_name() if gpu else "CPU"
    result = {
        "benchmark": "step_profile",
        "device": device,
        "peak": top,
        "share_of_peak": shares,
        "figures": records,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
