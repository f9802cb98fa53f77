"""A chain of methods: each places what those before it left, and every row remembers which did."""

import numpy as np
import pytest
import torch

from data_pipeline.errors import ArtifactError, ConfigError
from ray_jobs.config import load as configs
from tests.unit.test_transfer import CONFIGS, old_rows
from trainer.transfer import apply, chain, plan
from trainer.transfer.diff import diff
from trainer.transfer.methods import METHODS
from trainer.transfer.plan import Provenance, TransferPlan
from trainer.transfer.problem import Problem, assemble

CHAINS = ["aligned+focus+fvt", "aligned+script_moments", "focus+aligned+mean", "trans_tokenizers+fvt"]


def settings(method: str):  # type: ignore[no-untyped-def]
    return CONFIGS.get(method, METHODS[method].config())


def made_by(problem: Problem, name: str) -> TransferPlan:
    return assemble(problem, chain.place(problem, name, settings), name)


@pytest.mark.parametrize("name", CHAINS)
def test_each_method_places_what_those_before_it_left(problem: Problem, name: str) -> None:
    """Row by row, against every method by itself: the first of the chain that places a token makes its row."""
    whole, old = made_by(problem, name), old_rows(problem)
    new = apply.embeddings(whole, old)
    left = set(problem.new.tolist())
    for place, method in enumerate(chain.parts(name), 1):
        alone = made_by(problem, method)
        expected = apply.embeddings(alone, old)
        own = sorted(left & set(np.flatnonzero(alone.by == 1).tolist()))
        assert np.flatnonzero(whole.by == place).tolist() == own
        assert (whole.provenance[own] == alone.provenance[own]).all()
        assert torch.equal(new[own], expected[own])
        assert whole.placed_by_method()[method] == len(own)
        left -= set(own)
    assert (whole.provenance[sorted(left)] == Provenance.RANDOM).all()
    assert (whole.by[sorted(left)] == 0).all()
    assert sum(whole.fates().values()) == len(whole)


def test_a_chain_survives_the_disk_and_diff_names_its_methods(problem: Problem, tmp_path) -> None:
    whole, alone = made_by(problem, CHAINS[0]), made_by(problem, "aligned")
    whole.save(str(tmp_path))
    again = plan.load(str(tmp_path))
    assert (again.by == whole.by).all()
    assert again.placed_by_method() == whole.placed_by_method()
    assert set(diff(whole, again).rows) == set()
    found = diff(alone, whole)
    assert len(found.rows) == sum(whole.placed_by_method()[method] for method in ("focus", "fvt"))
    assert ("random", "composition by fvt") in found.moves


def test_a_plan_without_its_methods_is_refused(problem: Problem, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "_ARRAYS", tuple(name for name in plan._ARRAYS if name != "by"))
    made_by(problem, "aligned").save(str(tmp_path))
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="another version"):
        plan.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("foucs", "foucs is not a method"),
        ("aligned+aligned", "stands twice"),
        ("aligned+scratch", "cannot be part of a chain"),
        ("aligned+", r"aligned\+ is not a method"),
    ],
)
def test_a_chain_that_cannot_run_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
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
