"""A training that resumes with other settings on real ranks: more steps, another micro-batch or ZeRO stage."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import Stopped
from tests.integration.conftest import Chain, scion
from tests.integration.test_engine import ordered_rows
from tests.ranks import fit, train_run
from trainer.config.train import TrainConfig
from trainer.engine.train_run import TrainRun
from trainer.ledger import audit, ledger
from trainer.monitoring import run_log
from trainer.tasks.language_modeling import LanguageModelTask

BATCH = 6
ODD = " [1] (a+b)"
"""The end of a run folder's name, with characters that are special in globs and regular expressions."""


def run(shards: Any, source_folder: str, folder: str, **settings: Any) -> TrainRun:
    folder += ODD
    config = TrainConfig(batch_size=BATCH, **{"warmup_steps": 2, "checkpoint_steps": 3, "learning_rate": 1e-2} | settings)
    task = LanguageModelTask(model_uri=source_folder, length=32, probability=0.15, seed=1)
    return train_run(task, config, ordered_rows(shards, BATCH, config.micro_batch), folder)


def fit_run(one: TrainRun, stop: int | None = None) -> dict[str, Any]:
    return fit(one, workers=2, stop=stop)


def weights(one: TrainRun) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(one.export_uri, "model.safetensors"))


def clean(one: TrainRun) -> bool:
    uri = f"{one.uri}/{ledger.FOLDER}"
    return all(finding.is_ok for finding in audit.audit(uri, one.rows, audit.read_history(uri)))


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_finished_run_that_grows_in_its_stable_part_is_the_longer_run_to_the_last_bit(
    shards: Any,
    source_folder: str,
    tmp_path: Path,
    stage: int,
) -> None:
    settings = {"schedule": "constant", "zero_stage": stage}
    whole = run(shards, source_folder, str(tmp_path / "whole"), steps=9, **settings)
    expected = fit_run(whole)
    fit_run(run(shards, source_folder, str(tmp_path / "grown"), steps=5, **settings))
    grown = run(shards, source_folder, str(tmp_path / "grown"), steps=9, **settings)
    result = fit_run(grown)
    assert [entry["loss"] for entry in result["history"]] == [entry["loss"] for entry in expected["history"]]
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(grown)[name]), name
    assert result["changes"] == [{"step": 5, "settings": {"steps": [5, 9]}, "from_the_start": True}]
    assert clean(grown)


def test_a_run_extended_before_its_decay_equals_the_longer_run_and_one_extended_after_does_not(
    shards: Any,
    source_folder: str,
    tmp_path: Path,
) -> None:
    """Warmup-stable-decay: stopped before step 6, where the decay of 8 steps begins; after it the rates differ."""
    settings = {"schedule": "wsd", "decay_steps": 2}
    whole = run(shards, source_folder, str(tmp_path / "whole"), steps=10, **settings)
    fit_run(whole)
    with pytest.raises(Stopped):
        fit_run(run(shards, source_folder, str(tmp_path / "grown"), steps=8, **settings), stop=3)
    grown = run(shards, source_folder, str(tmp_path / "grown"), steps=10, **settings)
    change = fit_run(grown)["changes"][0]
    assert change["from_the_start"]
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(grown)[name]), name
    again = run(shards, source_folder, str(tmp_path / "grown"), steps=12, **settings)
    result = fit_run(again)
    assert result["changes"] == [change, {"step": 10, "settings": {"steps": [10, 12]}, "from_the_start": False}]
    assert [entry["rate"] for entry in result["history"]][8:] == [0.01, 0.005, 0.01, 0.005]
    assert clean(again)


