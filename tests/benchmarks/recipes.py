"""What each recipe for embedders changes, measured on a small model: with and without, three seeds, mean and deviation.

    python -m tests.benchmarks.recipes [EXPERIMENT ...] [--seeds 0 1 2] [--results runs/recipes.jsonl] [--steps 80]

The model is the demo's control after pretraining (`make demo` writes runs/demo/random/pretrain: MiniLM with random embeddings
for a vocabulary of Greek), which finds one text in ten before it is trained: the demo's own model finds nearly all, and would
show no differences. It learns from short English and Greek pairs of the sample by the engine's own step, in one process.
Scores are MRR@10 from English to Greek among 1,000 pairs of files that no training has read. Each measurement is a line of
the results file and is not made again. The last line is one JSON object: mean, deviation and number of seeds by experiment,
variant and measure.

nested      Matryoshka and 2D Matryoshka against vectors of a plain training that are cut, or taken behind half of the layers
batch       batches of 64, 512 and 4,096 pairs; as many pairs in all, rates that grow with the root of the batch
negatives   without hard negatives, with five, and with focal and progressive weights and mixed negatives
distil      students of three layers that learn from labels, from a cross-encoder's scores, and from both; the teacher itself
merge       models of two tasks: uniform, the best of 21 points between them on the test set, and Self Positioning
drift       an index of the model before it learnt a second task: stale, compensated, distilled, both, and a new index
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from data_pipeline import keyed_random
from data_pipeline.pairs.batch import PairBatch
from data_pipeline.pairs.shards import tokenize_pairs, with_vectors
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.shards.build import load_tokenizer
from trainer import query_drift
from trainer.config.train import TrainConfig
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.engine.passes import PASSES
from trainer.engine.setup import make_engine
from trainer.engine.step import optimizer_step, set_rates
from trainer.evaluation import retrieval
from trainer.mining.nearest import nearest
from trainer.models.exits import first_layers
from trainer.objectives.combined import Combined
from trainer.objectives.embedding_distillation import EmbeddingDistillation
from trainer.objectives.info_nce import InfoNce
from trainer.objectives.nested import Nested, NestedConfig
from trainer.objectives.objective import Objective
from trainer.objectives.score_distillation import Dse, MarginMse, ScoreKl
from trainer.tasks.contrastive import ContrastiveTask
from trainer.transfer.search.exact import normalise_rows

MODEL = "runs/demo/random/pretrain"
LENGTH, WORDS, TEST = 48, 12, 1000
WIDTH, HALF = 64, 3
"""The narrow width, and half of the layers."""
BATCH, RATE = 64, 2e-4
ONE_WAY = InfoNce(directions=("query_to_doc",))


def sample(tasks: Sequence[str], test: bool) -> Pairs:
    """Short pairs of the sample from these parts of the help; those for tests are of other files."""
    rows = pq.read_table("data_pipeline/sources/sample/pairs.parquet").to_pylist()
    chosen = []
    for row in rows:
        file = row["id"].partition("#")[0]
        is_test = keyed_random.key("recipes", file) % 5 == 0
        if is_test == test and len(row["anchor"].split()) <= WORDS and row["id"].startswith(tuple(tasks)):
            chosen.append(row)
    texts = {side: [row[side] for row in chosen] for side in ("anchor", "positive")}
    names = [row["id"] for row in chosen]
    return Pairs(ids=names, anchors=texts["anchor"], positives=texts["positive"], negatives=[[] for _ in chosen])


def train(
    model: Any,
    pairs: Pairs,
    objective: Objective,
    seed: int,
    steps: int,
    batch: int = BATCH,
    teacher: Embedder | None = None,
    layers: int | None = None,
) -> Embedder:
    """An embedder after so many steps of the engine.

    Args:
        model: a folder, or an embedder to continue from.
        layers: of the model that are kept; all if None.
    """
    folder = MODEL if isinstance(model, Embedder) else model
    spec = EmbedderSpec(max_length=LENGTH, dimensions=(WIDTH,), layers=(HALF,) if layers is None else ())
    task = ContrastiveTask(model_uri=folder, spec=spec, objective=objective)
    module: Any = task.module()
    if isinstance(model, Embedder):
        module.model = deepcopy(model.model)
    if layers is not None:
        module.model = first_layers(module.model, layers)
    tokenizer = load_tokenizer(folder)
    rows = tokenize_pairs(pairs, tokenizer, LENGTH)
    if teacher is not None:
        rows = with_vectors(rows, pairs, lambda texts, side: teacher.encode(texts))
    rate = RATE * (batch / BATCH) ** 0.5
    config = TrainConfig(steps=steps, batch_size=batch, learning_rate=rate, warmup_steps=max(1, steps // 10))
    engine = make_engine(module, config, batch, 1)
    engine.train()
    for step, places in enumerate(order(len(rows), steps, batch, seed)):
        torch.manual_seed(seed * 10_000 + step)
        ones = pa.array(np.ones(batch, np.float32))
        table = rows.take(pa.array(places)).append_column("stream", pa.array([0] * batch)).append_column("weight", ones)
        set_rates(engine, config, step)
        optimizer_step(engine, [PairBatch(table, int(tokenizer.pad_token_id), task.chunk_tokens)], 1, 0, False,
                       passes=PASSES[task.passes])  # fmt: skip
    trained = Embedder(module.model, tokenizer, spec)
    engine.destroy()
    return trained


def order(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """The places of the pairs of each step: one random pass after another."""
    passes = [
        np.argsort(keyed_random.bits(keyed_random.key("pass", seed, n), np.arange(count)))
        for n in range(-(-steps * batch // count))
    ]
    return np.concatenate(passes)[: steps * batch].reshape(steps, batch)


def mrr(queries: np.ndarray, documents: np.ndarray, pairs: Pairs) -> float:
    return retrieval.metrics(retrieval.ranks(queries, documents, pairs.anchors, pairs.positives)).mrr_at_10


def score(embedder: Embedder, pairs: Pairs, **at: Any) -> float:
    return mrr(embedder.encode(pairs.anchors, **at), embedder.encode(pairs.positives, **at), pairs)


def few(pairs: Pairs) -> Pairs:
    return pairs.take(range(min(TEST, len(pairs))))


def nested(seed: int, steps: int) -> dict[str, dict[str, float]]:
    pairs, test = sample([""], False), few(sample([""], True))
    both = NestedConfig(widths=(WIDTH,), exits=(HALF,))
    objectives = {
        "plain": InfoNce(),
        "matryoshka": Nested(inner=InfoNce(), config=NestedConfig(widths=(WIDTH,))),
        "2d": Nested(inner=InfoNce(), config=both),
    }
    found = {}
    for name, objective in objectives.items():
        embedder = train(MODEL, pairs, objective, seed, steps)
        places = {"full": {}, "64 dims": {"dimensions": WIDTH}, "half depth": {"layers": HALF}}
        places["half depth, 64 dims"] = {"dimensions": WIDTH, "layers": HALF}
        found[name] = {place: score(embedder, test, **at) for place, at in places.items()}
        found[name]["speed-up at half depth"] = seconds(embedder, test) / seconds(embedder, test, layers=HALF)
    return found


def seconds(embedder: Embedder, pairs: Pairs, **at: Any) -> float:
    """The median of three times to encode the positives."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        embedder.encode(pairs.positives, **at)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def batch(seed: int, steps: int) -> dict[str, dict[str, float]]:
    pairs, test = sample([""], False), few(sample([""], True))
    total = max(steps * BATCH, 2 * 4096)
    sizes = (64, 512, 4096)
    return {str(size): {"full": score(train(MODEL, pairs, InfoNce(), seed, total // size, size), test)} for size in sizes}


def with_negatives(pairs: Pairs, embedder: Embedder, count: int = 5) -> Pairs:
    """Pairs with the positives at ranks 11 to 60 of an embedder's search, at even distances."""
    queries, documents = (normalise_rows(torch.from_numpy(embedder.encode(s)))[0] for s in (pairs.anchors, pairs.positives))
    negatives = []
    for place, row in enumerate(nearest(queries, [documents], 61).rows.tolist()):
        others = [other for other in row if pairs.positives[other] != pairs.positives[place]][10:60]
        negatives.append([pairs.positives[other] for other in others[:: len(others) // count][:count]])
    return Pairs(ids=pairs.ids, anchors=pairs.anchors, positives=pairs.positives, negatives=negatives)


def negatives(seed: int, steps: int) -> dict[str, dict[str, float]]:
    pairs, test = sample([""], False), few(sample([""], True))
    first = train(MODEL, pairs, ONE_WAY, seed, steps)
    hard = with_negatives(pairs, first)
    variants = {
        "none": (pairs, ONE_WAY),
        "five hard": (hard, ONE_WAY),
        "five hard, focal 0.5": (hard, InfoNce(directions=("query_to_doc",), focal=0.5)),
        "five hard, progressive": (hard, InfoNce(directions=("query_to_doc",), progressive=True)),
        "five hard, mixed": (hard, InfoNce(directions=("query_to_doc",), mixed_pairs=2, mixed_list=True)),
    }
    return {name: {"full": score(train(first, data, loss, seed + 100, steps), test)} for name, (data, loss) in variants.items()}


def distil(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """The teacher is a cross-encoder of six layers, trained here on the pairs and their hard negatives."""
    pairs, test = sample([""], False), few(sample([""], True))
    hard = with_negatives(pairs.take(range(3000)), train(MODEL, pairs, ONE_WAY, seed, steps))
    teacher = cross_encoder(hard, seed, 2 * steps)
    scored = with_scores(hard, teacher)
    shown = with_negatives(test.take(range(200)), train(MODEL, pairs, ONE_WAY, seed + 1, steps), 9)
    variants: dict[str, Objective] = {
        "labels": ONE_WAY,
        "dse": Dse(),
        "margin_mse": MarginMse(),
        "score_kl": ScoreKl(),
        "labels and score_kl": Combined(parts=((ONE_WAY, 1.0), (ScoreKl(), 1.0))),
    }
    found = {}
    for name, objective in variants.items():
        student = train(MODEL, scored, objective, seed, steps, layers=HALF)
        began = time.perf_counter()
        ranks = [1 + sum(s >= own[0] for s in own[1:]) for own in cosines(student, shown)]
        found[name] = {"retrieval": score(student, test), "reranking": float(np.mean(1 / np.array(ranks)))}
        found[name]["seconds"] = time.perf_counter() - began
    began = time.perf_counter()
    own = teacher(*couples(shown)).reshape(len(shown), -1)
    ranks = 1 + (own[:, 1:] >= own[:, :1]).sum(axis=1)
    found["teacher"] = {"reranking": float(np.mean(1 / ranks)), "seconds": time.perf_counter() - began}
    return found


def cosines(embedder: Embedder, pairs: Pairs) -> list[np.ndarray]:
    """Of each anchor with its positive, then with its negatives."""
    documents = embedder.encode(couples(pairs)[1]).reshape(len(pairs), 1 + len(pairs.negatives[0]), -1)
    return list(np.einsum("nd,nkd->nk", embedder.encode(pairs.anchors), documents))


def cross_encoder(pairs: Pairs, seed: int, steps: int) -> Callable[[list[str], list[str]], np.ndarray]:
    """Scores of couples, after training to tell positives from negatives."""
    from transformers import AutoModelForSequenceClassification

    from trainer.mining.cross_encoder import CrossEncoder

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1)
    encoder = CrossEncoder(model, load_tokenizer(MODEL), 2 * LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    for places in order(len(pairs), steps, 8, seed):
        lefts = [pairs.anchors[place] for place in places for _ in range(6)]
        rights = [text for place in places for text in (pairs.positives[place], *pairs.negatives[place])]
        rows = encoder.tokenizer(lefts, rights, truncation=True, max_length=2 * LENGTH, padding=True, return_tensors="pt")
        logits = model(**rows).logits.view(8, 6)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.zeros(8, dtype=torch.int64)).backward()
        optimizer.step()
    model.eval()
    return encoder.score


def couples(pairs: Pairs) -> tuple[list[str], list[str]]:
    """Each anchor with its positive, then with its negatives."""
    lefts = [text for text, some in zip(pairs.anchors, pairs.negatives, strict=True) for _ in range(1 + len(some))]
    return lefts, [text for one, some in zip(pairs.positives, pairs.negatives, strict=True) for text in (one, *some)]


def with_scores(pairs: Pairs, teacher: Callable[[list[str], list[str]], np.ndarray]) -> Pairs:
    scores = teacher(*couples(pairs)).reshape(len(pairs), -1)
    columns = {"positive_scores": scores[:, 0].tolist(), "negative_scores": scores[:, 1:].tolist()}
    return Pairs(ids=pairs.ids, anchors=pairs.anchors, positives=pairs.positives, negatives=pairs.negatives, **columns)


TASKS = (("scalc", "schart"), ("swriter", "simpress", "sbasic"))


def merge(seed: int, steps: int) -> dict[str, dict[str, float]]:
    from trainer.engine.position_search import Search, search_worker
    from trainer.merging import probe
    from trainer.merging.self_positioning import SelfPositioning

    parts, tests = ([few(sample(task, test)) if test else sample(task, test) for task in TASKS] for test in (False, True))
    models = [train(MODEL, part, InfoNce(), seed, steps) for part in parts]
    folders = []
    for number, model in enumerate(models):
        folders.append(f"runs/recipes/merge-{seed}-{number}")
        model.save(folders[-1])
    base = Embedder.load(MODEL)

    def scores(weights: Sequence[float]) -> dict[str, float]:
        states = [one.model.state_dict() for one in (base, *models)]
        merged = deepcopy(models[0])
        for name, weight in merged.model.state_dict().items():
            if weight.is_floating_point():
                first = states[0][name]
                weight.copy_(first + sum(w * (state[name] - first) for w, state in zip(weights, states[1:], strict=True)))
        both = [score(merged, test) for test in tests]
        return {"first task": both[0], "second task": both[1], "mean": sum(both) / 2}

    some = [probe.sample(part, 500, seed) for part in parts]
    sides = ("ids", "anchors", "positives", "negatives")
    joined = {side: [*getattr(some[0], side), *getattr(some[1], side)] for side in sides}
    task = ContrastiveTask(model_uri=MODEL, spec=models[0].spec, objective=probe.LOSS)
    given = Search(
        task=task,
        models=tuple(folders),
        settings=SelfPositioning(steps=60, batch_size=64, learning_rate=0.05),
        pairs=tokenize_pairs(Pairs(**joined), load_tokenizer(MODEL), LENGTH),
        seed=seed,
        threads=torch.get_num_threads(),
    )
    began = time.perf_counter()
    weights = search_worker(given)["weights"]
    searched = time.perf_counter() - began
    began = time.perf_counter()
    grid = {alpha: scores((alpha, 1 - alpha)) for alpha in np.linspace(0, 1, 21)}
    best = max(grid, key=lambda alpha: grid[alpha]["mean"])
    return {
        "first model": scores((1, 0)),
        "second model": scores((0, 1)),
        "uniform": scores((0.5, 0.5)),
        "best of 21 on the test set": grid[best] | {"seconds": time.perf_counter() - began, "weight of the first": float(best)},
        "self positioning": scores(weights) | {"seconds": searched, "weight of the first": weights[0], "sum": sum(weights)},
    }


def drift(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Retrieval of the first task; the index is of the model before the second."""
    first, second = (sample(task, False) for task in TASKS)
    test = few(sample(TASKS[0], True))
    old = train(MODEL, first, InfoNce(), seed, steps)
    distilled = Combined(parts=((InfoNce(), 1.0), (EmbeddingDistillation(), 1.0)))
    new = train(old, second, InfoNce(), seed + 50, steps)
    kept = train(old, second, distilled, seed + 50, steps, teacher=old)
    index, before = old.encode(test.positives), old.encode(test.anchors)
    found = {"before": {"full": mrr(before, index, test)}}
    queries = first.anchors[:2000]
    for name, model in (("plain", new), ("distilled", kept)):
        vectors = model.encode(test.anchors)
        found[f"{name}, stale index"] = {"full": mrr(vectors, index, test)}
        found[f"{name}, new index"] = {"full": mrr(vectors, model.encode(test.positives), test)}
        for kind in query_drift.KINDS:
            moved = query_drift.fit(kind, model.encode(queries), old.encode(queries)).queries(vectors)
            found[f"{name}, {kind}"] = {"full": mrr(moved, index, test)}
    return found


EXPERIMENTS = {
    "nested": nested, "batch": batch, "negatives": negatives, "distil": distil, "merge": merge, "drift": drift
}  # fmt: skip


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.recipes")
    parser.add_argument("experiments", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", default="runs/recipes.jsonl")
    parser.add_argument("--steps", type=int, default=80)
    options = parser.parse_args(argv)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    path = Path(options.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["experiment"], line["seed"], line["steps"]): line["scores"] for line in lines}
    chosen = options.experiments or list(EXPERIMENTS)
    for seed in options.seeds:
        for name in chosen:
            key = (name, seed, options.steps)
            if key not in done:
                done[key] = EXPERIMENTS[name](seed, options.steps)
                with path.open("a") as file:
                    file.write(
                        json.dumps({"experiment": name, "seed": seed, "steps": options.steps, "scores": done[key]}) + "\n"
                    )
            print(name, seed, json.dumps(done[key]), file=sys.stderr)
    print(json.dumps({"benchmark": "recipes", "steps": options.steps, "figures": summary(done, chosen, options)}))


def summary(done: dict[tuple[str, int, int], Any], chosen: Sequence[str], options: Any) -> dict[str, Any]:
    """Mean, deviation and number of seeds of each measure."""
    figures: dict[str, Any] = {}
    for name in chosen:
        runs = [done[name, seed, options.steps] for seed in options.seeds]
        figures[name] = {
            variant: {measure: spread([run[variant][measure] for run in runs]) for measure in runs[0][variant]}
            for variant in runs[0]
        }
    return figures


def spread(values: list[float]) -> list[float]:
    return [round(statistics.mean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else 0.0, len(values)]


if __name__ == "__main__":
    main(sys.argv[1:])
