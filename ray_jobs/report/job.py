"""`scion report`: `report.html` and `summary.json` from finished stages, and the numbers in the terminal."""

import json
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from ray_jobs import embed, evaluate, merge, pretrain, serve, shard, transfer
from ray_jobs.config.load import save_config, to_dict, to_yaml
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.job import Job
from ray_jobs.report import page, plots
from ray_jobs.report.summary import Summary, before_and_after, summarize, to_json
from ray_jobs.stage import Stage, require, starts

JOB = Job(
    summary="report.html and summary.json from finished stages",
    reads="the artefacts that the jobs before it have made",
    writes="OUTPUT/report.html and OUTPUT/summary.json",
    keys=("test_pairs",),
    after=("shard", "transfer", "pretrain", "embed", "merge", "evaluate", "serve"),
)
KIND = "report"
PAGE, SUMMARY = "report.html", "summary.json"


def finished_specs(config: ScionConfig) -> dict[str, Spec]:
    """The finished artefacts by the name of the stage in the summary."""
    found = {"shard": shard.spec(config)}
    for name, plan_of in (("transfer", transfer.spec), ("pretrain", pretrain.spec), ("embed", embed.spec)):
        found |= {storage.join(start.folder, name): plan_of(config, start) for start in starts(config)}
    found |= {"merge": merge.spec(config), "serve": serve.spec(config)}
    found["evaluate"] = evaluate.spec(config, evaluate.finished_models(config))
    return {name: plan for name, plan in found.items() if artifact.find(plan, replace=name == "evaluate") is not None}


def stage(config: ScionConfig, plans: dict[str, Spec]) -> Stage:
    """The report on the artefacts of `plans`, by the name of the stage in the summary."""
    own = Spec(uri=config.at("report"), kind=KIND, config={}, inputs={name: plan.id for name, plan in plans.items()})
    return Stage(name="report", spec=own, fill=partial(fill, config, plans), is_derived=True)


def fill(config: ScionConfig, plans: dict[str, Spec], draft: Draft, report: Reporter) -> str:
    """Writes the page and the summary into the output folder, where users look; `report/` only says that it is done."""
    write(config, plans)
    return f"{PAGE} and {SUMMARY}"


def write(config: ScionConfig, plans: dict[str, Spec]) -> Summary:
    """Builds both files from finished stages.

    Raises:
        ArtifactError: one is missing.
    """
    found = {name: artifact.read(require(plan, name), plan.kind, name) for name, plan in plans.items()}
    folders = {start.name: start.folder for start in starts(config)}
    summary = summarize(found, folders, to_dict(config))
    resolved = to_yaml(config)
    save_config(config)
    storage.write_bytes(config.at(PAGE), page.render(summary, resolved).encode())
    storage.write_bytes(config.at(SUMMARY), to_json(summary))
    return summary


def needs_ray(config: ScionConfig) -> bool:
    """It only reads what is finished."""
    return False


def main(config: ScionConfig, console: Console) -> None:
    plans = finished_specs(config)
    require(shard.spec(config), "shard")
    stage(config, plans).run(console)
    show(config, plans, console)


def show(config: ScionConfig, plans: dict[str, Spec], console: Console) -> None:
    """The numbers that a user asks for first, and where the rest is. Files that somebody removed are written again."""
    files = all(storage.exists(config.at(name)) for name in (PAGE, SUMMARY))
    summary = json.loads(storage.read_bytes(config.at(SUMMARY))) if files else write(config, plans)
    if summary["retrieval"]:
        console.print(retrieval_table(summary))
    if summary["bits_per_byte"]:
        console.print(bits_table(summary))
    for found in page.language_tables(summary):
        console.print(language_table(found))
    console.print(Text(f"report: {config.at(PAGE)}"))


def retrieval_table(summary: Summary) -> Table:
    table = Table(title=f"retrieval on {summary['pairs']:,} held-out pairs", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for way in (plots.FORWARD, plots.BACKWARD):
        for metric in ("accuracy@1", "MRR@10"):
            # Three short lines, so that the table fits a terminal of 80 columns.
            table.add_column(way.replace("→ ", "→\n") + f"\n{metric}", justify="right", no_wrap=True)
    for row in page.retrieval_rows(summary):
        table.add_row(row["model"], *(Text(text, style="bold" if best else "") for text, best, _ in row["cells"]))
    return table


def language_table(found: page.LanguageTable) -> Table:
    table = Table("language", title=found.title, title_justify="left", box=SIMPLE_HEAD)
    for column in found.columns[1:]:
        table.add_column(column.replace(", ", "\n"), justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(*row)
    return table


def bits_table(summary: Summary) -> Table:
    table = Table("start", title="bits per byte of held-out text", title_justify="left", box=SIMPLE_HEAD)
    ends = {start: before_and_after(summary, start) for start in summary["bits_per_byte"]}
    for step, _ in next(iter(ends.values())):
        table.add_column(f"step {step:,}", justify="right")
    for start, values in ends.items():
        table.add_row(start, *(f"{value:.3f}" for _, value in values))
    return table
