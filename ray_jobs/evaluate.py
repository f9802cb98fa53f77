"""`scion evaluate`: retrieval on the held-out pairs for every model of the chain and of its random control."""

from collections import Counter
from functools import partial

import ray
from rich.console import Console

from data_pipeline import storage
from data_pipeline.artifact import Draft, Plan
from data_pipeline.pairs import rows as pairs
from data_pipeline.sources import documents
from ray_jobs import embed, merge, pretrain, transfer
from ray_jobs.config import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import model_fingerprint
from ray_jobs.stage import Stage, control, need, transferred
from trainer.embedder import Embedder
from trainer.evaluation import retrieval

KIND = "evaluation"


def models(config: ScionConfig) -> dict[str, Plan | str]:
    """What is compared, by its name in the report: a folder, or the plan of an artefact."""
    random, own = control(config), transferred(config)
    return {
        "source_model": config.source_model,
        "random_untrained": transfer.plan(config, random),
        "random_pretrained": pretrain.plan(config, random),
        "random_trained": embed.plan(config, random),
        "transferred_untrained": transfer.plan(config, own),
        "transferred_pretrained": pretrain.plan(config, own),
        "transferred_trained": embed.plan(config, own),
        "merged": merge.plan(config),
    }


def plan(config: ScionConfig) -> Plan:
    inputs = {"test_pairs": documents.fingerprint(config.test_pairs, key="test_pairs")}
    for name, model in models(config).items():
        inputs[name] = model_fingerprint(model) if isinstance(model, str) else model.id
    return Plan(uri=config.at("evaluate"), kind=KIND, config={}, inputs=inputs)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="evaluate", plan=plan(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Scores every model; the numbers are the artefact's metrics."""
    testing = pairs.load(config.test_pairs, storage.join(draft.uri, "source"), key="test_pairs")
    storage.remove(storage.join(draft.uri, "source"))
    compared = models(config)
    uris = {name: m if isinstance(m, str) else need(m, "pipeline") for name, m in compared.items()}
    running = {score.remote(uri, testing): name for name, uri in uris.items()}
    found: dict[str, tuple[retrieval.Ways, dict[str, retrieval.Ways]]] = {}
    while len(found) < len(running):
        report("encode", len(found), len(running))
        done, _ = ray.wait([task for task in running if running[task] not in found], num_returns=1)
        found[running[done[0]]] = ray.get(done[0])
    draft.metrics = {
        "retrieval": {name: whole for name, (whole, _) in found.items()},
        "retrieval_by_language": {name: languages for name, (_, languages) in found.items() if languages},
        "pairs": len(testing),
        "pairs_by_language": dict(sorted(Counter(testing.langs).items())),
    }
    best, _ = found["transferred_trained"]
    forward, backward = (f"{best[way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))
    return f"accuracy@1 {forward} anchor → positive, {backward} positive → anchor"


@ray.remote(num_cpus=1)
def score(uri: str, testing: pairs.Pairs) -> tuple[retrieval.Ways, dict[str, retrieval.Ways]]:
    """Retrieval both ways with the embedder, or any encoder, in the folder; also by language where there are several."""
    return retrieval.evaluate(Embedder.load(uri), testing)


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)
