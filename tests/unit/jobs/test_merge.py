"""What `scion merge` merges, from which base, on which pairs, and how it says no."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2Model

from data_pipeline.artifacts.artifact import Draft
from data_pipeline.errors import ConfigError, DataError, ModelError
from data_pipeline.pairs import text_pairs
from ray_jobs import embed, merge, pretrain
from ray_jobs.config.load import load
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.stage import main_start
from tests.conftest import FAMILIES, tiny_model
from tests.integration.conftest import write_rows
from tests.ranks import on_ranks
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.engine import position_search
from trainer.merging import MERGES, probe
from trainer.merging.self_positioning import SelfPositioning
from trainer.models import latent_attention
from trainer.models.bidirectional import is_bidirectional, make_bidirectional


@pytest.fixture
def folder(tmp_path: Path, english: list[str], greek: list[str]) -> Path:
    """Three embedders of one base, and pairs."""
    tokenizer = FAMILIES["wordpiece"](english)
    for number, name in enumerate(("base", "a", "b", "c")):
        model, generator = tiny_model(tokenizer).bert, torch.Generator().manual_seed(number)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        Embedder(model, tokenizer, EmbedderSpec(max_length=24)).save(str(tmp_path / name))
    rows = [
        {
            "anchor": text,
            "positive": f"{text} {text}",
            "negatives": english[60 + number : 60 + number % 3 + number],
            "id": str(number),
        }
        for number, text in enumerate(english[:60])
    ]
    write_rows(tmp_path / "pairs.parquet", rows[:50])
    write_rows(tmp_path / "test_pairs.parquet", rows[50:])
    write_rows(tmp_path / "leaking.parquet", [row | {"id": f"test {row['id']}"} for row in rows[:3]])
    write_rows(tmp_path / "text.parquet", [{"text": text} for text in greek[:5]])
    return tmp_path


def alone(folder: Path, *overrides: str) -> ScionConfig:
    """A configuration that names the models and no text."""
    (folder / "c.yaml").write_text(f"output: {folder}/run\nmerge: {{models: [{folder}/a, {folder}/b]}}\n")
    return load(str(folder / "c.yaml"), list(overrides), "merge")


def chain(folder: Path, *overrides: str) -> ScionConfig:
    """A configuration of a whole chain."""
    keys = [f"text: {folder}/text.parquet", f"source_model: {folder}/base", f"output: {folder}/run"]
    (folder / "c.yaml").write_text("\n".join([*keys, f"pairs: {folder}/pairs.parquet"]))
    return load(str(folder / "c.yaml"), list(overrides))


def run(config: ScionConfig) -> tuple[Draft, str]:
    merge.spec(config)
    draft = Draft(uri=config.at("merge"))
    return draft, merge.fill(config, draft, Reporter(lambda what, done, total: None))


def test_the_default_has_the_identity_that_it_had_before_other_methods(folder: Path) -> None:
    config = chain(folder)
    spec, start = merge.spec(config), main_start(config)
    assert spec.config == {"merge": {"models": []}}
    assert spec.inputs == {"model 0": pretrain.spec(config, start).id, "model 1": embed.spec(config, start).id}
    assert merge.spec(alone(folder)).config == {"merge": {"models": [f"{folder}/a", f"{folder}/b"]}}
    assert set(merge.spec(alone(folder)).inputs) == {"model 0", "model 1"}


def test_the_pretrained_model_is_the_base_where_none_is_given(folder: Path) -> None:
    config = chain(folder, "merge.method=ties")
    before, after = (job.spec(config, main_start(config)).id for job in (pretrain, embed))
    assert merge.spec(config).inputs == {"model 0": after, "base": before}
    config = chain(folder, "merge.method=ties", f"merge.models=[{folder}/a]")
    assert merge.spec(config).inputs["base"] == before
    config = chain(folder, "merge.method=model_stock", f"merge.base={folder}/base")
    assert set(merge.spec(config).inputs) == {"model 0", "model 1", "base"}


def test_what_changes_the_result_changes_the_identity(folder: Path) -> None:
    given = f"pairs={folder}/pairs.parquet"
    configs = [
        alone(folder, given),
        alone(folder, given, "merge.method=slerp"),
        alone(folder, given, "merge.method=slerp", "merge.methods.slerp.position=0.1"),
        alone(folder, given, "merge.method=ties", f"merge.base={folder}/base"),
        alone(folder, given, "merge.method=ties", f"merge.base={folder}/c"),
        alone(folder, given, "merge.method=lm_cocktail"),
        alone(folder, given, "merge.method=lm_cocktail", "seed=1"),
        alone(folder, f"pairs={folder}/test_pairs.parquet", "merge.method=lm_cocktail"),
    ]
    assert len({merge.spec(config).id for config in configs}) == len(configs)
    assert merge.spec(alone(folder)).id == merge.spec(alone(folder, given, "seed=1")).id


@pytest.mark.parametrize("method", sorted(MERGES))
def test_each_method_writes_an_embedder_that_names_its_paper(
    method: str, folder: Path, english: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Ray: a search runs on one rank."""

    def search(given: position_search.Search, uri: str, **_: object) -> list[float]:
        return on_ranks(1, position_search.search_worker, replace(given, settings=SelfPositioning(steps=2, batch_size=8)))[
            "weights"
        ]

    monkeypatch.setattr(position_search, "search", search)
    monkeypatch.setattr(merge, "has_gpus", lambda: False)
    monkeypatch.setattr(merge, "resolve_workers", lambda workers: 1)
    base = [f"merge.base={folder}/base"] if MERGES[method].config().needs.base else []
    config = alone(folder, f"merge.method={method}", f"pairs={folder}/pairs.parquet", *base)
    draft, line = run(config)
    assert json.loads(json.dumps(draft.metrics))["papers"] == [MERGES[method].paper]
    assert draft.metrics["models"] == 2
    assert line.startswith(f"{draft.metrics['models']} embedders by {method}")
    vectors = Embedder.load(draft.uri).encode(english[:3])
    assert np.isfinite(vectors).all()
    assert not (Path(draft.uri) / "source").exists()


