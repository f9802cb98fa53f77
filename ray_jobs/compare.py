"""`scion compare`: compares methods on the user's own model and text, with the same shards, steps and seeds.

A cell of the comparison is one start with one seed: transferred, scored, trained, and scored during and after the training.
Only its numbers are kept, as an artefact of its own, so that an interrupted comparison resumes.
"""

import dataclasses
import json
from functools import partial

import ray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.sources.models import model_folder
from ray_jobs import evaluate, pretrain, shard, transfer
from ray_jobs.compared_runs import compared_configs, run_descriptions
from ray_jobs.config.load import to_dict, to_yaml
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import ask_once, data_fingerprints
from ray_jobs.job import Job
from ray_jobs.report import comparison
from ray_jobs.report.comparison import Comparison
from ray_jobs.stage import ChainStart, Stage
from trainer.evaluation.retrieval import Retrieval
from trainer.models import loading
from trainer.transfer.problem import Placement, assemble

JOB = Job(
    summary="methods side by side on your model and text",
    reads="OUTPUT/shards (made first if missing), source_model and test_pairs",
    writes="OUTPUT/compare.json, and OUTPUT/compare.html with the curves",
    keys=("source_model", "pairs", "test_pairs", "compare", "transfer", "pretrain"),
    after=("shard",),
)
CELL = "comparison cell"
TRAINED = "trained"
"""Folder of the training below a cell."""
PAGE, NUMBERS = "compare.html", "compare.json"


def main(config: ScionConfig, console: Console) -> None:
    """Runs unfinished cells, writes `compare.json` and `compare.html`, and prints the table."""
    config = _evaluated_on_the_way(config)
    ordered = stages(config)
    for one in ordered.values():
        one.finished()
    shard.stage(config).run(console)
    cells = {key: one.run(console) for key, one in ordered.items()}
    result = comparison.compare({key: cell.metrics for key, cell in cells.items()})
    write(config, result, next(iter(cells.values())).versions)
    console.print(table(result))
    if flat := comparison.flat_curves(result):
        console.print(Text(flat))
    console.print(Text(f"report: {config.at(PAGE)}"))


@ask_once()
def stages(config: ScionConfig) -> dict[tuple[str, int], Stage]:
    """The cells' stages by name and seed. A method's placement does not depend on the seed, so that it is made once.

    A specification hashes the model and the texts, so that each is made once.
    """
    known: dict[str, Placement] = {}
    found = {}
    for name, run in compared_configs(config).items():
        own = _evaluated_on_the_way(run)
        for seed in config.compare.seeds:
            start = ChainStart(name=f"{name} {seed}", method=own.method, folder=f"compare/{name}-{seed}", seed=seed)
            planned = spec(own, start)
            found[name, seed] = Stage(
                name=f"compare {start.name}",
                spec=planned,
                fill=partial(fill, own, name, start, planned, known),
                is_resumable=True,
                training_uri=storage.join(planned.uri, TRAINED),
            )
    return found


def spec(config: ScionConfig, start: ChainStart) -> Spec:
    of_transfer = transfer.spec(config, start)
    settings = {"transfer": of_transfer.config["transfer"], "pretrain": artifact.identity(config.pretrain)}
    settings["evaluate_steps"] = config.pretrain.train.evaluate_steps  # curves are compared point by point
    inputs = of_transfer.inputs | data_fingerprints(config, "test_pairs")
    return Spec(uri=config.at(start.folder), kind=CELL, config=settings, inputs=inputs)


def fill(
    config: ScionConfig, name: str, start: ChainStart, own: Spec, known: dict[str, Placement], draft: Draft, report: Reporter
) -> str:
    """Transfers, trains and scores; keeps the numbers only. Returns a line for the user."""
    model, trained, cache = (storage.join(draft.uri, name) for name in ("model", TRAINED, "source"))
    report(start.method, 0, 1)
    problem = transfer.make_problem(config, start.seed, cache, report.part(start.method), report.note)
    if name not in known:
        known[name] = transfer.place(config, start.method, problem)
    plan = assemble(problem, known[name], start.method)
    transfer.write(config, problem, plan, model)
    training = dataclasses.replace(own, uri=trained)
    result = pretrain.train_on_shards(config, model, plan, start.seed, training, draft, report)
    testing = pairs.load(config.test_pairs, cache, key="test_pairs")
    report("retrieve", 0, 1)
    draft.metrics = {
        "bits_per_byte": result["evaluations"],
        "loss": [entry["loss"] for entry in result["history"]],
        "provenance": plan.fates(),
        "placed": plan.placed_by_method(),
        "retrieval": _retrieval(config, testing, {"before": model, "after": trained}),
    }
    for folder in (model, trained, cache):
        storage.remove(folder)
    steps = config.pretrain.train.steps
    return f"{result['evaluations']['0']:.3f} to {result['evaluations'][str(steps)]:.3f} bits per byte in {steps} steps"


def _retrieval(
    config: ScionConfig, testing: pairs.Pairs, models: dict[str, str]
) -> dict[str, dict[str, dict[str, float]]] | None:
    """Scores of encoders on test pairs. A decoder's mean of tokens means nothing before contrastive training."""
    if not testing:
        return None
    with model_folder(config.source_model) as folder:
        if loading.kind_of(folder) != "masked":
            return None
    found = {name: evaluate.score.remote(uri, testing, {"retrieval": Retrieval()}) for name, uri in models.items()}
    return {name: ray.get(score)["retrieval"].scores for name, score in found.items()}


def _evaluated_on_the_way(config: ScionConfig) -> ScionConfig:
    """Scores held-out text ten times in a run unless the user sets `evaluate_steps`, and exports nothing."""
    train = config.pretrain.train
    every = train.evaluate_steps if train.evaluate_steps is not None else max(1, train.steps // 10)
    train = dataclasses.replace(train, evaluate_steps=every, export_steps=None)
    return dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, train=train))


def write(config: ScionConfig, result: Comparison, versions: dict[str, str]) -> None:
    """Writes `compare.json` and `compare.html` into the output folder, with configuration, versions and papers in both.

    `config.yaml` beside them is the pipeline's.
    """
    papers = run_descriptions(config)
    facts = {"config": to_dict(config), "versions": versions, "papers": papers}
    storage.write_bytes(config.at(NUMBERS), (json.dumps(dataclasses.asdict(result) | facts, indent=2) + "\n").encode())
    storage.write_bytes(config.at(PAGE), comparison.render(result, papers, config.source_model, to_yaml(config)).encode())


def table(result: Comparison) -> Table:
    """The ranking for the terminal."""
    shown = Table(title=comparison.TITLE.format(made=result), title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name in result.columns:
        # Two short lines, so that the table fits a terminal of 80 columns.
        shown.add_column(name.replace(" ", "\n"), justify="left" if name == "start" else "right", no_wrap=True)
    for row in result.rows:
        shown.add_row(*comparison.cells(result, row))
    return shown


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
