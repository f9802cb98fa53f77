"""Continued pretraining on one GPU: tokens and useful operations a second, ours and the peers', in the same run.

    python -m tests.benchmarks.train_gpu [--steps 40] [--repeats 3] [--only xlm-r|gpt2]

Shapes: XLM-R-base (250,112 tokens, rows of 512, 15 % masked) and GPT-2-small (50,304 tokens, rows of 1,024); bf16, AdamW,
clipping at 1, no dropout; rows are one document each. The sides take turns, each in a process of its own:

- `ours`: what `scion pretrain` runs: Ray Train, Ray Data, DeepSpeed ZeRO-1, the compiled forward;
- `hf_trainer`: transformers' Trainer with DeepSpeed ZeRO-1, as its documentation has it, with the model's own vocabulary;
- `plain`: our forward in a plain loop: bf16 weights, fp32 copies for a fused AdamW, no DeepSpeed, no Ray.

A run counts by the median of its steps behind the first ten. Useful operations are those of `trainer.models.flops`; the peak
is a bf16 product of two matrices of 8,192, measured in the same run. The last line is one JSON object.

Without a GPU the same code runs a model of two layers, to show that it works; its figures mean nothing and are marked so.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch

from tests.benchmarks import made_up, training
from trainer.config.train import TrainConfig

FIRST = 10
SIDES = ("ours", "hf_trainer", "plain")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its batch."""

    length: int
    micro: dict[str, int]
    """Rows in a micro-batch: the fastest number for each side."""
    vocabulary: dict[str, int]
    """Padded for ours, the model's own for the peer."""

    def config(self, name: str, side: str, gpu: bool) -> Any:
        from transformers import GPT2Config, XLMRobertaConfig

        size, layers, width, heads = self.vocabulary[side], *((12, 768, 12) if gpu else (2, 64, 2))
        if name == "gpt2":
            return GPT2Config(
                vocab_size=size,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                n_positions=self.length,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                bos_token_id=2,
                eos_token_id=3,
            )
        return XLMRobertaConfig(
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=self.length + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=1,
            type_vocab_size=1,
        )


def shapes(gpu: bool) -> dict[str, Shape]:
    if not gpu:
        small = {"length": 32, "micro": dict.fromkeys(SIDES, 4), "vocabulary": dict.fromkeys(SIDES, 512)}
        return {"xlm-r": Shape(**small), "gpt2": Shape(**small)}
    return {
        "xlm-r": Shape(
            length=512,
            micro={"ours": 128, "plain": 128, "hf_trainer": 16},
            vocabulary={"ours": 250_112, "plain": 250_112, "hf_trainer": 250_002},
        ),
        "gpt2": Shape(
            length=1024,
            micro={"ours": 64, "plain": 64, "hf_trainer": 32},
            vocabulary={"ours": 50_304, "plain": 50_304, "hf_trainer": 50_257},
        ),
    }


def child(side: str, name: str, folder: str, steps: int) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    micro, precision = shapes(gpu)[name].micro[side], "bf16" if gpu else "fp32"
    config = TrainConfig(
        steps=steps,
        batch_size=micro,
        precision=precision,
        learning_rate=training.RATE,
        warmup_steps=2,
        checkpoint_steps=None,
        spike=0.0,
    )
    model, rows = f"{folder}/{name}-{side}", f"{folder}/{name}-rows"
    if side == "plain":
        return plain(model, rows, config)
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as output:
        if side == "ours":
            return training.ours(model, rows, output, config, workers=1, cpus=4 if gpu else 1, gpu=gpu)
        return training.hf_trainer(model, rows, output, config, deepspeed=gpu)


