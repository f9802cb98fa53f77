"""A user who has a text and a model, and no pairs: job by job, as the pipeline, and compared."""

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


def done(job: str, chain: Chain, *overrides: str) -> str:
    found = scion(job, chain.config, *FEW, *overrides)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_jobs_run_one_by_one_and_the_pipeline_keeps_them(text: Chain, greek) -> None:  # type: ignore[no-untyped-def]
    for job in ("shard", "transfer", "pretrain"):
        done(job, text)
    assert "bits per byte of held-out text" in done("evaluate", text)
    said = done("report", text)
    assert "bits per byte of held-out text" in said
    assert "retrieval" not in said
    summary = text.summary()
    assert (summary["method"], list(summary["bits_per_byte"]), summary["retrieval"]) == ("focus", ["transferred"], {})
    assert set(summary["seconds"]) == {"shard", "transfer", "pretrain", "evaluate"}

    said = done("embed", text)
    assert "are their own positives" in said
    assert Embedder.load(str(text.output / "embed")).encode(greek[:2]).shape[0] == 2

    said = done("pipeline", text, "control=false")
    assert said.count("kept") == 5  # the report too: it was made of the same
    assert not (text.output / "random").exists()
    # The random control comes later: only what is new is made, and evaluation and report take it in.
    said = done("pipeline", text)
    assert said.count("kept") == 3
    assert list(text.summary()["bits_per_byte"]) == ["random", "transferred"]


def test_a_comparison_needs_no_pairs(text: Chain) -> None:
    fast = "compare.runs=[{name: fast, method: fvt, pretrain: {train: {learning_rate: 1.0e-3}}}]"
    said = done("compare", text, "compare.methods=[fvt,random]", fast, "compare.seeds=[0]")
    assert "bits per byte" in said
    assert "accuracy@1" not in said
    rows = {row["name"]: row for row in json.loads((text.output / "compare.json").read_text())["rows"]}
    assert set(rows) == {"fvt", "random", "fast"}
    assert rows["fast"]["first"] == rows["fvt"]["first"]  # the same start, at another rate
    assert rows["fast"]["final"] != rows["fvt"]["final"]


@pytest.mark.slow
def test_runs_share_their_shards(text: Chain) -> None:
    shared = f"shards={text.folder}/shared"
    done("shard", text, shared)
    assert "kept" in done("transfer", text, shared, "method=fvt")
    assert "kept" in done("transfer", text, shared, "method=mean", f"output={text.folder}/other")
    assert not (text.output / "shards").exists()
    assert sorted(os.listdir(text.folder / "other")) == ["transfer"]


@pytest.mark.slow
def test_pairs_without_test_pairs_train_an_embedder_that_is_served_and_not_scored(text: Chain) -> None:
    found = scion("pipeline", text.config, "test_pairs=null", "control=false", *FEW[2:])
    assert found.returncode == 0, found.stdout + found.stderr
    summary = text.summary()
    assert summary["method"] == "ramen"
    assert (summary["retrieval"], summary["merged_models"]) == ({}, 2)
    assert summary["serve"]["max_abs_diff"] <= 1e-5
