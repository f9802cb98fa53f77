"""`scion merge`: one embedder from several that share a vocabulary."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console

from cluster.capacity import has_gpus, resolve_workers
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.pairs import CHUNK_TOKENS
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.pairs.shards import tokenize_pairs
from ray_jobs import embed, model_card, pretrain
from ray_jobs.config import tables
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.model_card import Card
from ray_jobs.stage import Stage, main_start, require
from trainer.embedder import Embedder
from trainer.evaluation.retrieval import Retrieval
from trainer.merging import MERGES, Merge, embedders, probe
from trainer.merging.self_positioning import SelfPositioning
from trainer.models.bidirectional import is_bidirectional
from trainer.tasks.contrastive import ContrastiveTask

JOB = Job(
    summary="one embedder from several",
    reads="OUTPUT/pretrain and OUTPUT/embed, or the embedders of merge.models; pairs, where the method measures them",
    writes="OUTPUT/merge: the average of their weights, or what else merge.method makes of them",
    keys=("source_model", "pairs", "test_pairs", "merge"),
    after=("pretrain", "embed"),
    instead=("merge.models",),
)
KIND = "embedder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is merged: specifications of artefacts, or folders and hub names."""

    models: tuple[Spec | str, ...]
    base: Spec | str | None


def chosen(config: ScionConfig) -> Chosen:
    """The models and their base. By default the embedder before and after its contrastive training; where the method needs a
    base, that before is the base.

    Raises:
        ConfigError: the method needs a base, and none is known; or the base is one of the models.
    """
    given, needs = config.merge, _method(config).needs
    if given.models and needs.base and given.base is None and not config.source_model:
        raise ConfigError(
            f"{given.method} needs the model from which the others were trained.", "merge.base", "Name its folder or hub name."
        )
    before = None if given.models and (given.base or not needs.base) else pretrain.spec(config, main_start(config))
    base = (given.base or before) if needs.base else None
    if given.models:
        models: tuple[Spec | str, ...] = given.models
    else:
        assert before is not None
        after = embed.spec(config, main_start(config))
        models = (after,) if base is before else (before, after)
    if len(set(given.models)) < len(given.models):
        raise ConfigError("a model is named twice.", "merge.models", "Name each once.")
    if base in models:
        raise ConfigError(
            f"{base} is merged, too: it does not differ from itself.", "merge.base", "Take it out of merge.models."
        )
    return Chosen(models=models, base=base)


def spec(config: ScionConfig) -> Spec:
    """The specification of the merged embedder.

    Raises:
        ConfigError: the method needs a base or pairs, and there are none.
    """
    name, method, selection = config.merge.method, _method(config), chosen(config)
    inputs = {f"model {i}": _identity(model, "merge.models") for i, model in enumerate(selection.models)}
    settings: dict[str, Any] = {"merge": artifact.identity(config.merge) | tables.identity("method", name, method, "uniform")}
    if selection.base is not None:
        inputs["base"] = _identity(selection.base, "merge.base")
    if method.needs.probe is not None:
        if config.pairs is None:
            raise ConfigError(f"{name} measures the models on training pairs.", "pairs", "Give pairs=.")
        inputs |= data_fingerprints(config, "pairs")
        settings["seed"] = config.seed
    return Spec(uri=config.at("merge"), kind=KIND, config=settings, inputs=inputs)


def _method(config: ScionConfig) -> Merge:
    method: Merge = getattr(config.merge.methods, config.merge.method)
    return method


