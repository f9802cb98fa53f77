"""Small inputs on real text, up to and including the transferred model."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from tests.conftest import SAMPLE, tiny_model, wordpiece
from tests.faults.rig import ROOT

STEPS = 96
_CONFIG = """
text: {folder}/text.parquet
pairs: {folder}/pairs.parquet
test_pairs: {folder}/test_pairs.parquet
source_model: {folder}/source
method: mean
output: {folder}/run
worker_cpus: 2
shard: {{tokenizer: {{vocab_size: 1280}}, length: 64, heldout: 0.2, actors: 1}}
pretrain:
  train: {{steps: {steps}, batch_size: 13, micro_batch: 2, checkpoint_steps: 6, evaluate_steps: 32}}
  heldout_rows: 8
"""
"""A batch that no number of workers divides, several micro-steps, and checkpoints often enough to meet every fault."""


def make_inputs(folder: Path) -> Path:
    """Writes Greek text and a tiny English BERT to `folder`, and runs the first two jobs."""
    folder.mkdir(parents=True)
    pq.write_table(pq.read_table(SAMPLE / "test_text.parquet").slice(0, 120), folder / "text.parquet")
    table = pq.read_table(SAMPLE / "test_pairs.parquet").slice(0, 200)
    pq.write_table(table.slice(0, 150), folder / "pairs.parquet")
    pq.write_table(table.slice(150), folder / "test_pairs.parquet")
    tokenizer = wordpiece(table["anchor"].to_pylist())
    tiny_model(tokenizer).save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    (folder / "tiny.yaml").write_text(_CONFIG.format(folder=folder, steps=STEPS))
    for job in ("shard", "transfer"):
        command = [sys.executable, "-m", "ray_jobs.cli", job, str(folder / "tiny.yaml")]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
    return folder