def test_another_micro_batch_has_the_same_rows_and_the_same_losses_but_for_rounding(
    shards: Any,
    source_folder: str,
    tmp_path: Path,
) -> None:
    whole = run(shards, source_folder, str(tmp_path / "whole"), steps=9, micro_batch=3)
    expected = [entry["loss"] for entry in fit_run(whole)["history"]]
    with pytest.raises(Stopped):
        fit_run(run(shards, source_folder, str(tmp_path / "changed"), steps=9, micro_batch=3), stop=3)
    changed = run(
        shards,
        source_folder,
        str(tmp_path / "changed"),
        steps=9,
        micro_batch=1,
        evaluate_steps=2,
        spike=0.0,
        activation_checkpointing=True,
    )
    result = fit_run(changed)
    losses = [entry["loss"] for entry in result["history"]]
    assert np.abs(np.array(losses) - expected).max() < 1e-5
    assert result["changes"][0]["settings"] == {"micro_batch": [3, 1], "spike": [10.0, 0.0]}
    assert clean(changed)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_another_zero_stage_has_the_same_rows_and_the_same_losses_but_for_rounding(
    shards: Any, source_folder: str, tmp_path: Path, before: int, after: int
) -> None:
    """A user does this when the optimizer's state does not fit."""
    expected = [entry["loss"] for entry in fit_run(run(shards, source_folder, str(tmp_path / "w"), steps=9))["history"]]
    with pytest.raises(Stopped):
        fit_run(run(shards, source_folder, str(tmp_path / "changed"), steps=9, zero_stage=before), stop=3)
    more = {"offload": "all"} if after == 3 else {}
    changed = run(shards, source_folder, str(tmp_path / "changed"), steps=9, zero_stage=after, **more)
    result = fit_run(changed)
    # Other stages add in another order: 3e-6 has been seen.
    np.testing.assert_allclose([entry["loss"] for entry in result["history"]], expected, rtol=3e-5)
    assert result["changes"][0]["settings"] == {"zero_stage": [before, after]}
    assert clean(changed)


@pytest.mark.usefixtures("without_ray_train")
def test_scion_pretrain_resumes_with_more_steps(finished_chain: Chain, copy: Chain) -> None:
    """Four steps with the state kept; then 6 without; then 8, which is refused with the fix."""
    for part in ("shards", "transfer"):
        shutil.copytree(finished_chain.output / part, copy.output / part)
    folder, steps = copy.output / "pretrain", "pretrain.train.steps="
    first = scion("pretrain", copy.config, f"{steps}4", "pretrain.train.keep_state=true")
    assert first.returncode == 0, first.stderr
    assert {path.name.partition("-")[0] for path in (folder / "checkpoints").iterdir()} == {"step_000000004", "task.json"}
    taken_out = scion("export", str(folder))
    assert f"model after 4 steps: {folder}-step-4" in taken_out.stdout
    assert (Path(f"{folder}-step-4") / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    shorter = scion("pretrain", copy.config, f"{steps}3")
    assert shorter.returncode == 2
    assert "pretrain.train.steps (4 -> 3)" in shorter.stderr
    second = scion("pretrain", copy.config, f"{steps}4", "pretrain.train.micro_batch=2", "pretrain.train.evaluate_steps=1")
    assert "kept" in second.stdout
    grown = scion("pretrain", copy.config, f"{steps}6")
    assert grown.returncode == 0, grown.stderr
    record = copy.artifact("pretrain")
    # All four steps belong to the warm-up, whose rates do not depend on the number of steps.
    assert record["config"]["pretrain"]["train"]["steps"] == 6
    assert record["metrics"]["changes"] == [{"step": 4, "settings": {"steps": [4, 6]}, "from_the_start": True}]
    assert set(record["metrics"]["bits_per_byte"]) == {"0", "4", "6"}
    starts = [entry["next_step"] for attempt in run_log.read(f"{folder}/log") for entry in attempt if entry["kind"] == "start"]
    assert starts == [0, 4]
    checked = scion("verify", str(folder))
    assert checked.returncode == 0
    assert "of 6 steps, each slot of the order once" in checked.stdout
    assert not (folder / "checkpoints").exists()
    more = scion("pretrain", copy.config, f"{steps}8")
    assert more.returncode == 2
    assert "kept no state to extend it from" in more.stderr
    assert "pretrain.train.keep_state=true" in more.stderr
    assert json.loads((folder / "artifact.json").read_text()) == record
