"""Memory that a transfer takes in relation to the model: a bf16 Llama of 200 million weights, transferred in its own format.

`python -m tests.benchmarks.transfer_memory`. Each case runs in a new process, which samples its private memory (RssAnon:
without pages of mapped files, which the kernel drops when it needs room). The vocabulary is synthetic: a tenth of the new
tokens are copies, the rest mixtures of three old ones.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_pipeline import keyed_random
from trainer.models import loading
from trainer.transfer.graft import graft
from trainer.transfer.plan import Provenance, TransferPlan

ROWS = 32000


def tokenizer() -> PreTrainedTokenizerFast:
    names = ["[UNK]", *(f"w{number}" for number in range(ROWS - 1))]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def plan() -> TransferPlan:
    random = np.random.default_rng(0)
    is_copy = random.random(ROWS) < 0.1
    counts = np.where(is_copy, 1, 3)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    weights = np.repeat(np.where(is_copy, 1.0, 1 / 3), counts).astype(np.float32)
    is_random = random.random(ROWS) < 0.1
    return TransferPlan(
        indptr=indptr,
        indices=random.integers(0, ROWS, indptr[-1]).astype(np.int32),
        weights=weights,
        provenance=np.where(
            is_copy, Provenance.EXACT_COPY, np.where(is_random, Provenance.RANDOM, Provenance.NEIGHBOURS)
        ).astype(np.uint8),
        keys=np.array([keyed_random.key(number) for number in range(ROWS)], np.uint64),
        group=np.zeros(ROWS, np.uint16),
        source_group=np.zeros(ROWS, np.uint16),
        by=np.ones(ROWS, np.uint8),
        source_rows=ROWS,
        seed=0,
        method="aligned",
    )


def source(folder: str) -> int:
    """Saves the model and returns its size in bytes."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10, "num_attention_heads": 16}
    settings = LlamaConfig(vocab_size=ROWS, tie_word_embeddings=False, num_key_value_heads=16, **sizes)
    model = LlamaForCausalLM(settings).bfloat16()
    model.save_pretrained(folder)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def private_memory() -> int:
    """KiB of memory that no file backs."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def transfer(folder: str, dtype: str) -> None:
    """Prints how far load, graft and save raise the private memory, in KiB."""
    before, samples, stop = private_memory(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            samples.append(private_memory())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = loading.language_model(folder, 0, "auto" if dtype == "auto" else torch.float32)
    graft(model, plan(), tokenizer())
    with tempfile.TemporaryDirectory() as output:
        model.save_pretrained(output)
    stop.set()
    watcher.join()
    print(max(samples) - before)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        size = source(folder)
        peaks = {}
        for dtype in ("auto", "fp32"):
            print(f"{dtype} ...", file=sys.stderr)
            command = [sys.executable, "-m", __spec__.name, folder, dtype]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[dtype] = int(answer.stdout.split()[-1]) * 1024
    ratios = {dtype: round(peak / size, 2) for dtype, peak in peaks.items()}
    figures = {"model_MiB": size >> 20} | {f"peak_{dtype}_MiB": peak >> 20 for dtype, peak in peaks.items()}
    print(json.dumps({"benchmark": "transfer_memory", "device": "cpu", "ratios": ratios, "figures": figures}))


if __name__ == "__main__":
    transfer(*sys.argv[1:]) if len(sys.argv) > 1 else main()
