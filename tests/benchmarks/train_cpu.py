"""Continued pretraining on a CPU: tokens a second beside Hugging Face's Trainer, for a small and a large vocabulary.

    python -m tests.benchmarks.train_cpu [--steps 12] [--repeats 3] [--rows 32]

The shape is that of all-MiniLM-L6-v2 (6 layers of width 384), with 8,064 and with 250,112 tokens, rows of 128 tokens that are
one document each, 15 % masked, fp32, AdamW, clipping at 1, dropout as in the model's configuration. Ours is what `scion
pretrain` runs: Ray Train, Ray Data, DeepSpeed ZeRO-1, the log, the ledger and a checkpoint before the first step; the peer
reads rows from memory and writes nothing. Each side has a process of its own and as many threads, and they take turns. A run
counts by the median of its steps behind the first three. The last line is one JSON object: ratios are of tokens a second.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from importlib.metadata import version
from typing import Any

from tests.benchmarks import made_up, training
from trainer.config.train import TrainConfig

LENGTH, FIRST = 128, 3
VOCABULARIES = {"8k": 8_064, "250k": 250_112}
SIDES = ("ours", "hf_trainer")


def shape(vocabulary: int) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )


def child(side: str, folder: str, steps: int, rows: int, cores: int) -> dict[str, Any]:
    config = TrainConfig(
        steps=steps, batch_size=rows, learning_rate=training.RATE, warmup_steps=2, checkpoint_steps=None, spike=0.0
    )
    model, shards = f"{folder}/model", f"{folder}/rows"
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as output:
        if side == "ours":
            return training.ours(model, shards, output, config, workers=1, cpus=cores, gpu=False)
        return training.hf_trainer(model, shards, output, config, deepspeed=False)


def measure(arguments: list[str], cores: int) -> dict[str, Any]:
    """The record of a side that runs in a new process."""
    training.threads(cores)
    return training.answer(["-m", "tests.benchmarks.train_cpu", "--child", *arguments], DS_ACCELERATOR="cpu")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train_cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="of a step")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        side, folder, *numbers = options.child
        print(json.dumps(child(side, folder, *map(int, numbers))))
        return
    cores = os.cpu_count() or 1
    results: dict[str, dict[str, list[dict[str, Any]]]] = {name: {side: [] for side in SIDES} for name in VOCABULARIES}
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as folder:
        for name, size in VOCABULARIES.items():
            made_up.model(f"{folder}/{name}/model", shape(size))
            made_up.rows(f"{folder}/{name}/rows", {"xx": options.rows * options.steps}, LENGTH, size, seed=1)
        for repeat in range(options.repeats):
            for name in VOCABULARIES:
                for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                    numbers = (options.steps, options.rows, cores)
                    results[name][side].append(measure([side, f"{folder}/{name}", *map(str, numbers)], cores))
    report(results, options.rows * LENGTH)


def report(results: dict[str, dict[str, list[dict[str, Any]]]], tokens: int) -> None:
    speeds: dict[str, dict[str, list[float]]] = {
        name: {side: [tokens / statistics.median(run["seconds"][FIRST:]) for run in runs] for side, runs in sides.items()}
        for name, sides in results.items()
    }
    print("tokens a second, median of the runs (lowest, highest); loss of the first and the last step")
    for name, sides in speeds.items():
        for side, values in sides.items():
            losses = results[name][side][0]["losses"]
            print(
                f"  {name:<5} {side:<11} {statistics.median(values):>8,.0f}   ({min(values):,.0f}, {max(values):,.0f})   "
                f"{losses[0]:.3f} {losses[-1]:.3f}"
            )
    mid = {name: {side: statistics.median(values) for side, values in sides.items()} for name, sides in speeds.items()}
    record = {
        "benchmark": "train_cpu",
        "ratios": {f"{name}_vs_hf_trainer": round(sides["ours"] / sides["hf_trainer"], 3) for name, sides in mid.items()},
        "figures": {
            name: {side: [round(value) for value in values] for side, values in sides.items()} for name, sides in speeds.items()
        },
        "parts_of_ours": {
            name: {
                part: statistics.median(values[FIRST:])
                for part, values in sides["ours"][0]["parts"].items()
                if values[-1] is not None
            }
            for name, sides in results.items()
        },
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed", "ray")},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1:])
