"""`scion report`: `report.html` and `summary.json` from finished stages, and the numbers in the terminal."""

import dataclasses
import json
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline import artifact, storage
from data_pipeline.artifact import Draft, Plan
from ray_jobs import embed, evaluate, merge, pretrain, serve, shard, transfer
from ray_jobs.config import ScionConfig, to_yaml
from ray_jobs.console import Reporter
from ray_jobs.report import page, plots
from ray_jobs.report.summary import Summary, before_and_after, distinct_starts, summarize, to_json
from ray_jobs.stage import Stage, control, need, transferred

KIND = "report"
PAGE, SUMMARY = "report.html", "summary.json"


def plan(config: ScionConfig) -> Plan:
    inputs = {name: read.id for name, (read, _) in reads(config).items()}
    return Plan(uri=config.at("report"), kind=KIND, config={}, inputs=inputs)


def reads(config: ScionConfig) -> dict[str, tuple[Plan, str]]:
    """What the report is made of: a plan, and the job that makes it, by the name of the stage in the summary."""
    found = {"shard": (shard.plan(config), "shard")}
    for name, plan_of in (("transfer", transfer.plan), ("pretrain", pretrain.plan), ("embed", embed.plan)):
        for start in (transferred(config), control(config)):
            # The jobs make the user's chain; the control beside it is the pipeline's.
            made_by = "pipeline" if start.folder else name
            found[storage.join(start.folder, name)] = (plan_of(config, start), made_by)
    for name, single in (("merge", merge.plan), ("evaluate", evaluate.plan), ("serve", serve.plan)):
        # `scion serve` serves until it is stopped and leaves nothing behind.
        found[name] = (single(config), "pipeline" if name == "serve" else name)
    return found


def stage(config: ScionConfig) -> Stage:
    return Stage(name="report", plan=plan(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes the page and the summary into the output folder, where users look; `report/` only says that it is done."""
    write(config)
    return f"{PAGE} and {SUMMARY}"


def write(config: ScionConfig) -> Summary:
    """Builds both files from the finished stages.

    Raises:
        ArtifactError: a stage is missing.
    """
    found = {}
    for name, (read, made_by) in reads(config).items():
        found[name] = artifact.read(need(read, made_by), read.kind, made_by)
    folders = {start.name: start.folder for start in (control(config), transferred(config))}
    summary = summarize(found, folders, dataclasses.asdict(config))
    resolved = to_yaml(config)
    storage.write_bytes(config.at("config.yaml"), resolved.encode())
    storage.write_bytes(config.at(PAGE), page.render(summary, resolved).encode())
    storage.write_bytes(config.at(SUMMARY), to_json(summary))
    return summary


def needs_ray(config: ScionConfig) -> bool:
    """It only reads what is finished."""
    return False


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)
    show(config, console)


def show(config: ScionConfig, console: Console) -> None:
    """The numbers that a user asks for first, and where the rest is. Files that somebody removed are written again."""
    there = all(storage.exists(config.at(name)) for name in (PAGE, SUMMARY))
    summary = json.loads(storage.read_bytes(config.at(SUMMARY))) if there else write(config)
    console.print(retrieval_table(summary), bits_table(summary), sep="\n")
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
        table.add_row(row["model"], *(Text(text, style="bold" if best else "") for text, best in row["cells"]))
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
    ends = {start: before_and_after(summary, start) for start in distinct_starts(summary)}
    for step, _ in next(iter(ends.values())):
        table.add_column(f"step {step:,}", justify="right")
    for start, values in ends.items():
        table.add_row(start, *(f"{value:.3f}" for _, value in values))
    return table
