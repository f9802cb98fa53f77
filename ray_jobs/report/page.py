"""Renders the report as one self-contained HTML file: styles and images are inline."""

import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from data_pipeline.artifacts import storage
from ray_jobs.report import plots
from ray_jobs.report.figures import figures
from ray_jobs.report.score_tables import ScoreTable, interval_text, join, mark, marks_note, score_tables
from ray_jobs.report.summary import MODELS, Summary, before_and_after, best, languages, model_label, models, starts
from trainer.engine.changes import describe

_COLUMNS = tuple((way, metric) for way in ("forward", "backward") for metric in ("accuracy_at_1", "mrr_at_10"))


def render(summary: Summary, config_yaml: str) -> str:
    """Renders the page. Equal arguments give equal bytes.

    Args:
        summary: the result of `summary.summarize`, or the content of `summary.json`.
        config_yaml: the resolved config as in `config.yaml`.
    """
    config = summary["config"]
    given = config.get("embed", {}).get("model")
    return fill_template(
        "template.html.j2",
        summary=summary,
        config=config,
        grafted=given is None and bool(config["source_model"]),
        source=given or config["source_model"],
        trained=bool(summary["loss"]["embed"]),
        others=any(model not in MODELS for model in models(summary)),
        config_yaml=config_yaml,
        command=_command(summary),
        headlines=headlines(summary),
        figures=figures(summary),
        rows=retrieval_rows(summary),
        scores=score_tables(summary),
        marks=marks_note(summary),
        languages=language_tables(summary),
        facts=facts(summary),
        changes=[f"{stage} {describe(change)}" for stage, changes in summary["changes"].items() for change in changes],
        best=model_label(best(summary)) if summary["retrieval"] else "",
        same_start=starts(summary) == ("random",),
        compared=len(starts(summary)) > 1,
        forward=plots.FORWARD,
        backward=plots.BACKWARD,
        vocabulary=sum(summary["provenance"][starts(summary)[-1]].values()) if starts(summary) else 0,
    )


def _command(summary: Summary) -> str:
    """What reproduces the run: the pipeline, or the jobs of an embedder of a given model."""
    path = shlex.quote(storage.join(summary["config"]["output"], "config.yaml"))
    own = [job for job in ("mine", "embed", "merge", "evaluate") if job in summary["seconds"]]
    return " && ".join(f"scion {job} {path}" for job in (["pipeline"] if summary["data"] else [*own, "report"]))


