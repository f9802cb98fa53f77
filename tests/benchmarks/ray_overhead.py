"""The overhead of Ray in training: the same shards and steps under torchrun, with rows read in the process.

    python -m tests.benchmarks.ray_overhead [--steps 16] [--repeats 3]

Both sides use our engine and forward. With Ray: Ray Train's workers, Ray Data's tasks, the log and the ledger, as `scion
pretrain` has them. Without: torchrun, a loop that reads, trains and writes nothing. Rows, weights and masks are the same, so
the losses must be; the model has no dropout, which a run keys on the step. A run counts by the median of its steps behind the
first four; the sides take turns.

A worker has one core. `spare` leaves one core to Ray's processes and to the tasks that read and mask rows, as nodes with GPUs
do; `full` has a worker on every core, so that some twenty processes of Ray, which take 15 % of a core between them, interrupt
the workers. The last line is one JSON object; `ray_vs_torchrun` is throughput with Ray over throughput without, `spare`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from typing import Any

from tests.benchmarks import made_up, training
from trainer.config.train import TrainConfig

LENGTH, VOCABULARY, FIRST = 128, 8_064, 4
SIDES = ("ray", "torchrun")


def child(side: str, folder: str, steps: int, rows: int, workers: int) -> dict[str, Any]:
    config = TrainConfig(
        steps=steps, batch_size=rows, learning_rate=training.RATE, warmup_steps=2, checkpoint_steps=None, spike=0.0
    )
    model, shards = f"{folder}/model", f"{folder}/rows"
    if side == "torchrun":
        return training.plain(model, shards, config)
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as output:
        return training.ours(model, shards, output, config, workers=workers, cpus=1, gpu=False)


def measure(side: str, folder: str, steps: int, rows: int, workers: int) -> dict[str, Any]:
    """The record of a side that runs in its own processes: from rank 0 under torchrun, else from the driver."""
    training.threads(1)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if side == "torchrun" else []
    child = ["-m", "tests.benchmarks.ray_overhead", "--child", side, folder, *map(str, (steps, rows, workers))]
    return training.answer([*start, *child], DS_ACCELERATOR="cpu")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ray_overhead")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="of a step, over all workers")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        side, folder, *numbers = options.child
        answer = json.dumps(child(side, folder, *map(int, numbers)))
        if os.environ.get("RANK", "0") == "0":
            print(answer, flush=True)
        return
    cores = os.cpu_count() or 1
    places = {"spare": max(1, cores - 1), "full": cores}
    results: dict[str, dict[str, list[dict[str, Any]]]] = {place: {side: [] for side in SIDES} for place in places}
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as folder:
        from transformers import BertConfig

        shape = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            max_position_embeddings=512,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        made_up.model(f"{folder}/model", shape)
        made_up.rows(f"{folder}/rows", {"xx": options.rows * options.steps}, LENGTH, VOCABULARY, seed=1)
        for repeat in range(options.repeats):
            for place, workers in places.items():
                for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                    results[place][side].append(measure(side, folder, options.steps, options.rows, workers))
    report(results, options.rows * LENGTH)


def report(results: dict[str, dict[str, list[dict[str, Any]]]], tokens: int) -> None:
    far = max(
        abs(a - b) for sides in results.values() for a, b in zip(*(sides[side][0]["losses"] for side in SIDES), strict=True)
    )
    if far > 1e-4:
        sys.exit(f"the sides do not train alike: losses differ by {far:.2g}")
    print("tokens a second, median of the runs (lowest, highest); the first step, which waits for rows and buffers")
    ratios, figures = {}, {}
    for place, sides in results.items():
        speeds = {side: [tokens / statistics.median(run["seconds"][FIRST:]) for run in runs] for side, runs in sides.items()}
        for side, values in speeds.items():
            first = statistics.median(run["seconds"][0] for run in sides[side])
            mid = statistics.median(values)
            print(f"  {place:<6} {side:<9} {mid:>8,.0f}   ({min(values):,.0f}, {max(values):,.0f})   {first:.2f} s")
        ratios[place] = round(statistics.median(speeds["ray"]) / statistics.median(speeds["torchrun"]), 4)
        figures[place] = {side: [round(value) for value in values] for side, values in speeds.items()}
    waits = [wait for sides in results.values() for run in sides["ray"] for wait in run["parts"]["data_wait"][FIRST:]]
    record = {
        "benchmark": "ray_overhead",
        "ratios": {"ray_vs_torchrun": ratios["spare"], "ray_vs_torchrun_full": ratios["full"]},
        "figures": figures,
        "data_wait_seconds": statistics.median(waits),
        "losses_differ_by": far,
        "cores": os.cpu_count(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1:])
