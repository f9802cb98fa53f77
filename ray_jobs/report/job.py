"""`scion report`: writes `report.html` and `summary.json` from finished stages, and prints the main numbers."""

import json
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.artifacts import artifact, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ArtifactError
from ray_jobs import embed, evaluate, merge, pretrain, serve, shard, transfer
from ray_jobs.config.load import save_config, to_dict, to_yaml
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.job import Job
from ray_jobs.report import page, plots
from ray_jobs.report.score_tables import ScoreTable, marks_note, score_tables
from ray_jobs.report.summary import Summary, before_and_after, summarize, to_json
from ray_jobs.stage import Stage, require, starts

JOB = Job(
    summary="report.html and summary.json from finished stages",
    reads="the artefacts that the jobs before it have made",
    writes="OUTPUT/report.html and OUTPUT/summary.json",
    keys=("test_pairs",),
    after=("shard", "transfer", "pretrain", "embed", "merge", "evaluate", "serve"),
    instead=("embed.model", "evaluate.models"),
)
KIND = "report"
PAGE, SUMMARY = "report.html", "summary.json"


def finished_specs(config: ScionConfig) -> dict[str, Spec]:
    """The specs of the finished artefacts, by the name of the stage in the summary."""
    specs: dict[str, Spec] = {}
    if config.has_transfer:
        specs["shard"] = shard.spec(config)
        for start in starts(config):
            specs[storage.join(start.folder, "transfer")] = transfer.spec(config, start)
            specs[storage.join(start.folder, "pretrain")] = pretrain.spec(config, start)
    if config.first_model:
        specs |= {storage.join(start.folder, "embed"): embed.spec(config, start) for start in starts(config)}
        specs["serve"] = serve.spec(config)
    if config.merge.models or config.has_transfer:
        specs["merge"] = merge.spec(config)
    specs["evaluate"] = evaluate.spec(config, evaluate.finished_models(config))
    return {name: spec for name, spec in specs.items() if artifact.find(spec, replace=name == "evaluate") is not None}


def stage(config: ScionConfig, specs: dict[str, Spec]) -> Stage:
    """The stage that reports on the artefacts of `specs`, by the name of the stage in the summary."""
    report_spec = Spec(uri=config.at("report"), kind=KIND, config={}, inputs={name: spec.id for name, spec in specs.items()})
    return Stage(name="report", spec=report_spec, fill=partial(fill, config, specs), is_derived=True)


def fill(config: ScionConfig, specs: dict[str, Spec], draft: Draft, report: Reporter) -> str:
    """Writes the page and the summary to the output folder, where users look; `report/` only records that it is done."""
    write(config, specs)
    return f"{PAGE} and {SUMMARY}"


def write(config: ScionConfig, specs: dict[str, Spec]) -> Summary:
    """Builds both files from finished stages.

    Raises:
        ArtifactError: a stage is missing.
    """
    artifacts = {name: artifact.read(require(spec, name), spec.kind, name) for name, spec in specs.items()}
    folders = {start.name: start.folder for start in starts(config)}
    summary = summarize(artifacts, folders, to_dict(config))
    resolved = to_yaml(config)
    save_config(config)
    storage.write_bytes(config.at(PAGE), page.render(summary, resolved).encode())
    storage.write_bytes(config.at(SUMMARY), to_json(summary))
    return summary


def needs_ray(config: ScionConfig) -> bool:
    """False: the job only reads finished artefacts."""
    return False


def main(config: ScionConfig, console: Console) -> None:
    """Reports on what is finished; a transfer needs its shards, an embedder of a given model any stage."""
    specs = finished_specs(config)
    if config.has_transfer:
        require(shard.spec(config), "shard")
    elif not specs:
        raise ArtifactError("no stage is finished.", config.output, "Run `scion embed` or `scion evaluate` first.")
    stage(config, specs).run(console)
    show(config, specs, console)


def show(config: ScionConfig, specs: dict[str, Spec], console: Console) -> None:
    """Prints the main numbers and the path of the page. Rewrites files that were removed."""
    files_exist = all(storage.exists(config.at(name)) for name in (PAGE, SUMMARY))
    summary = json.loads(storage.read_bytes(config.at(SUMMARY))) if files_exist else write(config, specs)
    if summary["retrieval"]:
        console.print(retrieval_table(summary))
    if summary["bits_per_byte"]:
        console.print(bits_table(summary))
    for table in [*score_tables(summary), *page.language_tables(summary)]:
        console.print(score_table(table))
    if marks := marks_note(summary):
        console.print(Text(marks))
    console.print(Text(f"report: {config.at(PAGE)}"))


def retrieval_table(summary: Summary) -> Table:
    """The terminal's table of accuracy@1 and MRR@10 by model and direction, the best values in bold. Prints nothing."""
    table = Table(title=f"retrieval on {summary['pairs']:,} held-out pairs", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for way in (plots.FORWARD, plots.BACKWARD):
        for metric in ("accuracy@1", "MRR@10"):
            # Three short lines, so the table fits into 80 columns.
            table.add_column(way.replace("→ ", "→\n") + f"\n{metric}", justify="right", no_wrap=True)
    for row in page.retrieval_rows(summary):
        cells = (Text(text + mark, style="bold" if best else "") for text, best, _, mark in row["cells"])
        table.add_row(row["model"], *cells)
    return table


def score_table(content: ScoreTable) -> Table:
    """The terminal's table of a metric. Prints nothing."""
    table = Table(title=content.title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(content.columns[0], no_wrap=True)
    for column in content.columns[1:]:
        table.add_column(column.replace(", ", "\n"), justify="right", no_wrap=True)
    for name, *cells in content.rows:
        table.add_row(name, *(cell.replace(", ", "\n") for cell in cells))
    return table


def bits_table(summary: Summary) -> Table:
    """The terminal's table of held-out bits per byte by start, before and after pretraining. Prints nothing."""
    table = Table("start", title="bits per byte of held-out text", title_justify="left", box=SIMPLE_HEAD)
    ends = {start: before_and_after(summary, start) for start in summary["bits_per_byte"]}
    for step, _ in next(iter(ends.values())):
        table.add_column(f"step {step:,}", justify="right")
    for start, values in ends.items():
        table.add_row(start, *(f"{value:.3f}" for _, value in values))
    return table
