"""Retrieval while an embedder trains is the same for any number of ranks, and agrees with sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.evaluation import TranslationEvaluator

from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.shards import tokenize_pairs
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards.build import load_tokenizer
from tests.ranks import on_ranks
from trainer.config.train import TrainConfig
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.evaluation import retrieval
from trainer.tasks import heldout_pairs
from trainer.tasks.contrastive import ContrastiveTask

MOST, TRAINED = 40, 6


class Run:
    """Two steps of six pairs, scored before and after on 40 others; rank 0 exports the embedder."""

    def __init__(self, model: str, folder: str, stage: int, rows: list[dict[str, str]]) -> None:
        self.task = ContrastiveTask(model_uri=model, spec=EmbedderSpec(max_length=24))
        self.folder, self.rows = folder, rows
        self.config = TrainConfig(steps=2, batch_size=TRAINED, warmup_steps=0, learning_rate=1e-2, zero_stage=stage)

    @property
    def testing(self) -> Pairs:
        rows = self.rows[TRAINED:]
        return Pairs(
            ids=[str(number) for number in range(len(rows))],
            anchors=[row["anchor"] for row in rows],
            positives=[row["positive"] for row in rows],
            negatives=[[] for _ in rows],
            langs=["el" if number % 2 else "en" for number in range(len(rows))],
        )

    def batch(self, rank: int, world: int) -> PairBatch:
        tokenizer = load_tokenizer(self.task.model_uri)
        rows = self.rows[rank:TRAINED:world]
        anchors, positives = ([row[side] for row in rows] for side in ("anchor", "positive"))
        pairs = Pairs(ids=list(map(str, rows)), anchors=anchors, positives=positives, negatives=[[] for _ in rows])
        table = tokenize_pairs(pairs, tokenizer, 24)
        table = table.append_column("stream", pa.array([0] * len(rows))).append_column("weight", pa.array([1.0] * len(rows)))
        return PairBatch(table, int(tokenizer.pad_token_id))


def train_and_score(run: Run) -> list[dict[str, Any]]:
    import torch.distributed as dist

    from trainer.deepspeed_bridge import partitioned
    from trainer.deepspeed_bridge.trained_weights import trained_weights
    from trainer.engine import setup
    from trainer.engine.step import optimizer_step, set_rates

    rank, world = dist.get_rank(), dist.get_world_size()
    engine = setup.make_engine(partitioned.load_module(run.task, run.config), run.config, TRAINED // world, 1)
    engine.train()
    heldout = heldout_pairs.choose(run.testing, MOST, run.task)
    scores = [heldout.score(engine, rank, world)]
    for step in range(2):
        set_rates(engine, run.config, step)
        optimizer_step(engine, [run.batch(rank, world)], 1, 0, False)
    scores.append(heldout.score(engine, rank, world))
    assert engine.module.training
    everywhere: list[Any] = [None] * world
    dist.all_gather_object(everywhere, scores)
    assert all(others == scores for others in everywhere)
    with trained_weights(engine, run.config, run.folder) as weights:
        if rank == 0:
            run.task.export(weights, f"{run.folder}/embedder")
    return scores


@pytest.mark.parametrize(("world", "stage"), [(1, 1), (3, 3), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_retrieval_in_training_is_that_of_the_embedder_that_is_exported(
    source_folder: str, tmp_path: Path, pairs: list[dict[str, str]], world: int, stage: int
) -> None:
    distinct = list({row["positive"].lower(): row for row in {row["anchor"].lower(): row for row in pairs}.values()}.values())
    run = Run(source_folder, str(tmp_path), stage, distinct[: TRAINED + 130])
    before, after = on_ranks(world, train_and_score, run)
    assert (before["pairs"], set(before["by_language"])) == (MOST, {"el", "en"})
    subset = heldout_pairs.choose(run.testing, MOST, run.task).pairs
    for scores, folder in ((before, source_folder), (after, f"{tmp_path}/embedder")):
        embedder = Embedder.load(folder)
        embedder.spec = run.task.spec
        measured = retrieval.Retrieval()(embedder, subset)
        ways, by_language = measured.scores, measured.by_language
        assert json.loads(json.dumps([ways, by_language])) == [scores["retrieval"], scores["by_language"]]
    theirs = TranslationEvaluator(subset.anchors, subset.positives, write_csv=False)(
        SentenceTransformer(f"{tmp_path}/embedder", device="cpu")
    )
    peer_scores = {name.rpartition("_")[2] if "mean" in name else name: value for name, value in theirs.items()}
    assert after["retrieval"]["forward"]["accuracy_at_1"] == pytest.approx(peer_scores["src2trg_accuracy"])
    assert after["retrieval"]["backward"]["accuracy_at_1"] == pytest.approx(peer_scores["trg2src_accuracy"])
    assert before != after
    assert torch.is_grad_enabled()
