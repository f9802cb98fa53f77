"""The whole pipeline on small input: its outputs, its repeatability, and its recovery after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.integration.conftest import ROOT, Chain, environment, scion, scion_process
from trainer.embedder import Embedder
from trainer.monitoring import run_log

STARTS = ["source_model", "random_untrained", "random_trained", "transferred_untrained", "transferred_trained"]


def test_the_summary_holds_what_was_promised(finished_chain: Chain) -> None:
    summary = finished_chain.summary()
    jsonschema.validate(summary, json.loads((ROOT / "ray_jobs/report/summary.schema.json").read_text()))
    for name in STARTS:
        for way in ("forward", "backward"):
            assert 0 <= summary["retrieval"][name][way]["accuracy_at_1"] <= summary["retrieval"][name][way]["mrr_at_10"] <= 1
    for start in ("random", "transferred"):
        assert set(summary["bits_per_byte"][start]) == {"0", "6"}
        assert summary["bits_per_byte"][start]["6"] < summary["bits_per_byte"][start]["0"]
    assert summary["fertility"]["target"]["unknown"] < 0.01 < summary["fertility"]["source"]["unknown"]
    assert summary["serve"]["requests"] > 0
    assert summary["serve"]["max_abs_diff"] <= 1e-5
    assert {"shard", "transfer", "random/transfer", "pretrain", "embed", "evaluate", "serve", "merge"} <= set(
        summary["seconds"]
    )
    assert summary["versions"]["torch"] == torch.__version__
    assert "<img" in (finished_chain.output / "report.html").read_text()


def test_the_summary_says_on_what_each_training_ran(finished_chain: Chain) -> None:
    devices = finished_chain.summary()["devices"]
    assert set(devices) == {"pretrain", "random/pretrain", "embed", "random/embed"}
    assert all(sum(names.values()) == 2 for names in devices.values())


def test_training_ends_with_folders_that_others_load(finished_chain: Chain) -> None:
    """The test of the summary shows that it learns: losses of six steps cannot, since each has other rows."""
    for start in ("", "random/"):
        assert len(finished_chain.artifact(f"{start}pretrain")["metrics"]["history"]) == 6
    model = AutoModelForMaskedLM.from_pretrained(finished_chain.output / "pretrain")
    before = AutoModelForMaskedLM.from_pretrained(finished_chain.output / "transfer")
    assert model.config.vocab_size == before.config.vocab_size == 1280
    changed_names = [
        n for (n, a), (_, b) in zip(model.named_parameters(), before.named_parameters(), strict=True) if not torch.equal(a, b)
    ]
    assert len(changed_names) == len(list(model.named_parameters()))
    assert AutoTokenizer.from_pretrained(finished_chain.output / "pretrain")("Πατήστε").input_ids


def test_retrieval_at_the_end_of_training_is_that_of_the_embedder(finished_chain: Chain) -> None:
    final_scores = finished_chain.summary()["retrieval"]
    for folder, start in (("", "transferred"), ("random/", "random")):
        scores = finished_chain.artifact(f"{folder}embed")["metrics"]["retrieval"]
        assert set(scores) == {"0", "4"}
        assert scores["4"] == final_scores[f"{start}_trained"]


def test_the_embedder_is_a_sentence_transformers_folder(finished_chain: Chain, greek) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(finished_chain.output / "embed"), device="cpu").encode(greek[:20])
    assert np.abs(theirs - Embedder.load(str(finished_chain.output / "embed")).encode(greek[:20])).max() < 1e-5


def test_no_working_files_are_left(finished_chain: Chain) -> None:
    names = {path.name for path in finished_chain.output.rglob("*")}
    assert not names & {"checkpoints", "source", "unfinished.json"}
    assert not list(finished_chain.output.rglob("*.draft"))


def test_the_control_differs_in_its_start_only(finished_chain: Chain) -> None:
    """Same tokenizer, same copied rows, same seed, steps and data."""
    transferred, control = finished_chain.artifact("transfer"), finished_chain.artifact("random/transfer")
    assert transferred["metrics"]["provenance"]["exact_copy"] == control["metrics"]["provenance"]["exact_copy"]
    ours, theirs = (finished_chain.artifact(f"{start}pretrain") for start in ("", "random/"))
    assert ours["config"] == theirs["config"]
    assert ours["inputs"]["shards"] == theirs["inputs"]["shards"]
    assert [e["rate"] for e in ours["metrics"]["history"]] == [e["rate"] for e in theirs["metrics"]["history"]]


def test_a_second_run_does_nothing_but_say_so(finished_chain: Chain) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_chain.output.rglob("artifact.json")}
    again = scion("pipeline", finished_chain.config)
    assert again.returncode == 0
    assert again.stdout.count("kept") == len(before)
    assert {path: path.stat().st_mtime_ns for path in finished_chain.output.rglob("artifact.json")} == before


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_killed_run_resumes_and_gives_the_same_numbers(finished_chain: Chain, copy: Chain, address: str) -> None:
    """SIGKILL in the middle of training, after a checkpoint; the run's Ray dies too, and a second run resumes."""
    for part in ("shards", "transfer", "random"):
        shutil.copytree(finished_chain.output / part, copy.output / part)
    running = start_job("pipeline", copy)
    try:
        _wait_for(copy.output / "pretrain" / "checkpoints", "step_*/COMMITTED", running)
        children = psutil.Process(running.pid).children(recursive=True)
    finally:
        running.kill()
        running.wait()
    assert not (copy.output / "pretrain" / "artifact.json").exists()
    again = scion_process("pipeline", copy.config, address=address)
    assert again.returncode == 0, again.stderr
    actual, expected = copy.summary(), finished_chain.summary()
    for key in ("retrieval", "bits_per_byte", "fertility", "provenance", "loss"):
        assert actual[key] == expected[key], key
    psutil.wait_procs(children, timeout=60)  # Ray's agents check for their raylet only now and then
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def _wait_for(folder: Path, pattern: str, running: subprocess.Popen, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert running.poll() is None, running.stderr.read().decode()
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.05)


