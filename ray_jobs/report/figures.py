"""The text of each figure: its title with the numbers of the run, how to read it, and its alternative text."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.report import plots
from ray_jobs.report.summary import Summary, before_and_after, best, model_label, models, starts

ORIGINS = {
    "special_role": "the old token with the same role (padding, mask, ...)",
    "exact_copy": "the row of the same token in the old vocabulary",
    "neighbours": "a mixture of the nearest old tokens in a space of static vectors",
    "composition": "a mixture of the old pieces that the token's text splits into",
    "aligned": "a mixture of the old tokens that it is aligned with in parallel text",
    "random": "drawn from the mean and spread of the old rows",
    "mean": "the mean of all old rows",
    "filling": "no token: pads the matrix and is never predicted",
    "byte_copy": "the old token of the same byte",
    "case_copy": "the old token that differs only in case",
    "start_copy": "the old token that differs in whether it begins a word",
    "nfkc_copy": "the old token of the same text after Unicode normalisation",
    "hybrid": "a mixture of the pieces of the token's text and of its neighbours",
    "script": "drawn from the mean and spread of the old rows in the same script",
    "donor": "a mixture of shared tokens that reconstructs the token's row in a donor model",
    "same_id": "the old row with the same id, which belonged to another token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of the page, with its text."""

    name: str
    title: str
    image: str
    """A data URI."""
    alt: str
    reading: str
    terms: tuple[tuple[str, str], ...] = ()
    """(Term in the figure, explanation)."""


def figures(summary: Summary) -> list[Figure]:
    """All figures for which there is data, in the order of the page: results first, then the inputs and the time."""
    losses = (
        ("pretrain", "Language-model", "loss (nats per predicted token)"),
        ("embed", "Contrastive", "loss (nats per query)"),
    )
    return [
        *([_retrieval(summary)] if summary["retrieval"] else []),
        *([_bits_per_byte(summary)] if summary["bits_per_byte"] else []),
        *(_loss(summary, job, *names) for job, *names in losses if summary["loss"][job]),
        *([_retrieval_in_training(summary)] if summary["retrieval_in_training"] else []),
        *([_fertility(summary)] if summary["fertility"] else []),
        *([_provenance(summary)] if summary["provenance"] else []),
        _seconds(summary),
    ]


def _retrieval(summary: Summary) -> Figure:
    """The bar chart of retrieval accuracy by model, with its text."""
    scores = summary["retrieval"]

    def both(model: str) -> str:
        return _both_ways(scores[model])

    first, last = models(summary)[0], best(summary)
    values = "; ".join(f"{model_label(model)} {both(model)}" for model in models(summary))
    return Figure(
        name="retrieval",
        title=f"Accuracy@1 both ways: {both(first)} {model_label(first)}, {both(last)} {model_label(last)}",
        image=plots.retrieval(summary),
        alt=f"Bar chart of accuracy@1, {plots.FORWARD} / {plots.BACKWARD}: {values}.",
        reading="The longer the bar, the more texts find their other side at rank 1; compare bars of the same shade"
        + (
            "."
            if _has_one_start(summary)
            else ". To judge the transfer, compare transferred with random after the same training."
        ),
    )


