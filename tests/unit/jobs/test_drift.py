"""`scion drift`: an embedder whose queries search the indexes of earlier versions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from data_pipeline.artifacts.artifact import Draft
from data_pipeline.errors import ConfigError
from ray_jobs import drift, preflight
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from tests.conftest import FAMILIES, tiny_model
from tests.integration.conftest import write_rows
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.evaluation.retrieval import metrics, ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, english: list[str]) -> Path:
    """Two versions of an embedder, the second with moved outputs, and a third of another width; pairs."""
    folder = tmp_path_factory.mktemp("drift")
    tokenizer = FAMILIES["wordpiece"](english)
    model = tiny_model(tokenizer).bert
    width = model.config.hidden_size
    spec = EmbedderSpec(max_length=24, dimensions=(8,), layers=(1,))
    Embedder(model, tokenizer, spec).save(str(folder / "old"))
    with torch.no_grad():  # the last normalisation turns and moves all states
        norm = model.encoder.layer[-1].output.LayerNorm
        norm.bias += torch.randn(width, generator=torch.Generator().manual_seed(0))
    Embedder(model, tokenizer, spec).save(str(folder / "new"))
    rows = [{"anchor": f"{text} .", "positive": text, "id": str(number)} for number, text in enumerate(english[:80])]
    write_rows(folder / "pairs.parquet", rows[:40])
    write_rows(folder / "test_pairs.parquet", rows[40:])
    return folder


def config(folder: Path, *overrides: str) -> ScionConfig:
    (folder / "c.yaml").write_text(
        f"output: {folder}/run\npairs: {folder}/pairs.parquet\ntest_pairs: {folder}/test_pairs.parquet\n"
        f"drift: {{versions: {{v1: {folder}/old, v2: {folder}/new}}}}\n"
    )
    return load(str(folder / "c.yaml"), list(overrides), "drift")


def run(given: ScionConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Draft, str]:
    """Without Ray: a task runs where it is called."""

    class Here:
        def options(self, **_: object) -> "Here":
            return self

        remote = staticmethod(drift.encode._function)

    monkeypatch.setattr(drift, "encode", Here())
    monkeypatch.setattr(drift, "has_gpus", lambda: False)
    monkeypatch.setattr(ray, "get", lambda value: value)
    draft = Draft(uri=given.at("drift"))
    return draft, drift.fill(given, draft, Reporter(lambda what, done, total: None))


def test_queries_of_the_new_version_search_the_old_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch, english: list[str]
) -> None:
    draft, line = run(config(folder), monkeypatch)
    rows = {(row["index"], row["queries"]): row for row in draft.metrics["rows"]}
    stale, moved = (rows["v1", "v2"][name]["mrr_at_10"] for name in ("stale", "compensated"))
    assert moved > stale + 0.05
    assert line.startswith(f"MRR@10 of v2 on the index of v1: {stale:.3f} as it is, {moved:.3f} with moved queries, ")
    served, old = Embedder.load(draft.uri), Embedder.load(str(folder / "old"))
    queries = [f"{text} ." for text in english[40:60]]
    before = old.encode(queries)
    assert (served.encode(queries, index="v1") * before).sum() > (served.encode(queries) * before).sum()
    assert np.allclose(served.encode(queries, index="v2"), served.encode(queries), atol=1e-6)
    card = Path(draft.uri, "README.md").read_text()
    assert 'index="v1"' in card
    assert "this model (`v2`), or stay in an index of `v1`" in card
    for width, layers in ((8, None), (None, 1), (8, 1)):
        vectors = served.encode(queries, dimensions=width, layers=layers, index="v1")
        assert vectors.shape[1] == (width or served.width)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_texts_are_encoded_with_the_prompts_of_their_sides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, english: list[str]
) -> None:
    """The move is fitted on queries as they will be asked."""
    sides = {"query": "Closes all ", "document": "Apply: "}
    for name in ("old", "new"):
        plain = Embedder.load(str(folder / name))
        plain.spec = replace(plain.spec, prompts=sides)
        plain.save(str(folder / f"{name}_prompted"))
    versions = f"drift.versions={{v1: {folder}/old_prompted, v2: {folder}/new_prompted}}"
    draft, _ = run(config(folder, versions), monkeypatch)
    old, new = (Embedder.load(str(folder / f"{name}_prompted")) for name in ("old", "new"))
    anchors, positives = [f"{text} ." for text in english[:80]], english[40:80]
    before, after = (one.encode(anchors, prompt_name="query") for one in (old, new))
    shift = Embedder.load(draft.uri).compensations["v1", new.width, None].shift
    assert shift == pytest.approx((before - after)[:40].mean(axis=0), abs=1e-5)
    documents = old.encode(positives, prompt_name="document")
    stale = metrics(ranks(after[40:], documents, anchors[40:], positives))
    found = next(row for row in draft.metrics["rows"] if (row["index"], row["queries"]) == ("v1", "v2"))
    assert found["stale"]["mrr_at_10"] == pytest.approx(stale.mrr_at_10)


def test_a_version_that_it_does_not_know_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, _ = run(config(folder), monkeypatch)
    with pytest.raises(ConfigError, match=r"cannot search an index of 'v0'. Ask for one of: v1"):
        Embedder.load(draft.uri).encode(["a"], index="v0")
    with pytest.raises(ConfigError, match=r"cannot search an index of 'v1'. Make it with `scion drift`"):
        Embedder.load(str(folder / "new")).encode(["a"], index="v1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["drift.versions={v1: nowhere/at/all}"], "drift.versions"),
        (["pairs=null"], r"the drift is measured on the anchors of training pairs. Give pairs="),
        (["drift.kind=middle"], "drift.kind"),
        (["drift.queries=0"], "drift.queries"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preflight.check(config(folder, *overrides), "drift")


def test_a_configuration_without_versions_says_so(folder: Path) -> None:
    path = folder / "none.yaml"
    path.write_text(f"output: {folder}/run\npairs: {folder}/pairs.parquet\n")
    with pytest.raises(ConfigError, match=r"drift.versions.*Name embedders"):
        preflight.check(load(str(path), [], "drift"), "drift")
