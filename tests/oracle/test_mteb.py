"""mteb measures a Scion embedder on local tasks as `scion evaluate` does, and reads the files of an evaluation."""

import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gensim.models import KeyedVectors
from gensim.test.utils import datapath
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from mteb.models.models_protocols import EncoderProtocol
from mteb.results import TaskResult
from mteb.types import PromptType
from transformers import BertConfig, BertModel

import scion
from data_pipeline.errors import ConfigError
from data_pipeline.pairs import graded_pairs
from data_pipeline.pairs.graded_pairs import GradedPairs
from data_pipeline.pairs.text_pairs import Pairs
from ray_jobs import evaluate, mteb_results
from tests.conftest import FAMILIES, SAMPLE
from tests.unit.evaluation.test_ranked_pairs import Known
from trainer.evaluation import METRICS
from trainer.evaluation.similarity import similarity

# Halves of long paragraphs: vectors of texts that differ in one word tie in fp32.
PARAGRAPHS = [text.split() for text in pq.read_table(SAMPLE / "pairs.parquet")["anchor"].to_pylist()[::40] if len(text) > 120]
ANCHORS, POSITIVES = ([" ".join(words[half::2]) for words in PARAGRAPHS[:40]] for half in (0, 1))
GOLD = [float(number * 7 % 6) for number in range(40)]


def metadata(name: str, kind: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name, description="local", type=kind, main_score=main_score, eval_langs=["eng-Latn"], eval_splits=["test"],
        dataset={"path": "none", "revision": "none"}, modalities=["text"],
    )  # fmt: skip


class LocalSTS(AbsTaskSTS):
    metadata = metadata("LocalSTS", "STS", "cosine_spearman")

    def load_data(self, **_: Any) -> None:
        rows = {"sentence1": ANCHORS, "sentence2": POSITIVES, "score": GOLD}
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)})
        self.data_loaded = True


