"""`scion compare`, `verify` and `diff`, and the reuse of a plan, as a user runs them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from tests import ranks
from tests.integration.conftest import Chain, scion
from trainer.engine.train_run import TrainRun
from trainer.monitoring import run_log

pytestmark = pytest.mark.usefixtures("ray_session", "without_ray_train")


def test_compare_ranks_methods_and_keeps_what_is_finished(copy: Chain) -> None:
    settings = ["compare.methods=[random,[aligned,fvt]]", "compare.seeds=[0]", "pretrain.train.steps=4"]
    process = scion("compare", copy.config, *settings)
    assert process.returncode == 0, process.stdout + process.stderr
    comparison = json.loads((copy.output / "compare.json").read_text())
    assert {row["name"] for row in comparison["rows"]} == {"random", "aligned+fvt"}
    assert [row["final"]["mean"] for row in comparison["rows"]] == sorted(row["final"]["mean"] for row in comparison["rows"])
    assert list(comparison["rows"][0]["curve"]) == ["0", "1", "2", "3", "4"]
    assert all(0 <= row["after"]["mean"] <= 1 for row in comparison["rows"])
    assert "speed-up" in (copy.output / "compare.html").read_text()
    assert {path.name for path in (copy.output / "compare" / "aligned+fvt-0").iterdir()} == {"artifact.json"}
    assert not (copy.output / "config.yaml").exists()  # a pipeline in the same folder has its own evaluations
    again = scion("compare", copy.config, *settings)
    assert again.stdout.count("kept") == 3
    assert json.loads((copy.output / "compare.json").read_text()) == comparison


@pytest.mark.slow
def test_a_stopped_comparison_resumes_in_the_middle_of_a_cell(copy: Chain, monkeypatch) -> None:
    """The cell's training was once removed, although the message said that the same command resumes."""
    settings = ["compare.methods=[fvt]", "compare.seeds=[0]", "pretrain.train.steps=6"]
    stops, starts = iter([3, None]), list[int]()

    def fit(run: TrainRun, *, workers: int, **_: object) -> dict:
        try:
            return ranks.fit(run, workers=workers, stop=next(stops))
        finally:
            log = [entry for attempt in run_log.read(f"{run.uri}/log") for entry in attempt]
            starts.append([entry["next_step"] for entry in log if entry["kind"] == "start"][-1])

    monkeypatch.setattr("ray_jobs.training.fit", fit)
    first = scion("compare", copy.config, *settings)
    assert first.returncode == 75
    assert "the same command resumes" in first.stderr
    process = scion("compare", copy.config, *settings)
    assert process.returncode == 0, process.stderr
    assert starts[0] == 0
    assert 3 <= starts[1] < 6
    assert {path.name for path in (copy.output / "compare" / "fvt-0").iterdir()} == {"artifact.json"}


def test_compare_refuses_an_unknown_method(copy: Chain) -> None:
    process = scion("compare", copy.config, "compare.methods=[fvt,wexel]")
    assert process.returncode == 2
    assert "wexel is not a method" in process.stderr
    assert not copy.output.exists()


def test_verify_passes_a_transferred_model_and_names_a_row_that_was_changed(finished_chain: Chain, tmp_path) -> None:
    process = scion("verify", str(finished_chain.output / "transfer"))
    assert process.returncode == 0, process.stdout + process.stderr
    assert "logits" in process.stdout
    assert "failed" not in process.stdout
    shutil.copytree(finished_chain.output / "transfer", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    weights[name][200] += 0.25  # wrong for any plan
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    process = scion("verify", str(tmp_path / "model"))
    assert process.returncode == 1
    assert "row 200 " in process.stdout
    assert "checks failed" in process.stderr
    assert "Traceback" not in process.stderr


def test_only_the_shard_that_verify_names_is_rebuilt(finished_chain: Chain, copy: Chain) -> None:
    shards = copy.output / "shards"
    shutil.copytree(finished_chain.output / "shards", shards)
    process = scion("verify", str(shards))
    assert process.returncode == 0, process.stdout + process.stderr
    wrong, other = sorted(shards.glob("*/*/*.parquet"))[:2]
    good, before = wrong.read_bytes(), other.stat().st_mtime_ns
    wrong.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    process = scion("verify", str(shards))
    assert process.returncode == 1
    assert wrong.name in process.stdout
    assert "run `scion shard` again" in process.stderr
    wrong.unlink()
    assert scion("shard", copy.config).returncode == 0
    assert wrong.read_bytes() == good
    assert other.stat().st_mtime_ns == before
    assert scion("verify", str(shards)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage: scion verify FOLDER"),
        (("/no/such/folder",), "there is no such folder"),
        (("a", "b"), "Usage: scion verify FOLDER"),
    ],
)
def test_verify_says_what_it_needs(arguments: tuple[str, ...], message: str) -> None:
    process = scion("verify", *arguments)
    assert process.returncode == 2
    assert message in process.stderr


def test_diff_counts_the_rows_that_two_methods_make_differently(finished_chain: Chain) -> None:
    process = scion("diff", str(finished_chain.output / "transfer"), str(finished_chain.output / "random" / "transfer"))
    assert process.returncode == 0, process.stderr
    assert "aligned -> random" in process.stdout
    assert "exact_copy" not in process.stdout


@pytest.mark.slow
def test_a_plan_is_used_again_for_a_sibling_and_refused_for_another_tokenizer(finished_chain: Chain, copy: Chain) -> None:
    """The sibling is another checkpoint of the same model: no method runs, and its own matrix gives the rows."""
    plan_setting = f"transfer.plan={finished_chain.output / 'transfer'}"
    process = scion("transfer", copy.config, plan_setting)
    assert process.returncode == 0, process.stdout + process.stderr
    one, other = (AutoModelForMaskedLM.from_pretrained(c.output / "transfer").state_dict() for c in (finished_chain, copy))
    assert all((one[name] == other[name]).all() for name in one)
    process = scion("transfer", copy.config, plan_setting, "shard.tokenizer.vocab_size=1300", f"output={copy.folder}/other")
    assert process.returncode == 2
    assert "another new tokenizer" in process.stderr


@pytest.mark.parametrize("keep", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_factorised_embeddings_are_saved_both_ways_and_verified(copy: Chain, keep: str) -> None:
    settings = ["transfer.factorise.rank=12", f"transfer.factorise.keep={keep}"]
    process = scion("transfer", copy.config, *settings)
    assert process.returncode == 0, process.stdout + process.stderr
    model = AutoModelForMaskedLM.from_pretrained(copy.output / "transfer", trust_remote_code=keep == "true")
    rows = model.get_input_embeddings().weight
    assert rows.shape == (1280, 12 if keep == "true" else 32)
    assert int(torch.linalg.matrix_rank(rows.detach())) == 12
    process = scion("verify", str(copy.output / "transfer"))
    assert process.returncode == 0, process.stdout + process.stderr
