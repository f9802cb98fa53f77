"""A user with a text and a model but no pairs: single jobs, the pipeline, and a comparison."""

import json
import os

import pytest

from tests.integration.conftest import Chain, scion
from trainer.embedder import Embedder

FEW = ("pairs=null", "test_pairs=null", "pretrain.train.steps=2", "embed.train.steps=2")


pytestmark = pytest.mark.usefixtures("without_ray_train")


@pytest.fixture
def text(copy: Chain, ray_session: None) -> Chain:
    return copy


def run_job(job: str, chain: Chain, *overrides: str) -> str:
    process = scion(job, chain.config, *FEW, *overrides)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_jobs_run_one_by_one_and_the_pipeline_keeps_them(text: Chain, greek) -> None:  # type: ignore[no-untyped-def]
    for job in ("shard", "transfer", "pretrain"):
        run_job(job, text)
    assert "bits per byte of held-out text" in run_job("evaluate", text)
    output = run_job("report", text)
    assert "bits per byte of held-out text" in output
    assert "retrieval" not in output
    summary = text.summary()
    assert (summary["method"], list(summary["bits_per_byte"]), summary["retrieval"]) == ("focus", ["transferred"], {})
    assert set(summary["seconds"]) == {"shard", "transfer", "pretrain", "evaluate"}

    output = run_job("embed", text)
    assert "are their own positives" in output
    assert Embedder.load(str(text.output / "embed")).encode(greek[:2]).shape[0] == 2

    output = run_job("pipeline", text, "control=false")
    assert output.count("kept") == 5  # including the report, whose inputs are unchanged
    assert not (text.output / "random").exists()
    # Adding the random control runs only the new jobs; evaluation and report include it.
    output = run_job("pipeline", text)
    assert output.count("kept") == 3
    assert list(text.summary()["bits_per_byte"]) == ["random", "transferred"]


def test_a_comparison_needs_no_pairs(text: Chain) -> None:
    fast = "compare.runs=[{name: fast, method: fvt, pretrain: {train: {learning_rate: 1.0e-3}}}]"
    output = run_job("compare", text, "compare.methods=[fvt,random]", fast, "compare.seeds=[0]")
    assert "bits per byte" in output
    assert "accuracy@1" not in output
    rows = {row["name"]: row for row in json.loads((text.output / "compare.json").read_text())["rows"]}
    assert set(rows) == {"fvt", "random", "fast"}
    assert rows["fast"]["first"] == rows["fvt"]["first"]  # the same start, at another rate
    assert rows["fast"]["final"] != rows["fvt"]["final"]


@pytest.mark.slow
def test_runs_share_their_shards(text: Chain) -> None:
    shared = f"shards={text.folder}/shared"
    run_job("shard", text, shared)
    assert "kept" in run_job("transfer", text, shared, "method=fvt")
    assert "kept" in run_job("transfer", text, shared, "method=mean", f"output={text.folder}/other")
    assert not (text.output / "shards").exists()
    assert sorted(os.listdir(text.folder / "other")) == ["transfer"]


@pytest.mark.slow
def test_pairs_without_test_pairs_train_an_embedder_that_is_served_and_not_scored(text: Chain) -> None:
    process = scion("pipeline", text.config, "test_pairs=null", "control=false", *FEW[2:])
    assert process.returncode == 0, process.stdout + process.stderr
    summary = text.summary()
    assert summary["method"] == "ramen"
    assert (summary["retrieval"], summary["merged_models"]) == ({}, 2)
    assert summary["serve"]["max_abs_diff"] <= 1e-5
