"""The runs that `scion compare` compares: methods, and runs with other settings."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_pipeline.errors import ArtifactError, ConfigError
from ray_jobs import compare
from ray_jobs.compared_runs import compared_configs, run_descriptions
from ray_jobs.config import load as configs
from trainer.transfer.methods import METHODS

RUNS = """
text: t
source_model: m
output: o
pretrain: {train: {learning_rate: 1.0e-4, schedule: cosine, steps: 40}, alpha: 0.5}
compare:
  runs:
    - {method: focus}
    - {name: fast, method: [focus, fvt], pretrain: {train: {learning_rate: 1.0e-3}}}
    - {name: warm, pretrain: {train: {batch_warmup: [{until: 4, rows: 8}]}}, transfer: {copy_shared: false}}
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    config_file = tmp_path / "config.yaml"
    config_file.write_text(RUNS)
    return str(config_file)


def test_a_run_is_the_configuration_with_other_values(path: str) -> None:
    configs_by_name = compared_configs(configs.load(path, ["method=fvt"], "compare"))
    assert list(configs_by_name) == ["focus", "fast", "warm"]
    assert [one.method for one in configs_by_name.values()] == ["focus", "focus+fvt", "fvt"]
    assert [one.pretrain.train.learning_rate for one in configs_by_name.values()] == [1e-4, 1e-3, 1e-4]
    assert {one.pretrain.train.schedule for one in configs_by_name.values()} == {"cosine"}
    assert {one.pretrain.alpha for one in configs_by_name.values()} == {0.5}
    assert configs_by_name["warm"].pretrain.train.sizes.size(0) == 8
    assert [one.transfer.copy_shared for one in configs_by_name.values()] == [True, True, False]


def test_methods_are_compared_besides(path: str) -> None:
    configs_by_name = compared_configs(configs.load(path, ["compare.methods=[random,mean]"], "compare"))
    assert list(configs_by_name) == ["random", "mean", "focus", "fast", "warm"]


def test_the_configuration_beside_a_run_reads_back_as_it_was(path: str, tmp_path: Path) -> None:
    first = configs.load(path, [], "compare")
    (tmp_path / "again.yaml").write_text(configs.to_yaml(first))
    assert compared_configs(configs.load(str(tmp_path / "again.yaml"), [], "compare")) == compared_configs(first)


def test_a_run_takes_the_method_that_suits_and_refers_to_what_holds_for_all(path: str) -> None:
    one = "compare.runs=[{method: auto}, {name: a, pretrain: {train: {learning_rate: '${pretrain.alpha}'}}}]"
    configs_by_name = compared_configs(configs.load(path, [one, "method=mean"], "compare"))
    assert [run.method for run in configs_by_name.values()] == ["focus", "mean"]
    assert configs_by_name["a"].pretrain.train.learning_rate == configs_by_name["a"].pretrain.alpha


def test_what_a_run_is(path: str) -> None:
    configs_by_name = run_descriptions(configs.load(path, ["method=fvt"], "compare"))
    assert configs_by_name["fast"].endswith("; pretrain.train.learning_rate=0.001")
    assert configs_by_name["warm"].startswith(f"fvt: {METHODS['fvt'].paper}")
    assert "transfer.copy_shared=False" in configs_by_name["warm"]
    assert configs_by_name["focus"] == METHODS["focus"].paper


WRONG = {
    "[{method: focs}]": r"compare\.runs\[0\]\.method: focs is not a method",
    "[{pretrain: {train: {lerning_rate: 1}}}]": r"compare\.runs\[0\]\.pretrain\.train\.lerning_rate: .*learning_rate",
    "[{pretrain: {train: {learning_rate: fast}}}]": r"compare\.runs\[0\]\.pretrain\.train\.learning_rate: expected number",
    "[{pretrain: {train: {learning_rate: .nan}}}]": r"compare\.runs\[0\]\.pretrain\.train\.learning_rate: .*finite",
    "[{pretrain: {train: {clip: -1.0}}}]": r"compare\.runs\[0\]\.pretrain\.train: .*clip",
    "[{shard: {length: 32}}]": r"compare\.runs\[0\]\.shard: there is no such key here",
    "[focus]": r"compare\.runs\[0\]: expected a section, got focus",
    "[{name: a/b}]": r"compare\.runs\[0\]\.name: 'a/b' is not the name of a folder",
    "[{method: fvt}, {method: fvt, transfer: {copy_shared: false}}]": r"compare\.runs\[1\]: two starts are called fvt",
    "[{pretrain: {train: {steps: 10}}}]": r"compare\.runs\[0\]\.pretrain\.train\.steps: curves .* but 10 is not 40",
    "[{pretrain: {heldout_rows: 10}}]": r"compare\.runs\[0\]\.pretrain\.heldout_rows: curves",
    "[{name: .., method: fvt}]": r"compare\.runs\[0\]\.name: '\.\.' is not the name of a folder",
    "[{name: random, method: focus}]": r"compare\.runs\[0\]\.name: random is the baseline",
    "[{method: random, pretrain: {alpha: 1.0}}]": r"compare\.runs\[0\]\.name: random is the baseline",
    "[{transfer: {plan: p}}]": r"compare\.runs\[0\]\.transfer\.plan: a comparison makes its own plans",
}


@pytest.mark.parametrize("runs", WRONG)
def test_a_run_that_cannot_be(path: str, runs: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[runs]):
        compared_configs(configs.load(path, [f"compare.runs={runs}", "method=mean"], "compare"))


def test_a_cell_that_was_begun_with_other_settings_is_refused_before_any_is_made(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused when its turn came, hours later."""
    run = []

    class Cell:
        def __init__(self, fault: Exception | None) -> None:
            self.fault = fault

        def finished(self) -> None:
            if self.fault is not None:
                raise self.fault

        def run(self, console: Any) -> None:
            run.append(self)

    cells = {("focus", 0): Cell(None), ("fast", 0): Cell(ArtifactError("begun with other settings."))}
    monkeypatch.setattr(compare, "stages", lambda config: cells)
    monkeypatch.setattr(compare.shard, "stage", lambda config: Cell(None))
    with pytest.raises(ArtifactError, match="begun with other settings"):
        compare.main(configs.load(path, [], "compare"), Console())
    assert not run
