"""`scion evaluate`: scores on held-out pairs and bits per byte of held-out text, for each model and its random control."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import ray
from rich.console import Console

from cluster.capacity import has_gpus
from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ArtifactError
from data_pipeline.pairs import text_pairs as pairs
from ray_jobs import embed, merge, mteb_results, pretrain, transfer
from ray_jobs.config.embedders import EvaluateConfig
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.report.summary import last_model, model_label
from ray_jobs.stage import Stage, require, starts
from trainer.embedder import Embedder
from trainer.evaluation import Metric
from trainer.evaluation.encoder import EncodesOnce
from trainer.evaluation.measured import Measured, differences
from trainer.evaluation.nested import nested
from trainer.evaluation.probes import PROBES
from trainer.evaluation.speed import speed

JOB = Job(
    summary="retrieval on held-out pairs, bits per byte of held-out text",
    reads="source_model, the models that the jobs before it have made, test_pairs and the files of evaluate",
    writes="OUTPUT/evaluate: accuracy@1 and MRR@10, both ways; bits per byte where there are no pairs; mteb/ for mteb's tools",
    keys=("source_model", "test_pairs", "evaluate"),
    after=("transfer", "pretrain", "embed", "merge"),
    instead=("embed.model", "evaluate.models"),
)
KIND = "evaluation"
_BASE = "source_model"
"""The first of a chain: `embed.model`, else `source_model`."""
Models = dict[str, Spec | str]
"""The models to compare, by their names in the report: folders, or specifications of artefacts."""


def pipeline_models(config: ScionConfig) -> Models:
    """All models of a pipeline."""
    return _models(config, embedders=config.pairs is not None)


def finished_models(config: ScionConfig) -> Models:
    """The finished ones; if there are pairs or other test sets, also the embedder that `scion embed` trained on text."""
    every = _models(config, embedders=bool(config.pairs or config.test_pairs or config.evaluate.files))
    return {name: model for name, model in every.items() if isinstance(model, str) or artifact.find(model) is not None}


def _models(config: ScionConfig, embedders: bool) -> Models:
    """The source model and those of each chain, the user's last, then `evaluate.models`.

    Trained and merged embedders only with `embedders`.
    """
    models: Models = {}
    if base := config.first_model:
        models[_BASE] = base
    for start in reversed(starts(config)) if base else ():
        if config.has_transfer:
            models[f"{start.name}_untrained"] = transfer.spec(config, start)
            models[f"{start.name}_pretrained"] = pretrain.spec(config, start)
        if embedders:
            models[f"{start.name}_trained"] = embed.spec(config, start)
    if embedders and (config.merge.models or config.has_transfer):
        models["merged"] = merge.spec(config)
    return models | config.evaluate.models


def spec(config: ScionConfig, compared: Models) -> Spec:
    inputs = data_fingerprints(config, "test_pairs", *(f"evaluate.{name}" for name in PROBES))
    for name, model in compared.items():
        key = f"evaluate.models.{name}" if name in config.evaluate.models else name
        inputs[name] = model_fingerprint(model, key=key) if isinstance(model, str) else model.id
    return Spec(uri=config.at("evaluate"), kind=KIND, config=_chosen(config.evaluate), inputs=inputs)


def _chosen(settings: EvaluateConfig) -> dict[str, Any]:
    """The metrics that decide the result, with their settings; empty for retrieval alone.

    Artefacts from before the table of metrics do not name retrieval.
    """
    own = {name: artifact.identity(getattr(settings.settings, name)) for name in settings.metrics}
    return {} if own == {"retrieval": {}} else {"evaluate": own}


def stage(config: ScionConfig, compared: Models) -> Stage:
    return Stage(name="evaluate", spec=spec(config, compared), fill=partial(fill, config, compared), is_derived=True)


def fill(config: ScionConfig, compared: Models, draft: Draft, report: Reporter) -> str:
    """Scores every model into the draft's metrics; returns the last model's figures as a line for the user.

    Raises:
        ArtifactError: there are no pairs, and no model is pretrained.
    """
    uris = {name: model if isinstance(model, str) else require(model, "pipeline") for name, model in compared.items()}
    draft.metrics = {"bits_per_byte": bits_per_byte(compared)}
    cache = storage.join(draft.uri, "source")
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    files = config.evaluate.files
    sets = {name: PROBES[name].load(spec, cache, key=f"evaluate.{name}") for name, spec in files.items()}
    storage.remove(cache)
    if config.pairs is not None and not testing:
        report.note("retrieval is not measured: there are no test_pairs")
    if testing or sets:
        draft.metrics |= _scores(config, uris, testing, sets, report)
        for path, content in mteb_results.files(draft.metrics, spec(config, compared).inputs):
            storage.write_bytes(storage.join(draft.uri, "mteb", path), content)
    elif not draft.metrics["bits_per_byte"]:
        fix = (
            "Run `scion pretrain` first, or give test_pairs=." if config.source_model else "Give test_pairs= or evaluate.sts=."
        )
        raise ArtifactError("no model is pretrained, and there are no pairs.", config.output, fix)
    return _last_figures(draft.metrics)


def bits_per_byte(compared: Models) -> dict[str, float]:
    """Bits per byte of held-out text before and after pretraining, from the pretraining's artefact."""
    found: dict[str, float] = {}
    for name, model in compared.items():
        start, _, state = name.partition("_")
        if state == "pretrained" and isinstance(model, Spec) and (made := artifact.find(model)) is not None:
            by_step = sorted((int(step), value) for step, value in made.metrics["bits_per_byte"].items())
            found |= {f"{start}_untrained": by_step[0][1], name: by_step[-1][1]}
    return found


