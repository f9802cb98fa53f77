"""Tables of the scores beside retrieval, one for each metric, and the marks of differences that are significant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_jobs.report import plots
from ray_jobs.report.summary import Summary, by_model, model_label

BETTER, WORSE = " ▲", " ▼"
_NOTE = (
    "▲ and ▼: better and worse than the first model. The 95% interval of the difference, by paired bootstrap on the same "
    "samples, does not contain 0."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """A table with one record per language or model; the first column is its name."""

    title: str
    reading: str
    columns: list[str]
    rows: list[list[str]]


def score_tables(summary: Summary) -> list[ScoreTable]:
    """The scores beside retrieval, one table for each metric that was measured."""
    # Neither is in summaries of versions without these metrics.
    measured, apart = summary.get("scores", {}), summary.get("differences", {})
    tables = {
        "ranking": _ranking_table,
        "isotropy": _isotropy_table,
        "sts": _similarity_table,
        "classification": _classification_table,
        "clustering": _clustering_table,
        "reranking": _reranking_table,
        "speed": _speed_table,
        "nested": _nested_table,
    }
    return [
        table(
            {model_label(model): scores for model, scores in by_model(measured[name]).items()},
            {model_label(model): found for model, found in apart.get(name, {}).items()},
        )
        for name, table in tables.items()
        if name in measured
    ]


def marks_note(summary: Summary) -> str:
    """What the marks mean; empty if there are none."""
    return _NOTE if any(map(mark, _leaves(summary.get("differences", {})))) else ""


def _leaves(differences: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The differences of all metrics and models."""
    for value in differences.values():
        if "is_significant" in value:
            yield value
        else:
            yield from _leaves(value)


def mark(difference: Mapping[str, Any] | None) -> str:
    """The mark of a difference that is significant; empty for any other, and for the first model itself."""
    if difference is None or not difference["is_significant"]:
        return ""
    return BETTER if difference["difference"] > 0 else WORSE


def interval_text(ends: Sequence[float] | None, form: str = ".3f") -> str:
    """Empty for artefacts of versions without intervals."""
    return "" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """The difference from the first model with its interval and its mark; a dash for the first model itself."""
    if difference is None:
        return "-"
    return f"{difference['difference']:+.3f}, {interval_text(difference['interval'], '+.3f')}{mark(difference)}"


def join(values: Sequence[float | None], separator: str, form: str, marks: Sequence[str] = ()) -> str:
    """The numbers of a cell as text, each with its mark; "none" where one is missing."""
    marks = marks or [""] * len(values)
    texts = [form.format(value) + sign for value, sign in zip(values, marks, strict=True)] if None not in values else ["none"]
    return separator.join(texts)


def _ranking_table(scores: Mapping[str, Any], apart: Mapping[str, Any]) -> ScoreTable:
    """nDCG, MAP and recall in both directions, with the marks of each."""
    ways = _ways(next(iter(scores.values())))
    documents = " and ".join(f"{way['documents']:,}" for way in ways.values())
    columns = {"nDCG@10": "ndcg_at_10", "MAP@100": "map_at_100", "recall@100": "recall_at_100"}

    def cell(model: str, ways: Mapping[str, Any], name: str) -> str:
        marks = [mark(apart.get(model, {}).get(way, {}).get(name)) for way in ways]
        return join([way[name] for way in ways.values()], " / ", "{:.3f}", marks)

    return ScoreTable(
        title=f"ranking: {plots.FORWARD} / {plots.BACKWARD}",
        reading=f"Ranking, {plots.FORWARD} / {plots.BACKWARD}, among {documents} documents, hard negatives included. "
        "summary.json has the 95% intervals.",
        columns=["model", *columns],
        rows=[[model, *(cell(model, _ways(own), name) for name in columns.values())] for model, own in scores.items()],
    )


def _isotropy_table(scores: Mapping[str, Any], _: Mapping[str, Any]) -> ScoreTable:
    """How evenly the vectors of both sides use their dimensions."""
    return ScoreTable(
        title="isotropy: anchors / positives",
        reading="Isotropy, anchors / positives. IsoScore is 1 if the vectors vary equally in all directions, 0 if in one; the "
        "mean cosine is that of any two texts.",
        columns=["model", "IsoScore", "mean cosine"],
        rows=[
            [model, *(join([side[name] for side in sides.values()], " / ", "{:.3f}") for name in ("isoscore", "mean_cosine"))]
            for model, sides in scores.items()
        ],
    )