class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, **_: Any) -> None:
        self.dataset = {
            "default": {
                "test": {
                    "queries": datasets.Dataset.from_list([{"id": f"q{n}", "text": text} for n, text in enumerate(ANCHORS)]),
                    "corpus": datasets.Dataset.from_list(
                        [{"id": f"d{n}", "text": text, "title": ""} for n, text in enumerate(POSITIVES)]
                    ),
                    "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in range(len(ANCHORS))},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


@pytest.fixture(scope="module")
def folder(english: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An embedder with prompts, a smaller width and an exit."""
    torch.manual_seed(0)
    tokenizer = FAMILIES["wordpiece"](english)
    settings = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    spec = scion.EmbedderSpec(
        max_length=32, dimensions=(16, 8), layers=(1,), prompts={"query": "query: ", "document": "passage: "}
    )
    path = str(tmp_path_factory.mktemp("mteb") / "embedder")
    scion.Embedder(BertModel(settings), tokenizer, spec).save(path)
    return path


def measured(encoder: Any, task: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = mteb.evaluate(encoder, [task], cache=None, co2_tracker=False)
    return results.task_results[0].scores["test"][0]


def test_mteb_measures_an_embedder_as_scion_does(folder: str) -> None:
    """Also its prompts: they are those of queries and documents in retrieval, and none in STS."""
    encoder = scion.mteb_encoder(folder)
    assert isinstance(encoder, EncoderProtocol)
    theirs = measured(encoder, LocalRetrieval())
    pairs = Pairs(ids=POSITIVES, anchors=ANCHORS, positives=POSITIVES, negatives=[[]] * 40, langs=["en"] * 40)
    embedder = scion.Embedder.load(folder)
    ours = METRICS["ranking"].config()(embedder, pairs).scores["forward"]
    assert ours["ndcg_at_10"] == pytest.approx(theirs["ndcg_at_10"], abs=1e-4)
    assert ours["recall_at_10"] == pytest.approx(theirs["recall_at_10"], abs=1e-4)
    similar = measured(encoder, LocalSTS())
    graded = GradedPairs(lefts=ANCHORS, rights=POSITIVES, scores=GOLD, langs=["en"] * 40)
    expected = similarity(embedder, graded).scores
    assert expected["spearman"] == pytest.approx(similar["cosine_spearman"], abs=1e-4)
    assert expected["pearson"] == pytest.approx(similar["cosine_pearson"], abs=1e-4)


def test_width_depth_and_sides_reach_the_embedder(folder: str) -> None:
    encoder, embedder = scion.mteb_encoder(folder, dimensions=8, layers=1), scion.Embedder.load(folder)
    batches = [{"text": ANCHORS[:3]}, {"text": ANCHORS[3:5]}]
    for side in PromptType:
        expected = embedder.encode(ANCHORS[:5], 8, 1, prompt_name=side.value)
        assert np.allclose(encoder.encode(batches, prompt_type=side, batch_size=2), expected, atol=1e-6)
    plain = encoder.encode(batches)
    assert np.allclose(plain, embedder.encode(ANCHORS[:5], 8, 1), atol=1e-6)
    assert not np.allclose(plain, embedder.encode(ANCHORS[:5], 8, 1, prompt_name="query"), atol=1e-3)
    assert (encoder.mteb_model_meta.name, encoder.mteb_model_meta.embed_dim) == ("scion/embedder", 8)
    with pytest.raises(ConfigError, match="no 7 dimensions"):
        scion.mteb_encoder(folder, dimensions=7)


def test_mteb_reads_the_files_of_an_evaluation(tmp_path: Path) -> None:
    """Each task with all its scores, through `TaskResult` and through `ResultCache`."""
    pairs = Pairs(ids=POSITIVES, anchors=ANCHORS, positives=POSITIVES, negatives=[[]] * 40, langs=["el", "tr"] * 20)
    graded = GradedPairs(lefts=ANCHORS, rights=POSITIVES, scores=GOLD, langs=["und"] * 40)
    found = {name: METRICS[name].config()(Known(), pairs) for name in METRICS} | {"sts": similarity(Known(), graded)}
    metrics = evaluate.collect({"source_model": found, "transferred_trained": found})
    files = dict(mteb_results.files(metrics, {"source_model": "a", "transferred_trained": "b"}))
    assert len(files) == 2 * (3 + 1), "isotropy is no task of mteb; each model has a description"
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
        if path.endswith("model_meta.json"):
            assert ModelMeta.model_validate_json(content).name in ("scion/source_model", "scion/transferred_trained")
            continue
        result = TaskResult.from_disk(tmp_path / path, load_historic_data=False)
        assert result.mteb_version == mteb_results.VERSION
        of_subset = {one["hf_subset"]: one for one in result.scores["test"]}
        if result.task_name == "ScionSTS":
            assert of_subset["default"]["main_score"] == metrics["sts"]["source_model"]["spearman"]
        else:
            assert set(of_subset) == {f"{way}{lang}" for way in ("forward", "backward") for lang in ("", "-el", "-tr")}
        if result.task_name == "ScionRanking":
            assert of_subset["backward"]["main_score"] == metrics["ranking"]["source_model"]["backward"]["ndcg_at_10"]
    loaded = mteb.ResultCache(tmp_path).load_results(validate_and_filter=False)
    assert {model.model_name for model in loaded.model_results} == {"scion/source_model", "scion/transferred_trained"}
    assert all(len(model.task_results) == 3 for model in loaded.model_results)


@pytest.mark.parametrize(("file", "count"), [("wordsim353.tsv", 353), ("simlex999.txt", 999)])
def test_word_similarity_is_that_of_gensim(file: str, count: int, tmp_path: Path) -> None:
    """On WordSim-353 and SimLex-999, with a vector of fixed random numbers for each word."""
    lines = [line for line in Path(datapath(file)).read_text().splitlines() if not line.startswith("#")]
    table = [line.split("\t") for line in lines]
    words = [(left, right, float(score)) for left, right, score in table]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(f"{json.dumps(dict(zip(('word1', 'word2', 'score'), row, strict=True)))}\n" for row in words))
    graded = graded_pairs.load(str(path), str(tmp_path / "cache"), key="evaluate.sts")
    assert len(graded) == len(words) == count
    names = sorted({word for left, right, _ in words for word in (left, right)})
    vectors = KeyedVectors(6)
    vectors.add_vectors(names, Known().encode(names))
    plain = tmp_path / "words.tsv"
    plain.write_text("".join(f"{left}\t{right}\t{value}\n" for left, right, value in words))
    _, (theirs, _), _ = vectors.evaluate_word_pairs(str(plain), case_insensitive=False)
    assert similarity(Known(), graded).scores["spearman"] == pytest.approx(float(theirs), abs=1e-9)
