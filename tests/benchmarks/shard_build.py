"""From clean text to shards, beside datatrove's tokenizer pipeline and datasets.map: tokens a second of one core.

    python -m tests.benchmarks.shard_build [--repeats 3] [--cache build/help] [--family bpe|wordpiece|unigram]

Each side reads the same Parquet files of help text in eight languages and writes what it writes for training: datatrove its
token files, not shuffled; datasets an Arrow file of ids; we packed Parquet rows with their hashes and checksums. The tokenizer
is the same, of 32,000 pieces, trained on the text. Each run has a process of its own, one thread, and its CPU time is taken
behind the imports; the sides take turns. The numbers of tokens must be equal. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.benchmarks import help_text

SIZE = 32_000


def ours(texts: list[str], tokenizer: str, output: str) -> tuple[int, Callable[[], int]]:
    from data_pipeline.shards import build, format
    from data_pipeline.shards.corpus import SCHEMA

    # As `scion shard` stores text: the columns (id, lang, text), with a checksum of each row group.
    files = []
    for path in texts:
        files.append(os.path.join(output, "text", os.path.basename(path)))
        format.write(files[-1], pq.read_table(path).cast(SCHEMA), group_rows=1024)
    loaded = build.load_tokenizer(tokenizer)

    def run() -> int:
        jobs = [
            {"path": path, "length": 512, "packing": "concat", "folder": output, "name": f"part-{number:05d}"}
            for number, path in enumerate(files)
        ]
        return sum(shard["text_tokens"] for job in jobs for shard in build.pack_file(job, loaded).values())

    return len(files), run


def datatrove(texts: list[str], tokenizer: str, output: str) -> tuple[int, Callable[[], int]]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    def run() -> int:
        tokens = DocumentTokenizer(
            os.path.join(output, "tokens"), os.path.join(tokenizer, "tokenizer.json"), shuffle_documents=False
        )
        pipeline = [ParquetReader(os.path.dirname(texts[0])), tokens]
        LocalPipelineExecutor(pipeline, logging_dir=os.path.join(output, "logs")).run()
        return sum(path.stat().st_size for path in Path(output, "tokens").glob("*.ds")) // 2

    return len(texts), run


def datasets(texts: list[str], tokenizer: str, output: str) -> tuple[int, Callable[[], int]]:
    from datasets import load_dataset

    from data_pipeline.shards.build import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    rows = load_dataset("parquet", data_files=texts, split="train", cache_dir=os.path.join(output, "cache"))

    def encoded(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": loaded(batch["text"], add_special_tokens=False, return_attention_mask=False).input_ids}

    def run() -> int:
        result = rows.map(encoded, batched=True, remove_columns=rows.column_names)
        import pyarrow.compute as pc

        return int(pc.sum(pc.list_value_length(result.data.column("input_ids"))).as_py())

    return len(texts), run


SIDES = {"ours": ours, "datatrove": datatrove, "datasets": datasets}


def measure(side: str, texts: list[str], tokenizer: str) -> dict[str, float]:
    """Tokens, and seconds of CPU and of wall time; runs in a new process."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true", "OMP_NUM_THREADS": "1"}
    import pyarrow as pa

    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(prefix="scion-bench-") as output:
        _, run = SIDES[side](texts, tokenizer, output)
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = run()
        return {"tokens": tokens, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def train_tokenizer(family: str, texts: list[str], folder: Path) -> str:
    """The folder of a tokenizer of `SIZE` pieces, which is trained once."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if not folder.exists():
        special = ["<unk>", "<s>", "</s>", "<pad>"]
        kinds: dict[str, tuple[Any, Any, Any, Any]] = {
            "bpe": (
                models.BPE(),
                None,
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                trainers.BpeTrainer(
                    vocab_size=SIZE, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
                ),
            ),
            "wordpiece": (
                models.WordPiece(unk_token="<unk>"),
                normalizers.BertNormalizer(),
                pre_tokenizers.BertPreTokenizer(),
                trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=special),
            ),
            "unigram": (
                models.Unigram(),
                normalizers.NFKC(),
                pre_tokenizers.Metaspace(),
                trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=special, unk_token="<unk>"),
            ),
        }
        model, normalizer, split, trainer = kinds[family]
        backend = Tokenizer(model)
        if normalizer is not None:
            backend.normalizer = normalizer
        backend.pre_tokenizer = split
        lines = (line for path in texts for text in pq.read_table(path)["text"].to_pylist() for line in text.split("\n"))
        backend.train_from_iterator(lines, trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        tokenizer.save_pretrained(folder)
    return str(folder)


def main(argv: list[str]) -> None:
    about = argparse.ArgumentParser(prog="python -m tests.benchmarks.shard_build")
    about.add_argument("--repeats", type=int, default=3)
    about.add_argument("--cache", type=Path, default=Path("build/help"))
    about.add_argument("--family", choices=("bpe", "wordpiece", "unigram"), default="bpe")
    options = about.parse_args(argv)
    texts = [str(path.resolve()) for path in help_text.documents(options.cache / "text")]
    tokenizer = train_tokenizer(options.family, texts, options.cache / f"tokenizer-{options.family}")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side in SIDES:
            with get_context("spawn").Pool(1) as pool:
                runs[side].append(pool.apply(measure, (side, texts, tokenizer)))
    tokens = {int(run["tokens"]) for results in runs.values() for run in results}
    if len(tokens) != 1:
        sys.exit(f"the sides count tokens differently: { {side: results[0]['tokens'] for side, results in runs.items()} }")
    report(options.family, runs, tokens.pop(), sum(os.path.getsize(path) for path in texts))


def report(family: str, runs: dict[str, list[dict[str, float]]], tokens: int, size: int) -> None:
    """Prints a table and a line of JSON."""
    speeds = {side: [tokens / run["cpu"] for run in results] for side, results in runs.items()}
    print(f"{family}, {tokens:,} tokens, {size / 1e6:.1f} MB of Parquet; tokens a second of CPU time, median (lowest, highest)")
    for side, values in speeds.items():
        print(f"  {side:<10} {statistics.median(values):>12,.0f}   ({min(values):,.0f}, {max(values):,.0f})")
    mid = {side: statistics.median(values) for side, values in speeds.items()}
    record = {
        "benchmark": "shard_build",
        "ratios": {f"vs_{side}": round(mid["ours"] / mid[side], 3) for side in SIDES if side != "ours"},
        "figures": {
            side: {
                "tokens_per_cpu_second": [round(v) for v in values],
                "wall": [round(run["wall"], 3) for run in runs[side]],
            }
            for side, values in speeds.items()
        },
        "tokens": tokens,
        "family": family,
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("tokenizers", "datatrove", "datasets")},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1:])
