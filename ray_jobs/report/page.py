"""The report as one HTML file that asks for nothing from outside: styles and images are inside."""

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
    """The page. Equal arguments give equal bytes.

    Args:
        summary: what `summary.summarize` made, also when it was read back from `summary.json`.
        config_yaml: the resolved configuration as it stands in `config.yaml`.
    """
    return filled(
        "template.html.j2",
        summary=summary,
        config=summary["config"],
        config_yaml=config_yaml,
        command=f"scion pipeline {shlex.quote(storage.join(summary['config']['output'], 'config.yaml'))}",
        headlines=headlines(summary),
        figures=figures(summary),
        rows=retrieval_rows(summary),
        languages=language_tables(summary),
        facts=facts(summary),
        changes=[f"{stage} {describe(one)}" for stage, made in summary["changes"].items() for one in made],
        best=plots.model_label(best(summary)) if summary["retrieval"] else "",
        same_start=starts(summary) == ("random",),
        compared=len(starts(summary)) > 1,
        forward=plots.FORWARD,
        backward=plots.BACKWARD,
        vocabulary=sum(summary["provenance"][starts(summary)[-1]].values()) if starts(summary) else 0,
    )


def filled(template: str, **values: Any) -> str:
    """A template of this package with its values."""
    # StrictUndefined: a name that the template misspells should fail here, not leave a hole in the page.
    environment = Environment(
        loader=PackageLoader(__package__ or "", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def headlines(summary: Summary) -> list[dict[str, Any]]:
    """The numbers at the top, each with what it is to be compared with."""
    found = [*_accuracies(summary), *_bits(summary)]
    old, new = (summary["fertility"][name]["pieces_per_word"] for name in ("source", "target"))
    against = [f"old tokenizer {old:.2f}"]
    return [*found, {"label": "pieces per word", "of": "new tokenizer", "value": f"{new:.2f}", "against": against}]


def _accuracies(summary: Summary) -> list[dict[str, Any]]:
    scores, found = summary["retrieval"], []
    if not scores:
        return []
    own = best(summary)
    rivals = {"source_model": "source model", f"random_{own.partition('_')[2]}": "random control"}
    for way, label in (("forward", plots.FORWARD), ("backward", plots.BACKWARD)):
        against = [
            f"{name} {scores[model][way]['accuracy_at_1']:.3f}"
            for model, name in rivals.items()
            if model in scores and model != own
        ]
        value = f"{scores[own][way]['accuracy_at_1']:.3f}"
        found.append({"label": "accuracy@1", "of": label, "value": value, "against": against})
    return found


def _bits(summary: Summary) -> list[dict[str, Any]]:
    ends = {start: before_and_after(summary, start)[1] for start in summary["bits_per_byte"]}
    if not ends:
        return []
    step, own = ends.pop(list(ends)[-1])
    against = [f"random control {other:.3f}" for _, other in ends.values()] or ["less is better"]
    return [{"label": "bits per byte", "of": f"held-out text, step {step:,}", "value": f"{own:.3f}", "against": against}]


def retrieval_rows(summary: Summary) -> list[dict[str, Any]]:
    """The table of retrieval; a cell is (text, whether it is the best of its column, its interval)."""
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
    """Empty for what was evaluated before there were intervals."""
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageTable:
    """A row a language; the first column is its name."""

    title: str
    reading: str
    columns: list[str]
    rows: list[list[str]]


def language_tables(summary: Summary) -> list[LanguageTable]:
    """What text and pairs of each language gave, in two tables that fit a page and a terminal; none where there is one
    language."""
    rows = languages(summary)
    if len(rows) < 2:
        return []
    text = [
        [
            row["lang"],
            _joined(row["pieces"] or (None, None), " → ", "{:.2f}"),
            *(_joined(ends, " → ", "{:.3f}") for ends in row["bits"].values()),
        ]
        for row in rows
    ]
    pairs = [
        [
            row["lang"],
            _joined([row["pairs"]], "", "{:,}"),
            *(_joined(both or (None, None), " / ", "{:.3f}") for both in row["accuracy"].values()),
        ]
        for row in rows
    ]
    models = [f"accuracy@1, {plots.model_label(model)}" for model in rows[0]["accuracy"]]
    tables = [
        LanguageTable(
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
        LanguageTable(
            title=f"pairs by language: {plots.FORWARD} / {plots.BACKWARD}",
            reading=f"Held-out pairs, and accuracy@1 {plots.FORWARD} / {plots.BACKWARD} among the pairs of the language.",
            columns=["language", "pairs", *models],
            rows=pairs,
        ),
    ]


def _joined(values: Sequence[float | None], mark: str, form: str) -> str:
    """Numbers in a cell of the table by language; "none" where there is no text or no pair to take them from."""
    return "none" if None in values else mark.join(form.format(value) for value in values)


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What the run worked on, as a table of names and values."""
    data, serve = summary["data"], summary["serve"]
    found = [
        ("Documents", _fates(data["documents"])),
        ("Packed rows", f"{data['rows']['rows']:,} of {summary['config']['shard']['length']} tokens "
                        f"({data['tokens']:,} tokens, {data['padding_share']:.1%} padding)"),
        ("Held-out rows", f"{data['rows']['heldout']:,}"),
    ]  # fmt: skip
    if summary["pairs"]:
        found.append(("Held-out pairs", f"{summary['pairs']:,}"))
    if summary["parameters"]:
        found.append(("Parameters", f"{summary['parameters']:,} after the transfer, language-model head included"))
    if summary["merged_models"]:
        found.append(("Merged model", f"the average of {summary['merged_models']} embedders"))
    if serve:
        found.append(
            ("Served", f"{serve['requests']:,} requests answered; largest difference of a number from Embedder.encode: "
                       f"{serve['max_abs_diff']:.1e}")
        )  # fmt: skip
    return [*found, ("Data set id", str(data["dataset"]))]


def _fates(documents: Mapping[str, int]) -> str:
    dropped = {"empty": "empty", "duplicate": "duplicate", "in_heldout": "also in the held-out text"}
    parts = [f"{documents[name]:,} {text}" for name, text in dropped.items() if documents.get(name)]
    kept = f"{documents['train']:,} for training, {documents['heldout']:,} held out"
    return f"{kept}; dropped: {', '.join(parts)}" if parts else kept
