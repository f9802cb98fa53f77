"""Renders the report as one self-contained HTML file: styles and images are inline."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from data_pipeline.artifacts import storage
from ray_jobs.report import plots
from ray_jobs.report.figures import figures
from ray_jobs.report.summary import Summary, before_and_after, best, languages, models, starts
from trainer.engine.changes import describe

_COLUMNS = tuple((way, metric) for way in ("forward", "backward") for metric in ("accuracy_at_1", "mrr_at_10"))


def render(summary: Summary, config_yaml: str) -> str:
    """Renders the page. Equal arguments give equal bytes.

    Args:
        summary: the result of `summary.summarize`, or the content of `summary.json`.
        config_yaml: the resolved config as in `config.yaml`.
    """
    return fill_template(
        "template.html.j2",
        summary=summary,
        config=summary["config"],
        config_yaml=config_yaml,
        command=f"scion pipeline {shlex.quote(storage.join(summary['config']['output'], 'config.yaml'))}",
        headlines=headlines(summary),
        figures=figures(summary),
        rows=retrieval_rows(summary),
        scores=score_tables(summary),
        languages=language_tables(summary),
        facts=facts(summary),
        changes=[f"{stage} {describe(change)}" for stage, changes in summary["changes"].items() for change in changes],
        best=plots.model_label(best(summary)) if summary["retrieval"] else "",
        same_start=starts(summary) == ("random",),
        compared=len(starts(summary)) > 1,
        forward=plots.FORWARD,
        backward=plots.BACKWARD,
        vocabulary=sum(summary["provenance"][starts(summary)[-1]].values()) if starts(summary) else 0,
    )


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
    """The retrieval table; a cell is (text, whether it is the best of its column, interval)."""
    scores = {model: [(summary["retrieval"][model][way], metric) for way, metric in _COLUMNS] for model in models(summary)}
    best = [max(way[metric] for way, metric in column) for column in zip(*scores.values(), strict=True)]
    return [
        {
            "model": plots.model_label(model),
            "cells": [
                (f"{way[metric]:.3f}", way[metric] == top, _interval(way.get(f"{metric}_interval")))
                for (way, metric), top in zip(row, best, strict=True)
            ],
        }
        for model, row in scores.items()
    ]


def _interval(ends: Sequence[float] | None) -> str:
    """Empty for artefacts of versions without intervals."""
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """A table with one record per language or model; the first column is its name."""

    title: str
    reading: str
    columns: list[str]
    rows: list[list[str]]


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
            _join(row["pieces"] or (None, None), " → ", "{:.2f}"),
            *(_join(ends, " → ", "{:.3f}") for ends in row["bits"].values()),
        ]
        for row in rows
    ]
    pairs = [
        [
            row["lang"],
            _join([row["pairs"]], "", "{:,}"),
            *(_join(both or (None, None), " / ", "{:.3f}") for both in row["accuracy"].values()),
        ]
        for row in rows
    ]
    models = [f"accuracy@1, {plots.model_label(model)}" for model in rows[0]["accuracy"]]
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


def score_tables(summary: Summary) -> list[ScoreTable]:
    """The scores beside retrieval, one table for each metric that was measured."""
    measured = summary.get("scores", {})  # not in summaries of versions without these metrics
    tables = {"ranking": _ranking_table, "isotropy": _isotropy_table, "sts": _similarity_table}
    return [
        table({plots.model_label(model): scores for model, scores in measured[name].items()})
        for name, table in tables.items()
        if name in measured
    ]


def _ranking_table(scores: Mapping[str, Any]) -> ScoreTable:
    ways = next(iter(scores.values())).values()
    documents = " and ".join(f"{way['documents']:,}" for way in ways)
    columns = {"nDCG@10": "ndcg_at_10", "MAP@100": "map_at_100", "recall@100": "recall_at_100"}
    return ScoreTable(
        title=f"ranking: {plots.FORWARD} / {plots.BACKWARD}",
        reading=f"{plots.FORWARD} / {plots.BACKWARD}, among {documents} documents, hard negatives included. "
        "summary.json has the 95% intervals.",
        columns=["model", *columns],
        rows=[
            [model, *(_join([way[name] for way in ways.values()], " / ", "{:.3f}") for name in columns.values())]
            for model, ways in scores.items()
        ],
    )


def _isotropy_table(scores: Mapping[str, Any]) -> ScoreTable:
    return ScoreTable(
        title="isotropy: anchors / positives",
        reading="Anchors / positives. IsoScore is 1 if the vectors vary equally in all directions, 0 if in one; the mean "
        "cosine is that of any two texts.",
        columns=["model", "IsoScore", "mean cosine"],
        rows=[
            [model, *(_join([side[name] for side in sides.values()], " / ", "{:.3f}") for name in ("isoscore", "mean_cosine"))]
            for model, sides in scores.items()
        ],
    )


def _similarity_table(scores: Mapping[str, Any]) -> ScoreTable:
    pairs = next(iter(scores.values()))["pairs"]
    return ScoreTable(
        title=f"similarity on {pairs:,} sentence pairs",
        reading=f"The correlation of the cosine with the gold score of {pairs:,} sentence pairs, and Spearman's 95% interval.",
        columns=["model", "Spearman", "95% interval", "Pearson"],
        rows=[
            [model, f"{own['spearman']:.3f}", _interval(own["spearman_interval"]), f"{own['pearson']:.3f}"]
            for model, own in scores.items()
        ],
    )


def _join(values: Sequence[float | None], mark: str, form: str) -> str:
    """The numbers of a cell as text; "none" where one is missing."""
    return "none" if None in values else mark.join(form.format(value) for value in values)


def facts(summary: Summary) -> list[tuple[str, str]]:
    """Facts about the data and the models of the run, as (name, value)."""
    data, serve = summary["data"], summary["serve"]
    entries = [
        ("Documents", _fates(data["documents"])),
        (
            "Packed rows",
            f"{data['rows']['rows']:,} of {summary['config']['shard']['length']} tokens "
            f"({data['tokens']:,} tokens, {data['padding_share']:.1%} padding)",
        ),
        ("Held-out rows", f"{data['rows']['heldout']:,}"),
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
    return [*entries, ("Data set id", str(data["dataset"]))]


def _fates(documents: Mapping[str, int]) -> str:
    dropped = {"empty": "empty", "duplicate": "duplicate", "in_heldout": "also in the held-out text"}
    parts = [f"{documents[name]:,} {text}" for name, text in dropped.items() if documents.get(name)]
    split = f"{documents['train']:,} for training, {documents['heldout']:,} held out"
    return f"{split}; dropped: {', '.join(parts)}" if parts else split