def _both_ways(ways: Mapping[str, Mapping[str, float]]) -> str:
    return " / ".join(f"{ways[way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))


def _bits_per_byte(summary: Summary) -> Figure:
    """The chart of held-out bits per byte before and after pretraining, with its text."""
    parts = []
    for start in summary["bits_per_byte"]:
        (_, before), (_, after) = before_and_after(summary, start)
        parts.append(f"{before:.3f} to {after:.3f} ({start})")
    return Figure(
        name="bits-per-byte",
        title=f"Held-out bits per byte: {', '.join(parts)}",
        image=plots.bits_per_byte(summary),
        alt=f"Bits per byte of held-out text before and after pretraining: {'; '.join(parts)}.",
        reading="The hollow mark is the model before pretraining, the full mark after it; further left is better"
        + ("." if _has_one_start(summary) else ". Compare the two full marks."),
    )


def _loss(summary: Summary, job: str, objective: str, unit: str) -> Figure:
    """The line chart of the training loss of `job` (pretrain or embed), with its text."""
    losses = summary["loss"][job]
    steps = max(map(len, losses.values()))
    curves = {start: plots.thin(values)[1] for start, values in losses.items()}
    parts = ", ".join(f"{values[0]:.2f} to {values[-1]:.2f} ({start})" for start, values in curves.items())
    mean = -(-steps // plots.MOST_POINTS)
    each = f"Each point is the mean of {mean} steps" if mean > 1 else "Each point is the loss of one optimizer step"
    return Figure(
        name=f"loss-{job}",
        title=f"{objective} loss in {steps:,} {'step' if steps == 1 else 'steps'}: {parts}",
        image=plots.loss(summary, job, unit),
        alt=f"Line chart of the {objective} training loss by optimizer step: {parts}.",
        reading=f"{each} on training data, so it varies with the batch"
        + ("." if _has_one_start(summary) else "; at the same step the lower curve is better."),
    )


def _retrieval_in_training(summary: Summary) -> Figure:
    """The line chart of retrieval accuracy by step of the embedder's training, with its text."""
    parts = []
    for start, scores in summary["retrieval_in_training"].items():
        ordered = [scores[step] for step in sorted(scores, key=int)]
        parts.append(f"{_both_ways(ordered[0])} to {_both_ways(ordered[-1])} ({start})")
    return Figure(
        name="retrieval-in-training",
        title=f"Accuracy@1 while the embedder trains, both ways: {', '.join(parts)}",
        image=plots.retrieval_in_training(summary),
        alt=f"Line chart of accuracy@1 by optimizer step, {plots.FORWARD} / {plots.BACKWARD}: {'; '.join(parts)}.",
        reading="If a curve no longer rises, more steps bring little; solid lines are "
        f"{plots.FORWARD}, dashed ones {plots.BACKWARD}.",
    )


def _fertility(summary: Summary) -> Figure:
    """The chart of pieces per word of the old and the new tokenizer, with its text."""
    old, new = summary["fertility"]["source"], summary["fertility"]["target"]
    return Figure(
        name="fertility",
        title=f"A word takes {new['pieces_per_word']:.2f} pieces of the new tokenizer and "
        f"{old['pieces_per_word']:.2f} of the old one",
        image=plots.fertility(summary),
        alt="; ".join(
            f"{name} tokenizer: {values['pieces_per_word']:.2f} pieces per word, "
            f"{values['pieces_per_character']:.2f} per character, {values['unknown']:.2%} unknown"
            for name, values in (("Old", old), ("new", new))
        )
        + ".",
        reading="Fewer pieces mean shorter inputs for the same held-out text, but only if few are unknown: "
        "a text of only unknown words takes one piece per word.",
    )


def _provenance(summary: Summary) -> Figure:
    """The bar charts of where the new embedding rows come from (copied, mixed, random, ...), with their text."""
    codes, last = plots.provenance_codes(summary), starts(summary)[-1]
    counts = summary["provenance"][last]
    total, (most_frequent, count) = sum(counts.values()), max(counts.items(), key=lambda item: (item[1], item[0]))
    details = "; ".join(
        f"{plots.start_label(start)}: "
        + ", ".join(f"{n:,} {code.replace('_', ' ')}" for code, n in sorted(summary["provenance"][start].items()))
        for start in starts(summary)
    )
    return Figure(
        name="provenance",
        title=f"{count / total:.0%} of the {total:,} rows of the {last} start are “{most_frequent.replace('_', ' ')}”",
        image=plots.provenance(summary),
        alt=f"Bar charts of where the rows of the new embeddings come from. {details}.",
        reading="Every row of the new embedding matrix is counted once, by the origin of its initial values."
        + _placed_by_method(summary["placed"]),
        terms=tuple((code.replace("_", " "), ORIGINS.get(code, "")) for code in codes),
    )


def _placed_by_method(counts: Mapping[str, int]) -> str:
    """How many rows each method of a chain placed."""
    return f" Placed by {', '.join(f'{name} {n:,}' for name, n in counts.items())}." if len(counts) > 1 else ""


def _seconds(summary: Summary) -> Figure:
    """The bar chart of the wall-clock time of each stage, with its text."""
    values = summary["seconds"]
    longest = max(values, key=lambda stage: (values[stage], stage))
    details = ", ".join(f"{plots.stage_label(stage)} {plots.duration(values[stage])}" for stage in sorted(values))
    return Figure(
        name="seconds",
        title=f"The stages took {plots.duration(sum(values.values()))} in total, the longest "
        f"{plots.duration(values[longest])} ({plots.stage_label(longest)})",
        image=plots.seconds(summary),
        alt=f"Bar chart of the time of each stage: {details}.",
        reading="Wall-clock time on the machine of this run; an interrupted stage counts only its last attempt. "
        + ("" if _has_one_start(summary) else "Blue is the transferred chain, orange the random control, grey the rest."),
    )


def _has_one_start(summary: Summary) -> bool:
    """Whether there is only one start, and so nothing to compare it with."""
    return len(starts(summary)) < 2