def plain(model: str, rows: str, config: TrainConfig) -> dict[str, Any]:
    """Rows are collated beforehand."""
    from data_pipeline.feed.rank_feed import RankFeed

    gpu = torch.cuda.is_available()
    feed = RankFeed(rows=training.ordered_rows(rows, config), rank=0, world=1)
    task = training.task(model, feed.rows.manifest.length)
    batches, module = [task.collator()(table) for table in feed.read_local(0, config.steps)], task.module().train()
    if gpu:
        module = module.to("cuda", torch.bfloat16)
        module.compile_graph()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=training.RATE, weight_decay=config.weight_decay, fused=True)
    seconds, losses = [], []
    for batch in batches:
        began = time.perf_counter()
        batch = batch.to("cuda" if gpu else "cpu")  # type: ignore[assignment]
        loss = module(batch).sum() / len(batch.labels)
        loss.backward()
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, config.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "losses": losses}


def useful_operations(name: str, side: str, folder: str, shape: Shape) -> float:
    """Operations of a step of one row."""
    module: Any = training.task(f"{folder}/{name}-{side}", shape.length).module()
    causal = name == "gpt2"
    targets = shape.length - 1 if causal else round(training.PROBABILITY * shape.length)
    pairs = shape.length * (shape.length + 1) // 2 if causal else shape.length**2
    return float(module.flops().step(shape.length, targets, pairs))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train_gpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("xlm-r", "gpt2"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        *names, steps = options.child
        print(json.dumps(child(*names, int(steps))), flush=True)
        return
    gpu, results = torch.cuda.is_available(), dict[str, Any]()
    top = training.peak() if gpu else None
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as folder:
        for name, shape in shapes(gpu).items():
            if options.only not in (None, name):
                continue
            for side in SIDES:
                made_up.model(f"{folder}/{name}-{side}", shape.config(name, side, gpu))
            count = max(shape.micro.values()) * options.steps
            made_up.rows(f"{folder}/{name}-rows", {"xx": count}, shape.length, min(shape.vocabulary.values()), seed=1)
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for repeat in range(options.repeats):
                for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                    runs[side].append(
                        training.answer(["-m", "tests.benchmarks.train_gpu", "--child", side, name, folder, str(options.steps)])
                    )
            results[name] = {
                side: figures(runs[side], shape, side, useful_operations(name, side, folder, shape), top) for side in SIDES
            }
    report(results, gpu, top)


def figures(runs: list[dict[str, Any]], shape: Shape, side: str, operations: float, top: float | None) -> dict[str, Any]:
    rows = [shape.micro[side] / statistics.median(run["seconds"][FIRST:]) for run in runs]
    mid = statistics.median(rows)
    waits = [
        wait / seconds
        for run in runs
        if "parts" in run
        for wait, seconds in zip(run["parts"]["data_wait"][FIRST:], run["seconds"][FIRST:], strict=True)
    ]
    return {
        "tokens_per_second": round(mid * shape.length),
        "spread": [round(one * shape.length) for one in (min(rows), max(rows))],
        "useful_tflops": round(mid * operations / 1e12, 1),
        "share_of_peak": top and round(mid * operations / top, 3),
        "data_wait_share": statistics.median(waits) if waits else None,
        "memory_gib": max((run["parts"]["memory"][-1] or 0.0 for run in runs if "parts" in run), default=None),
        "loss": [runs[0]["losses"][0], runs[0]["losses"][-1]],
    }


def report(results: dict[str, Any], gpu: bool, top: float | None) -> None:
    device = torch.cuda.get_device_name() if gpu else "CPU: a trial of the code, not a measurement"
    print(f"{device}; peak {'-' if top is None else f'{top / 1e12:.0f} TF/s'}")
    for name, sides in results.items():
        for side, one in sides.items():
            print(
                f"  {name:<6} {side:<11} {one['tokens_per_second']:>9,} tokens/s  {one['useful_tflops']:>7} useful TF/s  "
                f"share of peak {one['share_of_peak']}  data wait {one['data_wait_share']}"
            )
    ratios = {
        f"{name}_vs_{side}": round(sides["ours"]["tokens_per_second"] / sides[side]["tokens_per_second"], 3)
        for name, sides in results.items()
        for side in SIDES[1:]
    }
    record = {
        "benchmark": "train_gpu",
        "measured": gpu,
        "device": device,
        "peak": top,
        "ratios": ratios if gpu else None,
        "figures": results,
        "cores": os.cpu_count(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1:])
