"""`scion serve`: serves the embedder at an OpenAI-compatible endpoint until Ctrl-C.

One replica on one machine needs no Ray; several, or a cluster at RAY_ADDRESS, are served by Ray Serve. A pipeline checks both
kinds of server and stops them.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from rich.console import Console

from cluster.serve.config import ServeConfig
from cluster.serve.process import serve_in_process
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.pairs import text_pairs as pairs
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints
from ray_jobs.job import Job
from ray_jobs.stage import Stage, main_start, require
from trainer.embedder import Embedder

JOB = Job(
    summary="an OpenAI-compatible endpoint, until Ctrl-C",
    reads="OUTPUT/embed, or any embedder: scion serve FOLDER, serve.model=FOLDER, serve.models={NAME: FOLDER}",
    writes="nothing",
    keys=("test_pairs", "serve"),
    after=("embed",),
    instead=("serve.model", "serve.models"),
    required_with_instead=(),
)
KIND = "served"
_MAX_PAIRS = 500
"""Pairs whose texts are sent to the server."""


def spec(config: ScionConfig) -> Spec:
    inputs = {"model": _embedder(config).id, **data_fingerprints(config, _pairs_key(config))}
    return Spec(uri=config.at("serve"), kind=KIND, config={"serve": artifact.identity(config.serve)}, inputs=inputs)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="serve", spec=spec(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Starts the server on a free port, compares its answers to the openai client with `encode`, and stops it."""
    from cluster.serve.check import compare  # openai takes half a second to import, for which a server should not wait

    model = require(_embedder(config), "embed")
    key = _pairs_key(config)
    testing = pairs.load(getattr(config, key), storage.join(draft.uri, "source"), key=key)
    storage.remove(storage.join(draft.uri, "source"))
    texts, embedder = testing.anchors[:_MAX_PAIRS] + testing.positives[:_MAX_PAIRS], Embedder.load(model)
    settings = replace(config.serve, model=model, port=0)
    found = []
    for uses_ray in (False, True):
        report("ask", int(uses_ray), 2)
        with server(settings, uses_ray) as url:
            found.append(compare(url, embedder, texts))
    draft.metrics = {
        "requests": sum(one["requests"] for one in found),
        "max_abs_diff": max(one["max_abs_diff"] for one in found),
    }
    return f"{draft.metrics['requests']} requests, largest difference from encode {draft.metrics['max_abs_diff']:.1e}"


@contextmanager
def server(config: ServeConfig, uses_ray: bool) -> Iterator[str]:
    """Serves while the block runs, in this process or on the Ray cluster. Yields the base URL for OpenAI's clients.

    Raises:
        ScionError: of `serve_in_process` or `serve_on_ray`.
    """
    if uses_ray:
        from cluster.serve.app import serve_on_ray  # Ray takes a second to import

        with serve_on_ray(config) as url:
            yield url
    else:
        with serve_in_process(config) as url:
            yield url


def source_tokenizer(config: ScionConfig) -> str:
    """The model whose tokenizer the embedder's one replaces, as far as the configuration says; empty if it does not."""
    if config.serve.source_tokenizer or config.serve.folders:  # a model that is named may come from anywhere
        return config.serve.source_tokenizer
    return config.first_model


def needs_ray(config: ScionConfig) -> bool:
    """Whether the model is served by Ray Serve."""
    return config.serve.replicas > 1 or bool(os.environ.get("RAY_ADDRESS"))


def _embedder(config: ScionConfig) -> Spec:
    """The embedder of the run."""
    from ray_jobs import embed  # takes a second to import, which a server with serve.model does not need

    return embed.spec(config, main_start(config))


def _pairs_key(config: ScionConfig) -> str:
    """The key of the pairs whose texts are sent to the server."""
    return "pairs" if config.test_pairs is None else "test_pairs"


def main(config: ScionConfig, console: Console) -> None:
    """Serves until it is interrupted."""
    model = config.serve.model
    if not config.serve.folders:
        model = require(_embedder(config), "embed")
    settings = replace(config.serve, model=model, source_tokenizer=source_tokenizer(config))
    served = ", ".join(f"{name} ({folder})" for name, folder in settings.folders.items())
    with server(settings, needs_ray(config)) as url:
        page = url.removesuffix("v1")
        try:
            console.print(f"serving {served}\n  {url}/embeddings\n  {page}\nCtrl-C stops it.", highlight=False, markup=False)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.print("stopping")


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
