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
import time
from collections import Counter
from typing import Any

os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("MASTER_PORT", "29533")
os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}

import torch
import torch.distributed as dist

from tests.benchmarks import made_up, train_cpu, train_gpu, training
from trainer.engine.config import TrainConfig

FIRST = 3
KINDS = {
    "matrix products": ("mm", "gemm", "nvjet", "cutlass", "cublas"),
    "attention kernels": ("flash", "fmha", "flex"),
    "softmax, GELU, norms, loss": (
        "softmax", "gelu", "norm", "exp", "sub", "max", "scatter", "gather", "triton", "tanh", "silu",
    ),
    "dropout": ("where", "bernoulli", "dropout"),
    "copies, sums and fills": (
        "copy", "cat", "fill", "zero", "add", "mul", "div", "sum", "memcpy", "memset", "elementwise", "empty",
    ),
    "optimizer": ("adam",),
    "rows of the embeddings": ("embedding", "index"),
}  # fmt: skip
"""By a part of a kernel's name; the first that holds, the optimizer before all."""


def kind_of(name: str) -> str:
    name = name.lower()
    order = ["optimizer", "attention kernels", *KINDS]
    return next((kind for kind in order if any(part in name for part in KINDS[kind])), "other")


def peak(device: str) -> float:
    """Operations a second of a product of two matrices, in the precision that is trained in."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(12):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(taken[4:])


def shapes(gpu: bool) -> dict[str, tuple[Any, int, int, int]]:
    """Configuration, vocabulary, rows of a step and their length, by name."""
    if gpu:
        return {name: (shape.config(name, "ours", True), shape.vocabulary["ours"], shape.micro["ours"], shape.length)
                for name, shape in train_gpu.shapes(True).items()}  # fmt: skip
    return {name: (train_cpu.shape(size), size, 32, train_cpu.LENGTH) for name, size in train_cpu.VOCABULARIES.items()}


def profiled(folder: str, vocabulary: int, rows: int, length: int, steps: int) -> dict[str, Any]:
    """Seconds of a step, and of its kernels by their kind."""
    from data_pipeline.feed.planned import RankFeed
    from trainer.engine.setup import engine_for
    from trainer.engine.step import optimizer_step, set_rates

    gpu = torch.cuda.is_available()
    config = TrainConfig(steps=FIRST + 2 * steps, batch_size=rows, precision="bf16" if gpu else "fp32", warmup_steps=2)
    made_up.rows(f"{folder}/rows", {"xx": rows * config.steps}, length, vocabulary, seed=1)
    feed = RankFeed(rows=training.planned(f"{folder}/rows", config), rank=0, world=1)
    task = training.task(f"{folder}/model", length)
    collate, module = task.collator(), task.module()
    flops = module.flops()
    engine = engine_for(module, config, rows, 1)
    engine.train()
    batches = [collate(table) for table in feed.local(0, config.steps)]

    def step(number: int) -> float:
        began = time.perf_counter()
        set_rates(engine, config, number)
        optimizer_step(engine, [batches[number]], 1, 0, False)
        return time.perf_counter() - began

    seconds = [step(number) for number in range(FIRST + steps)][FIRST:]
    kinds: Counter[str] = Counter()
    with torch.profiler.profile() as profile:
        for number in range(FIRST + steps, config.steps):
            step(number)
    for event in profile.key_averages():
        taken = event.self_device_time_total if gpu else event.self_cpu_time_total
        if taken and (gpu or event.key.startswith("aten::")):
            kinds[kind_of(event.key.removeprefix("aten::"))] += taken / 1e6 / steps
    targets, pairs = (
        sum(count) / len(batches) for count in zip(*((len(one.labels), one.pairs) for one in batches), strict=True)
    )
    return {"seconds": statistics.median(seconds), "kinds": dict(kinds.most_common()),
            "operations": flops.step(rows * length, round(targets), round(pairs))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.step_profile")
    parser.add_argument("--steps", type=int, default=6)
    given, gpu = parser.parse_args(), torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    top, found = peak("cuda" if gpu else "cpu"), {}
    for name, (config, vocabulary, rows, length) in shapes(gpu).items():
        with tempfile.TemporaryDirectory(prefix="scion-bench-") as folder:
            made_up.model(f"{folder}/model", config)
            found[name] = profiled(folder, vocabulary, rows, length, given.steps)
    dist.destroy_process_group()
    shares = {name: told["operations"] / top / told["seconds"] for name, told in found.items()}
    for name, told in found.items():
        print(
            f"{name}: {told['seconds']:.3f} s a step; at the speed of a large product its work takes {shares[name]:.0%} of it"
        )
        for kind, seconds in told["kinds"].items():
            print(f"  {kind:<28} {seconds:7.3f} s  {seconds / sum(told['kinds'].values()):5.1%}")
    device = torch.cuda.get_device_name() if gpu else "CPU"
    print(json.dumps({"benchmark": "step_profile", "device": device, "peak": top, "share_of_peak": shares, "figures": found,
                      "cores": os.cpu_count()}))  # fmt: skip


if __name__ == "__main__":
    main()