@pytest.mark.slow
def test_shards_interrupted_by_sigterm_are_completed_by_the_next_run(finished_chain: Chain, copy: Chain) -> None:
    """`ray job stop` sends SIGTERM: no traceback, no half-written folder that looks finished, also while Ray runs a task."""
    running = start_job("shard", copy)
    _wait_for(copy.output, "shards/unfinished.json", running)
    time.sleep(2)
    assert send_signal(running) == 130
    assert not (copy.output / "shards" / "artifact.json").exists()
    assert scion("shard", copy.config).returncode == 0
    for name in ("rows/manifest.json", "heldout/manifest.json", "tokenizer/tokenizer.json"):
        assert (copy.output / "shards" / name).read_bytes() == (finished_chain.output / "shards" / name).read_bytes()


def test_training_interrupted_by_ctrl_c_is_saved_and_resumes(finished_chain: Chain, copy: Chain) -> None:
    """`tests.faults` does the same with SIGTERM. Ray Train has a handler of its own for Ctrl-C, which saves nothing."""
    for part in ("shards", "transfer"):
        shutil.copytree(finished_chain.output / part, copy.output / part)
    run, longer = str(copy.output / "pretrain"), ("pretrain.train.steps=300", "pretrain.train.checkpoint_steps=null")
    running = start_job("pretrain", copy, *longer)
    _wait_for(copy.output, "pretrain/checkpoints/step_*/COMMITTED", running)
    while not run_log.steps(run_log.read(f"{run}/log")):
        time.sleep(0.1)
    time.sleep(1)  # the driver looks twice a second
    assert send_signal(running, signal.SIGINT) == 75
    reached = run_log.read(f"{run}/log")[-1][-1]
    assert reached["kind"] == "stopped"
    assert 0 < reached["next_step"] < 300
    assert not (copy.output / "pretrain" / "artifact.json").exists()
    printed = scion("status", run).stdout
    assert "stopped" in printed
    assert f"{reached['next_step']} of 300" in printed
    other = scion("pretrain", copy.config, *longer, "pretrain.train.learning_rate=1e-5")
    assert other.returncode == 2
    assert "pretrain.train.learning_rate (0.0001 -> 1e-05)" in other.stderr
    assert scion("verify", run).returncode == 0
    assert scion("pretrain", copy.config, *longer).returncode == 0
    starts = [entry["next_step"] for entries in run_log.read(f"{run}/log") for entry in entries if entry["kind"] == "start"]
    assert starts == [0, reached["next_step"]]
    checked = scion("verify", run)
    assert checked.returncode == 0
    assert "of 300 steps, each slot of the order once" in checked.stdout
    assert not list(copy.output.glob("*.lease.json"))


def start_job(job: str, chain: Chain, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ray_jobs.cli", job, chain.config, *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def send_signal(running: subprocess.Popen, number: int = signal.SIGTERM) -> int:
    """Sends a signal and returns the exit code."""
    running.send_signal(number)
    _, errors = running.communicate(timeout=90)
    assert b"Traceback" not in errors
    return running.returncode


@pytest.mark.parametrize("method", ["random", "mean", "fvt", "wechsel", "focus"])
def test_every_method_makes_a_model(finished_chain: Chain, copy: Chain, method: str) -> None:
    os.symlink(finished_chain.output / "shards", copy.folder / "shards")
    copy.output.mkdir()
    (copy.folder / "shards").rename(copy.output / "shards")
    process = scion("transfer", copy.config, f"method={method}")
    assert process.returncode == 0, process.stderr
    assert sum(copy.artifact("transfer")["metrics"]["provenance"].values()) == 1280
    assert AutoModelForMaskedLM.from_pretrained(copy.output / "transfer").config.vocab_size == 1280
