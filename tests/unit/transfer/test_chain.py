"""A chain of methods: each places the tokens that the methods before it left, and every row records its method."""

import numpy as np
import pytest
import torch

from data_pipeline.errors import ArtifactError, ConfigError
from ray_jobs.config import load as configs
from tests.unit.transfer.test_methods import CONFIGS, old_rows
from trainer.transfer import apply, chain, plan
from trainer.transfer.diff import diff
from trainer.transfer.methods import METHODS
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Problem, assemble

CHAINS = ["aligned+focus+fvt", "aligned+script_moments", "focus+aligned+mean", "trans_tokenizers+fvt"]


def settings(method: str):  # type: ignore[no-untyped-def]
    return CONFIGS.get(method, METHODS[method].config())


def plan_of(problem: Problem, name: str) -> TransferPlan:
    return assemble(problem, chain.place(problem, name, settings), name)


@pytest.mark.parametrize("name", CHAINS)
def test_each_method_places_the_tokens_that_the_ones_before_it_left(problem: Problem, name: str) -> None:
    """Compares row by row with every method alone: the first method of the chain that places a token makes its row."""
    whole, old = plan_of(problem, name), old_rows(problem)
    new = apply.embeddings(whole, old)
    left = set(problem.new.tolist())
    for number, method in enumerate(chain.parts(name), 1):
        alone = plan_of(problem, method)
        expected = apply.embeddings(alone, old)
        placed = sorted(left & set(np.flatnonzero(alone.by == 1).tolist()))
        assert np.flatnonzero(whole.by == number).tolist() == placed
        assert (whole.provenance[placed] == alone.provenance[placed]).all()
        assert torch.equal(new[placed], expected[placed])
        assert whole.placed_by_method()[method] == len(placed)
        left -= set(placed)
    assert (whole.provenance[sorted(left)] == Provenance.RANDOM).all()
    assert (whole.by[sorted(left)] == 0).all()
    assert sum(whole.fates().values()) == len(whole)


def test_a_chain_is_saved_and_loaded_and_diff_names_its_methods(problem: Problem, tmp_path) -> None:
    whole, alone = plan_of(problem, CHAINS[0]), plan_of(problem, "aligned")
    whole.save(str(tmp_path))
    loaded = TransferPlan.load(str(tmp_path))
    assert (loaded.by == whole.by).all()
    assert loaded.placed_by_method() == whole.placed_by_method()
    assert set(diff(whole, loaded).rows) == set()
    difference = diff(alone, whole)
    assert len(difference.rows) == sum(whole.placed_by_method()[method] for method in ("focus", "fvt"))
    assert ("random", "composition by fvt") in difference.moves


def test_a_plan_without_the_methods_of_its_rows_is_rejected(problem: Problem, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "ARRAYS", tuple(name for name in plan.ARRAYS if name != "by"))
    plan_of(problem, "aligned").save(str(tmp_path))
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="another version"):
        TransferPlan.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foucs", "foucs is not a method"),
        ("aligned+aligned", "occurs twice"),
        ("aligned+scratch", "cannot be part of a chain"),
        ("aligned+", r"aligned\+ is not a method"),
    ],
)
def test_a_chain_that_cannot_run_is_rejected(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chain.check(name, "method")


def test_a_chain_is_written_as_a_list_or_with_plus_signs(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text("text: t\npairs: p\ntest_pairs: q\nsource_model: m\noutput: o\nmethod: [aligned, fvt]\n")
    path = str(tmp_path / "a.yaml")
    assert configs.load(path, []).method == "aligned+fvt"
    assert configs.load(path, ["method=[aligned,focus,fvt]"]).method == "aligned+focus+fvt"
    assert configs.load(path, ["method=aligned+mean"]).method == "aligned+mean"
    given = configs.load(path, ["compare.methods=[random,[aligned,fvt],focus+mean]"])
    assert given.compare.methods == ("random", "aligned+fvt", "focus+mean")
    with pytest.raises(ConfigError, match=r"compare\.methods.*nothing is not a method"):
        configs.load(path, ["compare.methods=[[aligned,nothing]]"])