def test_the_search_reads_prompts_and_latents_as_the_merged_embedder_does(
    folder: Path, english: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folders are named from the working folder, which workers do not share."""
    tokenizer = FAMILIES["wordpiece"](english)
    spec = EmbedderSpec(max_length=24, pooling="latentattention", prompts={"query": f"{english[0]} "}, include_prompt=False)
    for name in ("base", "a", "b"):
        model = tiny_model(tokenizer).bert
        latent_attention.attach(model, str(folder), latents=6)
        Embedder(model, tokenizer, spec).save(str(folder / name))
    asked: list[position_search.Search] = []
    monkeypatch.setattr(position_search, "search", lambda given, uri, **_: (asked.append(given), (0.5, 0.5))[1])
    monkeypatch.setattr(merge, "has_gpus", lambda: False)
    monkeypatch.setattr(merge, "resolve_workers", lambda workers: 1)
    monkeypatch.chdir(folder)
    method = ["merge.method=self_positioning", "merge.base=base", "merge.models=[a,b]"]
    run(alone(folder, f"pairs={folder}/pairs.parquet", *method))
    (given,) = asked
    assert (given.task.model_uri, *given.models) == tuple(str(folder / name) for name in ("base", "a", "b"))
    assert len(given.task.module().model.latent_pooling.latents) == 6
    (skip,) = set(given.pairs["anchor_skip"].to_pylist())
    assert skip > 1
    assert not any(given.pairs["positive_skip"].to_pylist())


def test_the_search_drops_the_causal_mask_where_the_models_have_none(
    folder: Path, english: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = FAMILIES["wordpiece"](english)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    for name in ("base", "a", "b"):
        model = GPT2Model(GPT2Config(**sizes, architectures=["GPT2LMHeadModel"]))
        model = model if name == "base" else make_bidirectional(model)
        Embedder(model, tokenizer, EmbedderSpec(max_length=24)).save(str(folder / name))
    asked: list[position_search.Search] = []
    monkeypatch.setattr(position_search, "search", lambda given, uri, **_: (asked.append(given), (0.5, 0.5))[1])
    monkeypatch.setattr(merge, "has_gpus", lambda: False)
    monkeypatch.setattr(merge, "resolve_workers", lambda workers: 1)
    run(alone(folder, f"pairs={folder}/pairs.parquet", "merge.method=self_positioning", f"merge.base={folder}/base"))
    assert is_bidirectional(asked[0].task.module().model.config)


def test_lm_cocktail_weighs_by_the_loss_of_its_package(folder: Path) -> None:
    """The loss by hand: cross-entropy of cosines / 0.05 among all documents, but for those with the texts of the pair."""
    config = alone(folder, "merge.method=lm_cocktail", f"pairs={folder}/pairs.parquet")
    config_few = alone(
        folder, "merge.method=lm_cocktail", f"pairs={folder}/pairs.parquet", "merge.methods.lm_cocktail.probe_pairs=7"
    )
    pairs = text_pairs.load(str(folder / "pairs.parquet"), str(folder / "cache"), key="pairs")
    for one, few in ((config, pairs), (config_few, probe.sample(pairs, 7, 0))):
        documents = [*few.positives, *(text for texts in few.negatives for text in texts)]
        losses = []
        for name in ("a", "b"):
            embedder = Embedder.load(str(folder / name))
            cosines = embedder.encode(few.anchors).astype(np.float64) @ embedder.encode(documents).astype(np.float64).T / 0.05
            for row in range(len(few)):
                for place, text in enumerate(documents):
                    if place != row and text in (few.anchors[row], few.positives[row]):
                        cosines[row, place] = -np.inf
            losses.append(np.mean(np.log(np.exp(cosines).sum(axis=1)) - np.diag(cosines)))
        assert abs(losses[0] - losses[1]) > 0.001
        expected = np.exp(-np.array(losses) / 5.0) / np.exp(-np.array(losses) / 5.0).sum()
        assert np.abs(np.array(run(one)[0].metrics["weights"]) - expected).max() < 1e-6


def test_the_sample_depends_on_ids_and_seed_only(folder: Path) -> None:
    pairs = text_pairs.load(str(folder / "pairs.parquet"), str(folder / "cache"), key="pairs")
    some = probe.sample(pairs, 20, 3)
    assert some == probe.sample(pairs, 20, 3)
    assert some.ids != probe.sample(pairs, 20, 4).ids
    assert set(probe.sample(pairs, 10, 3).ids) < set(some.ids)
    assert [pairs.anchors[pairs.ids.index(name)] for name in some.ids] == some.anchors
    assert probe.sample(pairs, 1000, 3) == pairs


def test_training_pairs_that_hold_test_sentences_are_refused(folder: Path) -> None:
    given = [f"pairs={folder}/pairs.parquet", f"test_pairs={folder}/leaking.parquet"]
    with pytest.raises(DataError, match="a sentence of test_pairs= stands in"):
        run(alone(folder, "merge.method=greedy_soup", *given))


REFUSED = {
    ("merge.method=ties",): (ConfigError, "ties needs the model from which the others were trained"),
    ("merge.base={folder}/base",): (ConfigError, "uniform needs no base"),
    ("merge.method=ties", "merge.base={folder}/a"): (ConfigError, "is merged, too"),
    ("merge.method=ties", "merge.base={folder}/nothing"): (ModelError, "merge.base=.*no such folder"),
    ("merge.method=greedy_soup",): (ConfigError, "greedy_soup measures the models on training pairs"),
    ("merge.method=slerp", "merge.models=[{folder}/a,{folder}/b,{folder}/c]"): (ModelError, "slerp merges 2 models, not 3"),
    ("merge.models=[{folder}/a,{folder}/a]",): (ConfigError, "a model is named twice"),
    ("merge.models=[{folder}/a]",): (ModelError, "uniform merges 2 or more models, not 1"),
    ("merge.method=model_stock", "merge.base={folder}/base", "merge.models=[{folder}/a]"): (
        ModelError,
        "model_stock merges 2 or more models beside their base, not 1",
    ),
}


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_what_cannot_be_merged_is_refused(given: tuple[str, ...], folder: Path) -> None:
    kind, message = REFUSED[given]
    with pytest.raises(kind, match=message):
        run(alone(folder, *(written.format(folder=folder) for written in given)))