def _identity(model: Spec | str, key: str) -> str:
    return model.id if isinstance(model, Spec) else model_fingerprint(model, key=key)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="merge", spec=spec(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes the merged embedder, with the tokenizer of the last model. Returns a line for the user.

    Raises:
        ModelError: too few or too many models for the method, or models with other tokenizers, shapes or poolings.
    """
    method, selection = _method(config), chosen(config)
    uris = [_folder(model) for model in selection.models]
    base = None if selection.base is None else _folder(selection.base)
    _check_count(config.merge.method, method, len(uris))
    opened = {uri: embedders.open_mapped(uri) for uri in ([] if base is None else [base]) + uris}
    embedders.check_alike(opened)
    specs = {uri: opened[uri].spec for uri in uris if embedders.is_embedder(uri)}
    some = _probe_pairs(config, method, draft)
    with embedders.scratch(uris[-1]) as merged:
        if specs:
            merged.spec = embedders.common_spec(specs)
        merging = embedders.Merging(
            models=[opened[uri] for uri in uris], base=None if base is None else opened[base], target=merged
        )
        search = partial(_search, config, merged, base or "", uris, some, draft, report)
        recipe = method(merging.ask(_measure(method, some), search))
        merging.fill(recipe, report.part("merge"))
        merged.save(draft.uri)
    name = config.merge.method
    draft.metrics = {"models": len(uris), "method": name, "papers": [MERGES[name].paper], "weights": recipe.weights}
    model_card.write(draft.uri, _card(config, uris, base))
    described = f"{len(uris)} embedders by {name}"
    if recipe.weights is None:
        return described
    return f"{described}, with weights {', '.join(f'{weight:.3g}' for weight in recipe.weights)}"


def _card(config: ScionConfig, models: list[str], base: str | None) -> Card:
    """The card of the merged embedder."""
    name = os.path.basename(config.output.rstrip("/"))
    beside = "" if base is None else ", which were trained from another"
    return Card(
        title=f"{name} merged embedder",
        made=f"A text embedder, merged from {len(models)} models{beside} by {config.merge.method}.",
        parents=(*filter(None, [base]), *models),
        papers=(MERGES[config.merge.method].paper,),
    )


def _folder(model: Spec | str) -> str:
    return require(model, model.uri.rpartition("/")[2]) if isinstance(model, Spec) else model


def _check_count(name: str, method: Merge, count: int) -> None:
    """Checks that the method can merge as many models; else raises ModelError."""
    needs = method.needs
    if needs.least <= count <= (needs.most or count):
        return
    fitting = f"{needs.least}" if needs.least == needs.most else f"{needs.least} or more"
    beside = " beside their base" if needs.base else ""
    raise ModelError(
        f"{name} merges {fitting} models{beside}, not {count}.", "merge.models", "Name as many folders, or take another method."
    )


def _probe_pairs(config: ScionConfig, method: Merge, draft: Draft) -> pairs.Pairs:
    """A sample of the training pairs, which no test pair is among; empty where the method needs none."""
    if method.needs.probe is None:
        return pairs.load(None, "", key="pairs")
    cache = storage.join(draft.uri, "source")
    settings: Any = method
    some = probe.sample(pairs.load(config.pairs, cache, key="pairs"), settings.probe_pairs, config.seed)
    pairs.check_disjoint(some, pairs.load(config.test_pairs, cache, key="test_pairs"))
    storage.remove(cache)
    return some


def _measure(method: Merge, some: pairs.Pairs) -> Callable[[Embedder], float]:
    """The score of an embedder on the pairs."""
    if method.needs.probe == "loss":
        return lambda embedder: probe.loss(embedder, some)
    return lambda embedder: _accuracy(embedder, some)


def _search(
    config: ScionConfig,
    merged: Embedder,
    base: str,
    uris: list[str],
    some: pairs.Pairs,
    draft: Draft,
    report: Reporter,
) -> tuple[float, ...]:
    """The weights of the models that the workers find, for an embedder that is used as the merged one will be."""
    from trainer.engine.position_search import Search, search

    spec = merged.spec
    method: SelfPositioning = config.merge.methods.self_positioning
    report.note(f"{method.steps} steps search the weights of {len(uris)} models on {len(some):,} pairs")
    chunk_tokens = max(spec.max_length, CHUNK_TOKENS["gpu" if has_gpus() else "cpu"])
    task = ContrastiveTask(
        model_uri=_absolute(base),
        spec=spec,
        objective=probe.LOSS,
        chunk_tokens=chunk_tokens,
        bidirectional=is_bidirectional(merged.model.config),
        latents=None,
    )
    given = Search(
        task=task,
        models=tuple(map(_absolute, uris)),
        settings=method,
        pairs=tokenize_pairs(some, merged.tokenizer, spec.max_length, task.forms),
        seed=config.seed,
        threads=max(1, int(config.worker_cpus)),
    )
    workers = resolve_workers(config.workers)
    return search(given, draft.uri, workers=workers, worker_cpus=config.worker_cpus, gpu=has_gpus())


def _absolute(model: str) -> str:
    """A local folder by its absolute path: workers run in other directories."""
    return storage.absolute(model) if os.path.isdir(model) else model


def _accuracy(embedder: Embedder, some: pairs.Pairs) -> float:
    """The mean accuracy at 1 of both directions."""
    ways = Retrieval()(embedder, some).scores
    return float(ways["forward"]["accuracy_at_1"] + ways["backward"]["accuracy_at_1"]) / 2


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
