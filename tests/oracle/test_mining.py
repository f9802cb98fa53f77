"""Hard negatives of 2,000 pairs are those of `mine_hard_negatives` in sentence-transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from data_pipeline.pairs.text_pairs import Pairs
from tests.conftest import FAMILIES, SAMPLE, tiny_model
from trainer.embedder import Embedder, EmbedderSpec
from trainer.mining import blocks
from trainer.mining.candidates import arrange
from trainer.mining.choose import draw
from trainer.mining.config import MineConfig

ROWS = 2000


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Halves of sentences; every tenth anchor has a second positive."""
    lines = [row["anchor"].split() for row in pq.read_table(SAMPLE / "pairs.parquet").to_pylist()]
    lines = [line for line in lines if len(line) > 6]
    anchors = [" ".join(line[: len(line) // 2]) for line in lines[:ROWS]]
    anchors = [anchors[number - 1] if number % 10 == 1 else anchor for number, anchor in enumerate(anchors)]
    positives = [" ".join(line[len(line) // 2 :]) for line in lines[:ROWS]]
    return Pairs(ids=list(map(str, range(ROWS))), anchors=anchors, positives=positives, negatives=[[] for _ in anchors])


@pytest.fixture(scope="module")
def model(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = FAMILIES["wordpiece"]([*pairs.anchors, *pairs.positives])
    folder = str(tmp_path_factory.mktemp("embedder"))
    Embedder(tiny_model(tokenizer).bert, tokenizer, EmbedderSpec(max_length=32)).save(folder)
    return folder


@pytest.mark.parametrize(
    "rules",
    [
        {"first": 1, "last": 20, "relative_margin": None},
        {"first": 11, "last": 40, "relative_margin": 0.05},
        {"first": 6, "last": 30, "relative_margin": None, "margin": 0.02},
        {"first": 6, "last": 30, "relative_margin": None, "max_score": 0.9},
    ],
)
def test_negatives_are_those_of_sentence_transformers(pairs: Pairs, model: str, rules: dict[str, Any], tmp_path: Path) -> None:
    count = rules["last"] - rules["first"] + 1
    config = MineConfig(negatives=count, **rules)
    theirs = mine_hard_negatives(
        Dataset.from_dict({"anchor": pairs.anchors, "positive": pairs.positives}),
        SentenceTransformer(model),
        range_min=rules["first"] - 1,
        range_max=rules["last"],
        num_negatives=count,
        absolute_margin=config.margin,
        relative_margin=config.relative_margin,
        max_score=config.max_score,
        sampling_strategy="top",
        output_format="triplet",
        output_scores=True,
        verbose=False,
    )
    expected: dict[str, dict[str, float]] = {}
    for row in theirs:
        expected.setdefault(row["anchor"], {})[row["negative"]] = row["scores"][1]

    problem = arrange(pairs, None)
    embedder = Embedder.load(model)
    files = {}
    for name, side, texts in (("queries", "query", problem.queries), ("texts", "document", problem.texts)):
        files[name] = [blocks.encode({"texts": texts[part], "side": side, "uri": f"{tmp_path}/{name}{number}"}, embedder)
                       for number, part in enumerate(blocks.cut(len(texts)))]  # fmt: skip
    asked = sorted({(query, place) for query, places in enumerate(problem.positives) for place in places})
    job = {"queries": files["queries"][0], "texts": files["texts"], "count": problem.count,
           "k": config.last + max(map(len, problem.positives)),
           "rows": [row for row, _ in asked], "places": [place for _, place in asked], "uri": f"{tmp_path}/found"}  # fmt: skip
    found = blocks.read(blocks.search(job))
    scores_of = dict(zip(asked, found["asked"].tolist(), strict=True))
    differing = total = 0
    for query, text in enumerate(problem.queries):
        made = draw(
            found["index"][query],
            found["scores"][query],
            excluded=problem.excluded[query],
            positive_score=min(scores_of[query, place] for place in problem.positives[query]),
            keys=problem.keys,
            key=query,
            config=config,
        )
        ours = {problem.texts[place]: score for place, score in zip(made.places, made.scores, strict=True)}
        other = expected.get(text, {})
        differing += len(ours.keys() ^ other.keys())
        total += len(ours)
        both = ours.keys() & other.keys()
        assert np.allclose([ours[name] for name in both], [other[name] for name in both], atol=1e-5)
    assert total > 500
    assert differing <= total * 0.002  # scores within 1e-6 of each other may change places: theirs are fp32