def fill_template(template: str, **values: Any) -> str:
    """Renders a template of this package."""
    # StrictUndefined: a misspelt name in a template fails here instead of leaving a hole in the page.
    environment = Environment(
        loader=PackageLoader(__package__ or "", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def headlines(summary: Summary) -> list[dict[str, Any]]:
    """The numbers at the top, each with the numbers to compare it with."""
    entries = [*_accuracies(summary), *_bits(summary)]
    if not summary["fertility"]:
        return entries
    old, new = (summary["fertility"][name]["pieces_per_word"] for name in ("source", "target"))
    against = [f"old tokenizer {old:.2f}"]
    return [*entries, {"label": "pieces per word", "of": "new tokenizer", "value": f"{new:.2f}", "against": against}]


def _accuracies(summary: Summary) -> list[dict[str, Any]]:
    """The headlines on accuracy@1 of the best model, by direction, each with its rivals' values; none without scores."""
    scores, entries = summary["retrieval"], []
    if not scores:
        return []
    best_model = best(summary)
    rivals = {"source_model": "source model", f"random_{best_model.partition('_')[2]}": "random control"}
    for way, label in (("forward", plots.FORWARD), ("backward", plots.BACKWARD)):
        against = [
            f"{name} {scores[model][way]['accuracy_at_1']:.3f}"
            for model, name in rivals.items()
            if model in scores and model != best_model
        ]
        value = f"{scores[best_model][way]['accuracy_at_1']:.3f}"
        entries.append({"label": "accuracy@1", "of": label, "value": value, "against": against})
    return entries


def _bits(summary: Summary) -> list[dict[str, Any]]:
    ends = {start: before_and_after(summary, start)[1] for start in summary["bits_per_byte"]}
    if not ends:
        return []
    step, value = ends.pop(list(ends)[-1])
    against = [f"random control {other:.3f}" for _, other in ends.values()] or ["lower is better"]
    return [{"label": "bits per byte", "of": f"held-out text, step {step:,}", "value": f"{value:.3f}", "against": against}]


def retrieval_rows(summary: Summary) -> list[dict[str, Any]]:
    """The retrieval table; a cell is (text, whether it is the best of its column, interval, mark of a difference)."""
    apart = summary.get("differences", {}).get("retrieval", {})
    scores = summary["retrieval"]
    best = {(way, name): max((scores[model][way][name] for model in models(summary)), default=0.0) for way, name in _COLUMNS}

    def cell(model: str, way: str, name: str) -> tuple[str, bool, str, str]:
        own = scores[model][way]
        sign = mark(apart.get(model, {}).get(way, {}).get(name))
        return f"{own[name]:.3f}", own[name] == best[way, name], interval_text(own.get(f"{name}_interval")), sign

    return [{"model": model_label(model), "cells": [cell(model, *column) for column in _COLUMNS]} for model in models(summary)]


def language_tables(summary: Summary) -> list[ScoreTable]:
    """The results by language, in one table for text and one for pairs; empty for a single language.

    Two tables fit a page and a terminal.
    """
    rows = languages(summary)
    if len(rows) < 2:
        return []
    text = [
        [
            row["lang"],
            join(row["pieces"] or (None, None), " → ", "{:.2f}"),
            *(join(ends, " → ", "{:.3f}") for ends in row["bits"].values()),
        ]
        for row in rows
    ]
    pairs = [
        [
            row["lang"],
            join([row["pairs"]], "", "{:,}"),
            *(join(both or (None, None), " / ", "{:.3f}") for both in row["accuracy"].values()),
        ]
        for row in rows
    ]
    models = [f"accuracy@1, {model_label(model)}" for model in rows[0]["accuracy"]]
    tables = [
        ScoreTable(
            title="text by language, before → after",
            reading="Pieces per word, old → new tokenizer; bits per byte of held-out text, before → after training.",
            columns=["language", "pieces per word", *(f"bits per byte, {start}" for start in rows[0]["bits"])],
            rows=text,
        )
    ]
    if not summary["pairs"]:
        return tables
    return [
        *tables,
        ScoreTable(
            title=f"pairs by language: {plots.FORWARD} / {plots.BACKWARD}",
            reading=f"Held-out pairs, and accuracy@1 {plots.FORWARD} / {plots.BACKWARD} among the pairs of the language.",
            columns=["language", "pairs", *models],
            rows=pairs,
        ),
    ]


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Facts about the data and the models of the run, as (name, value)."""
    data, serve = summary["data"], summary["serve"]
    entries = []
    if data:
        tokens = f"{data['tokens']:,} tokens, {data['padding_share']:.1%} padding"
        entries = [
            ("Documents", _fates(data["documents"])),
            ("Packed rows", f"{data['rows']['rows']:,} of {summary['config']['shard']['length']} tokens ({tokens})"),
            ("Held-out rows", f"{data['rows']['heldout']:,}"),
            ("Data set id", str(data["dataset"])),
        ]
    if summary["pairs"]:
        entries.append(("Held-out pairs", f"{summary['pairs']:,}"))
    if summary["parameters"]:
        entries.append(("Parameters", f"{summary['parameters']:,} after the transfer, language-model head included"))
    if summary["merged_models"]:
        entries.append(("Merged model", f"from {summary['merged_models']} embedders"))
    if serve:
        entries.append(
            (
                "Served",
                f"{serve['requests']:,} requests answered; largest difference from Embedder.encode: "
                f"{serve['max_abs_diff']:.1e}",
            )
        )
    return entries


def _fates(documents: Mapping[str, int]) -> str:
    dropped = {"empty": "empty", "duplicate": "duplicate", "in_heldout": "also in the held-out text"}
    parts = [f"{documents[name]:,} {text}" for name, text in dropped.items() if documents.get(name)]
    split = f"{documents['train']:,} for training, {documents['heldout']:,} held out"
    return f"{split}; dropped: {', '.join(parts)}" if parts else split