def _scores(
    config: ScionConfig, uris: dict[str, str], testing: pairs.Pairs, sets: dict[str, Any], report: Reporter
) -> dict[str, Any]:
    """Of each metric its scores by model, by language where there are several, and the differences from the source model."""
    metrics = {name: getattr(config.evaluate.settings, name) for name in config.evaluate.metrics if testing}
    gpus = int(has_gpus())
    running = {
        score.options(num_gpus=gpus).remote(uri, testing, metrics, sets, is_timed=True): model for model, uri in uris.items()
    }
    found: dict[str, dict[str, Measured]] = {}
    while len(found) < len(running):
        report("encode", len(found), len(running))
        done, _ = ray.wait([task for task in running if running[task] not in found], num_returns=1)
        found[running[done[0]]] = ray.get(done[0])
    made = collect({model: found[model] for model in uris})
    counts = {"pairs": len(testing), "pairs_by_language": dict(sorted(Counter(testing.langs).items()))}
    return made | counts if testing else made


def collect(found: dict[str, dict[str, Measured]]) -> dict[str, Any]:
    """The metrics of the artefact, from what was measured of each model; the first is the one that others are compared with."""
    base, *others = found
    made: dict[str, Any] = {}
    apart: dict[str, Any] = {}
    for name in dict.fromkeys(name for measured in found.values() for name in measured):
        by_model = {model: measured[name] for model, measured in found.items() if name in measured}
        made[name] = {model: one.scores for model, one in by_model.items()}
        made[f"{name}_by_language"] = {model: one.by_language for model, one in by_model.items() if one.by_language}
        if base in by_model and by_model[base].replicates:
            apart[name] = {model: differences(by_model[model], by_model[base]) for model in others}
    return made | ({"differences": apart} if others and apart else {})


_FIGURES = {
    "ranking": ("ndcg_at_10", "nDCG@10 {:.3f} anchor → positive"),
    "sts": ("spearman", "Spearman {:.3f} with the gold scores"),
    "classification": ("accuracy", "accuracy {:.3f} of a classifier"),
    "clustering": ("v_measure", "V-measure {:.3f} of clusters"),
    "reranking": ("map", "MAP {:.3f} of reranking"),
}
"""Of each metric beside retrieval the measure in the line for the user."""


def _last_figures(metrics: dict[str, Any]) -> str:
    """The figures of the last model as a line."""
    figures = []
    found = {name: metrics[name] for name in ("retrieval", *_FIGURES) if name in metrics}
    if found:
        model = last_model(list(next(iter(found.values()))))
        figures = [_figure(name, by_model[model]) for name, by_model in found.items()]
        figures[0] = f"{model_label(model)}: {figures[0]}"
    if bits := list(metrics["bits_per_byte"].values()):
        figures.append(f"{bits[-1]:.3f} bits per byte of held-out text")
    return ", ".join(figures)


def _figure(name: str, scores: Mapping[str, Any]) -> str:
    """The main score of a metric, with its name."""
    if name == "retrieval":
        forward, backward = (f"{scores[way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))
        return f"accuracy@1 {forward} anchor → positive, {backward} positive → anchor"
    measure, form = _FIGURES[name]
    return form.format(scores.get("forward", scores)[measure])


@ray.remote(num_cpus=1)
def score(
    uri: str,
    testing: pairs.Pairs,
    metrics: dict[str, Metric],
    sets: Mapping[str, Any] = MappingProxyType({}),
    is_timed: bool = False,
) -> dict[str, Measured]:
    """Each metric of the embedder, or any encoder, in the folder, and each probe of `sets` on its test set.

    With `is_timed` also the speed and, of a nested embedder, retrieval at its widths and depths. On the GPU that Ray gives the
    task, if it gives one.
    """
    embedder = Embedder.load_for_inference(uri)
    once = EncodesOnce(embedder)
    found = {name: metric(once, testing) for name, metric in metrics.items()}
    found |= {name: PROBES[name].measure(once, test_set) for name, test_set in sets.items()}
    if is_timed and testing:
        found["speed"] = Measured(scores=speed(embedder, [*testing.anchors, *testing.positives]))
        if embedder.spec.layers or len(embedder.dimensions) > 1:
            found["nested"] = Measured(scores=nested(embedder, once, testing))
    return found


def main(config: ScionConfig, console: Console) -> None:
    """Scores the finished models."""
    stage(config, finished_models(config)).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
