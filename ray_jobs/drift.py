"""`scion drift`: the newest version of an embedder, whose queries search the indexes of earlier versions as well."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import ray
from rich.console import Console

from cluster.capacity import has_gpus
from data_pipeline import keyed_random
from data_pipeline.artifacts import storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ConfigError
from data_pipeline.pairs import text_pairs as pairs
from ray_jobs import model_card
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.model_card import Card
from ray_jobs.stage import Stage
from trainer import query_drift
from trainer.embedder import Embedder
from trainer.evaluation import drift
from trainer.query_drift import Key, Vectors

JOB = Job(
    summary="an embedder for the indexes of its earlier versions",
    reads="the embedders of drift.versions; the anchors of pairs, on which it is fitted; test_pairs",
    writes="OUTPUT/drift: the last embedder with a map of its queries for each earlier one, and retrieval from each index",
    keys=("pairs", "test_pairs", "drift"),
    required=("output",),
)
KIND = "embedder"
PAPER = "Goswami et al., 2025 (arXiv:2506.00037)"
Encoded = dict[tuple[int, int | None], list[Vectors]]
"""The vectors of several lists of texts, by width and depth."""
_SIDES = ("query", "query", "document")
"""Of the lists: what the map is fitted on, what searches, and what is found."""


def spec(config: ScionConfig) -> Spec:
    inputs = data_fingerprints(config, "pairs", "test_pairs")
    inputs |= {
        name: model_fingerprint(uri, key=f"drift.versions.{name}", pools=True) for name, uri in config.drift.versions.items()
    }
    settings = {"drift": {"versions": list(config.drift.versions), "kind": config.drift.kind, "queries": config.drift.queries}}
    return Spec(uri=config.at("drift"), kind=KIND, config=settings | {"seed": config.seed}, inputs=inputs)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="drift", spec=spec(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes the embedder with its compensations, and the drift matrix as metrics. Returns a line for the user.

    Raises:
        ConfigError: the versions have no width and depth in common.
    """
    settings, cache = config.drift, storage.join(draft.uri, "source")
    training = _sample(pairs.load(config.pairs, cache, key="pairs").queries, settings.queries, config.seed)
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    storage.remove(cache)
    *_, newest = settings.versions.values()
    embedder = Embedder.load(newest)
    at = [(width, layers) for width in embedder.dimensions for layers in (None, *embedder.spec.layers)]
    encoded = _encode(settings.versions, [training, testing.queries, testing.positives], at, report)
    embedder.compensations = _compensations(encoded, settings.kind)
    embedder.save(draft.uri)
    draft.metrics = {"kind": settings.kind, "queries": len(training), "rows": _rows(encoded, testing, settings.kind)}
    described = _described(list(settings.versions), draft.metrics["rows"])
    title = f"{os.path.basename(config.output.rstrip('/'))} embedder for earlier indexes"
    indexes = tuple(settings.versions)
    card = Card(title=title, made=f"{described}.", parents=(newest,), papers=(PAPER,), indexes=indexes)
    model_card.write(draft.uri, card)
    return described


def _sample(texts: list[str], most: int, seed: int) -> list[str]:
    """At most `most` distinct texts, by a choice that depends on the texts and the seed only."""
    distinct = list(dict.fromkeys(texts))
    return sorted(distinct, key=lambda text: keyed_random.key("drift", seed, text))[:most]


def _encode(
    versions: Mapping[str, str], texts: list[list[str]], at: list[tuple[int, int | None]], report: Reporter
) -> dict[str, Encoded]:
    """The texts by each version, at each width and depth that it offers, each version in a task of its own."""
    gpus = int(has_gpus())
    running = {name: encode.options(num_gpus=gpus).remote(uri, texts, at) for name, uri in versions.items()}
    encoded: dict[str, Encoded] = {}
    for name, task in running.items():
        report("encode", len(encoded), len(running))
        encoded[name] = ray.get(task)
    return encoded


@ray.remote(num_cpus=1)
def encode(uri: str, texts: list[list[str]], at: list[tuple[int, int | None]]) -> Encoded:
    """The vectors of each list of texts, with the prompt of its side, on the GPU that Ray gives the task, if it gives one."""
    embedder = Embedder.load_for_inference(uri)
    offered = [
        (width, layers) for width, layers in at if width in embedder.dimensions and layers in (None, *embedder.spec.layers)
    ]
    return {
        (width, layers): [
            embedder.encode(some, width, layers, prompt_name=side) for side, some in zip(_SIDES, texts, strict=True)
        ]
        for width, layers in offered
    }


def _compensations(encoded: dict[str, Encoded], kind: str) -> dict[Key, query_drift.Compensation]:
    """From the last version to each earlier one, at the widths and depths that both have; its own index needs no move.

    Raises:
        ConfigError: a version has no width and depth of the last one.
    """
    *earlier, newest = encoded
    made = {(newest, *at): query_drift.unmoved(at[0]) for at in encoded[newest]}
    for version in earlier:
        for (width, layers), (queries, *_) in encoded[version].items():
            made[version, width, layers] = query_drift.fit(kind, encoded[newest][width, layers][0], queries)
        if not encoded[version]:
            offered = ", ".join(str(width) for width, _ in encoded[newest])
            raise ConfigError(
                f"its vectors have none of the widths of {newest}: {offered}.", f"drift.versions.{version}", "Leave it out."
            )
    return made


def _rows(encoded: dict[str, Encoded], testing: pairs.Pairs, kind: str) -> list[dict[str, Any]]:
    """The drift matrix at the full width and depth of the last version; empty without test pairs."""
    if not testing:
        return []
    full = next(iter(encoded[list(encoded)[-1]]))
    training, queries, documents = (
        {name: np.asarray(vectors[full][place]) for name, vectors in encoded.items() if full in vectors} for place in range(3)
    )
    return drift.matrix(queries, documents, training, testing, kind)


def _described(versions: list[str], rows: list[dict[str, Any]]) -> str:
    """What the compensation gains on the index of the first version."""
    found = {(row["index"], row["queries"]): row for row in rows}
    first = found.get((versions[0], versions[-1]))
    if first is None:
        return f"{versions[-1]} searches the indexes of {', '.join(versions[:-1])}"
    stale, moved, fresh = first["stale"], first["compensated"], found[versions[-1], versions[-1]]["stale"]
    scores = ", ".join(
        f"{row['mrr_at_10']:.3f} {name}"
        for row, name in ((stale, "as it is"), (moved, "with moved queries"), (fresh, "on an index of its own"))
    )
    return f"MRR@10 of {versions[-1]} on the index of {versions[0]}: {scores}"


def needs_ray(config: ScionConfig) -> bool:
    return stage(config).finished() is None


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
