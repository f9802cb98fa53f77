"""Every vector method on clusters of many CPUs: `python -m tests.benchmarks.clusters`.

Ray does not check the number of CPUs that it is given, so a machine of two shows how tasks are scheduled on one of 256. Each
method makes its model on 2, 16, 64 and 256 CPUs; the weights must agree to the bit. Prints one line of JSON: the seconds by
CPUs and method, and what differs or fails. Takes a minute or two.
"""

import argparse
import hashlib
import io
import json
import os
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import ray

from ray_jobs.cli import main as scion
from tests.conftest import SAMPLE, tiny_model, wordpiece

METHODS = ("wechsel", "ofa", "focus", "aligned", "ramen", "clp", "clp_plus", "omp", "tokenadapt", "ppmi")
_FAST = "fasttext: {dim: 16, epochs: 1, min_count: 2, buckets: 2000}"
CONFIG = """
text: {folder}/text.parquet
pairs: {folder}/pairs.parquet
source_model: {folder}/source
output: {folder}/run
shard: {{tokenizer: {{vocab_size: 1280}}, length: 32, heldout: 0.2, actors: 1}}
transfer:
  methods:
    wechsel: {{space: {{{fast}}}}}
    ofa: {{space: {{{fast}}}}}
    tokenadapt: {{space: {{{fast}}}}}
    focus: {{{fast}}}
    clp: {{donor: {folder}/donor, top: 64}}
    clp_plus: {{donor: {folder}/donor}}
    omp: {{donor: {folder}/donor}}
"""


def main() -> None:
    """Makes every model on every cluster, and prints the seconds and the failures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpus", nargs="*", type=int, default=[2, 16, 64, 256])
    cpus = parser.parse_args().cpus
    os.environ.update(RAY_prestart_worker_first_driver="0")  # else Ray starts a process for each CPU
    with tempfile.TemporaryDirectory() as folder:
        _write_inputs(Path(folder))
        results = {number: _run_methods(number, folder) for number in cpus}
    wrong = [
        f"{method} on {number} CPUs: {result['failed'] or 'other weights'}"
        for number, methods in results.items()
        for method, result in methods.items()
        if result["failed"] or result["weights"] != results[cpus[0]][method]["weights"]
    ]
    seconds = {number: {method: result["seconds"] for method, result in methods.items()} for number, methods in results.items()}
    print(json.dumps({"seconds": seconds, "wrong": wrong}))


def _write_inputs(folder: Path) -> None:
    pairs = pq.read_table(SAMPLE / "test_pairs.parquet")
    pq.write_table(pairs.slice(0, 240), folder / "pairs.parquet")
    pq.write_table(pq.read_table(SAMPLE / "test_text.parquet").slice(0, 100), folder / "text.parquet")
    for name, side in (("source", "anchor"), ("donor", "positive")):
        tokenizer = wordpiece(pairs[side].to_pylist())
        tiny_model(tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "conf.yaml").write_text(CONFIG.format(folder=folder, fast=_FAST))


def _run_methods(cpus: int, folder: str) -> dict[str, dict[str, object]]:
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, object_store_memory=300 << 20)
    try:
        return {method: _make_model(method, f"{folder}/run-{cpus}-{method}", folder) for method in METHODS}
    finally:
        ray.shutdown()


def _make_model(method: str, output: str, folder: str) -> dict[str, object]:
    settings = ["method=focus", "transfer.methods.focus.kind=ppmi"] if method == "ppmi" else [f"method={method}"]
    began, errors = time.perf_counter(), io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = scion(["transfer", f"{folder}/conf.yaml", *settings, f"output={output}", f"shards={folder}/shards"])
    weights = Path(output, "transfer", "model.safetensors")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "failed": errors.getvalue().strip() if code else "",
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "",
    }


if __name__ == "__main__":
    main()