def _similarity_table(scores: Mapping[str, Any], apart: Mapping[str, Any]) -> ScoreTable:
    """Correlations with gold scores."""
    pairs = next(iter(scores.values()))["pairs"]
    return ScoreTable(
        title=f"similarity on {pairs:,} text pairs",
        reading=f"Similarity: the correlation of the cosine with the gold score of {pairs:,} text pairs. Intervals are of "
        "Spearman's correlation, difference is that from the first model.",
        columns=["model", "Spearman", "95% interval", "difference", "Pearson"],
        rows=_compared(scores, apart, "spearman", "pearson"),
    )


def _classification_table(scores: Mapping[str, Any], apart: Mapping[str, Any]) -> ScoreTable:
    """Accuracy and macro F1 of a classifier on the vectors."""
    sizes = next(iter(scores.values()))
    return ScoreTable(
        title=f"classification of {sizes['test']:,} texts",
        reading=f"Classification: a logistic regression on the vectors of {sizes['train']:,} texts of {sizes['labels']:,} "
        f"labels, measured on {sizes['test']:,} others. Intervals and differences are of the accuracy.",
        columns=["model", "accuracy", "95% interval", "difference", "macro F1"],
        rows=_compared(scores, apart, "accuracy", "f1"),
    )


def _clustering_table(scores: Mapping[str, Any], _: Mapping[str, Any]) -> ScoreTable:
    """V-measure of clusters, mean and deviation over the seeds."""
    sizes = next(iter(scores.values()))
    return ScoreTable(
        title=f"clustering of {sizes['texts']:,} texts",
        reading=f"Clustering of {sizes['texts']:,} texts of {sizes['labels']:,} labels by k-means: mean and standard "
        "deviation over the seeds.",
        columns=["model", "V-measure"],
        rows=[[model, f"{own['v_measure']:.3f} ± {own['v_measure_std']:.3f}"] for model, own in scores.items()],
    )


def _reranking_table(scores: Mapping[str, Any], apart: Mapping[str, Any]) -> ScoreTable:
    """MAP and MRR of given candidates."""
    queries = next(iter(scores.values()))["queries"]
    return ScoreTable(
        title=f"reranking of the candidates of {queries:,} queries",
        reading=f"Reranking of the candidates of {queries:,} queries. Intervals and differences are of the MAP.",
        columns=["model", "MAP", "95% interval", "difference", "MRR@10"],
        rows=_compared(scores, apart, "map", "mrr_at_10"),
    )


def _speed_table(scores: Mapping[str, Any], _: Mapping[str, Any]) -> ScoreTable:
    """Texts and tokens per second."""
    return ScoreTable(
        title="speed of encoding",
        reading=f"Speed: {next(iter(scores.values()))['texts']:,} texts of the test pairs on one CPU core or the GPU, the "
        "median of three passes. Other models were measured at the same time, so compare with care.",
        columns=["model", "texts per second", "tokens per second"],
        rows=[[model, f"{own['texts_per_second']:,.0f}", f"{own['tokens_per_second']:,.0f}"] for model, own in scores.items()],
    )


def _ways(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of both directions in the order of the headings; `summary.json` sorts them by name."""
    return {way: scores[way] for way in ("forward", "backward")}


def _nested_table(scores: Mapping[str, Any], _: Mapping[str, Any]) -> ScoreTable:
    """A record for each depth and width of each model."""

    def cells(form: Mapping[str, Any]) -> list[str]:
        accuracy = join([way["accuracy_at_1"] for way in _ways(form["retrieval"]).values()], " / ", "{:.3f}")
        return [str(form["layers"] or "all"), str(form["dimensions"]), accuracy, f"{form['texts_per_second']:,.0f}"]

    return ScoreTable(
        title=f"widths and depths: {plots.FORWARD} / {plots.BACKWARD}",
        reading=f"Retrieval with the first values of a vector, behind all layers or some, {plots.FORWARD} / {plots.BACKWARD}. "
        "Fewer layers encode faster, fewer values take less memory and search faster. summary.json also has the MRR.",
        columns=["model", "layers", "width", "accuracy@1", "texts/s"],
        rows=[[model, *cells(form)] for model, own in scores.items() for form in own["forms"]],
    )


def _compared(scores: Mapping[str, Any], apart: Mapping[str, Any], main: str, other: str) -> list[list[str]]:
    """Of each model a score, its interval, its difference from the first model, and another score."""
    return [
        [
            model,
            f"{own[main]:.3f}",
            interval_text(own[f"{main}_interval"]),
            difference_text(apart.get(model, {}).get(main)),
            f"{own[other]:.3f}",
        ]
        for model, own in scores.items()
    ]
