"""`scion serve`: serves the embedder at an OpenAI-compatible endpoint until Ctrl-C.

A pipeline checks the server and stops it.
"""

import time
from dataclasses import replace
from functools import partial

from rich.console import Console

from cluster.serve.app import serve_locally
from cluster.serve.check import compare
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.pairs import text_pairs as pairs
from ray_jobs import embed
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints
from ray_jobs.job import Job
from ray_jobs.stage import Stage, main_start, require
from trainer.embedder import Embedder

JOB = Job(
    summary="an OpenAI-compatible endpoint, until Ctrl-C",
    reads="OUTPUT/embed, or serve.model=FOLDER",
    writes="nothing",
    keys=("test_pairs", "serve"),
    after=("embed",),
    instead=("serve.model",),
    required_with_instead=(),
)
KIND = "served"
_MAX_PAIRS = 500
"""Pairs whose texts are sent to the server."""


def spec(config: ScionConfig) -> Spec:
    inputs = {"model": embed.spec(config, main_start(config)).id, **data_fingerprints(config, _pairs_key(config))}
    return Spec(uri=config.at("serve"), kind=KIND, config={"serve": artifact.identity(config.serve)}, inputs=inputs)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="serve", spec=spec(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Starts the server on a free port, compares its answers to the openai client with `encode`, and stops it."""
    model = require(embed.spec(config, main_start(config)), "embed")
    key = _pairs_key(config)
    testing = pairs.load(getattr(config, key), storage.join(draft.uri, "source"), key=key)
    storage.remove(storage.join(draft.uri, "source"))
    report("ask", 0, 1)
    with serve_locally(replace(config.serve, model=model, port=0)) as url:
        found = compare(url, Embedder.load(model), testing.anchors[:_MAX_PAIRS] + testing.positives[:_MAX_PAIRS])
    draft.metrics = found
    return f"{found['requests']} requests, largest difference from encode {found['max_abs_diff']:.1e}"


def _pairs_key(config: ScionConfig) -> str:
    """The key of the pairs whose texts are sent to the server."""
    return "pairs" if config.test_pairs is None else "test_pairs"


def main(config: ScionConfig, console: Console) -> None:
    """Serves until it is interrupted."""
    model = config.serve.model or require(embed.spec(config, main_start(config)), "embed")
    with serve_locally(replace(config.serve, model=model)) as url:
        console.print(f"serving {model}\n  {url}/embeddings\nCtrl-C stops it.", highlight=False, markup=False)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("stopping")


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
