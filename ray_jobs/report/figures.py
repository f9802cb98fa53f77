"""What each figure says: its title with the numbers of the run, how to read it, and its text for who cannot see it."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray_jobs.report import plots
from ray_jobs.report.summary import Summary, before_and_after, best, models, starts

ORIGINS = {
    "special_role": "the old token with the same role (padding, mask, ...)",
    "exact_copy": "the row of the same token in the old vocabulary",
    "neighbours": "a mixture of old tokens that are near in a space of static vectors",
    "composition": "a mixture of the old pieces that the token's text splits into",
    "aligned": "a mixture of the old tokens that it is aligned with in parallel text",
    "random": "drawn from the mean and spread of the old rows",
    "mean": "the mean of all old rows",
    "filling": "no token: fills the matrix up, and is never predicted",
    "byte_copy": "the old token of the same byte",
    "case_copy": "the old token that differs in case only",
    "start_copy": "the old token that differs in whether it begins a word",
    "nfkc_copy": "the old token of the same text after Unicode normalisation",
    "hybrid": "a mixture of the pieces of the token's text and of its neighbours",
    "script": "drawn from the mean and spread of the old rows in the same script",
    "donor": "a mixture of shared tokens that rebuilds the token's row in a donor model",
    "same_id": "the old row of the same id, which belonged to another token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of the page."""

    name: str
    title: str
    image: str
    """A data URI."""
    alt: str
    reading: str
    terms: tuple[tuple[str, str], ...] = ()
    """Words in the figure that need an explanation."""


def figures(summary: Summary) -> list[Figure]:
    """Every figure that there is something for, in the order of the page: first what was reached, then what it was made of and
    what it took."""
    losses = (
        ("pretrain", "Language-model", "loss (nats per predicted token)"),
        ("embed", "Contrastive", "loss (nats per query)"),
    )
    return [
        *([_retrieval(summary)] if summary["retrieval"] else []),
        *([_bits_per_byte(summary)] if summary["bits_per_byte"] else []),
        *(_loss(summary, job, *names) for job, *names in losses if summary["loss"][job]),
        *([_retrieval_in_training(summary)] if summary["retrieval_in_training"] else []),
        _fertility(summary),
        *([_provenance(summary)] if summary["provenance"] else []),
        _seconds(summary),
    ]


def _retrieval(summary: Summary) -> Figure:
    scores = summary["retrieval"]

    def both(model: str) -> str:
        return _both_ways(scores[model])

    last = best(summary)
    values = "; ".join(f"{plots.model_label(model)} {both(model)}" for model in models(summary))
    return Figure(
        name="retrieval",
        title=f"Accuracy@1 both ways: {both('source_model')} with the source model, {both(last)} {plots.model_label(last)}",
        image=plots.retrieval(summary),
        alt=f"Bar chart of accuracy@1, {plots.FORWARD} / {plots.BACKWARD}: {values}.",
        reading="The longer the bar, the more texts find their other side at rank 1; compare bars of the same shade"
        + ("." if _alone(summary) else ", and judge the transfer by transferred against random after the same training."),
    )


def _both_ways(ways: Mapping[str, Mapping[str, float]]) -> str:
    return " / ".join(f"{ways[way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))


def _bits_per_byte(summary: Summary) -> Figure:
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
        + ("." if _alone(summary) else ", and the two full marks are what to compare."),
    )


def _loss(summary: Summary, job: str, objective: str, unit: str) -> Figure:
    losses = summary["loss"][job]
    steps = max(map(len, losses.values()))
    curves = {start: plots.thinned(values)[1] for start, values in losses.items()}
    parts = ", ".join(f"{values[0]:.2f} to {values[-1]:.2f} ({start})" for start, values in curves.items())
    mean = -(-steps // plots.MOST_POINTS)
    each = f"Each point is the mean of {mean} steps" if mean > 1 else "Each point is the loss of one optimizer step"
    return Figure(
        name=f"loss-{job}",
        title=f"{objective} loss in {steps:,} {'step' if steps == 1 else 'steps'}: {parts}",
        image=plots.loss(summary, job, unit),
        alt=f"Line chart of the {objective} training loss by optimizer step: {parts}.",
        reading=f"{each} on training data, so it wavers with the batch"
        + ("." if _alone(summary) else "; at equal steps the lower curve is the better one."),
    )


def _retrieval_in_training(summary: Summary) -> Figure:
    parts = []
    for start, scores in summary["retrieval_in_training"].items():
        ordered = [scores[step] for step in sorted(scores, key=int)]
        parts.append(f"{_both_ways(ordered[0])} to {_both_ways(ordered[-1])} ({start})")
    return Figure(
        name="retrieval-in-training",
        title=f"Accuracy@1 while the embedder trains, both ways: {', '.join(parts)}",
        image=plots.retrieval_in_training(summary),
        alt=f"Line chart of accuracy@1 by optimizer step, {plots.FORWARD} / {plots.BACKWARD}: {'; '.join(parts)}.",
        reading="A curve that no longer rises says that more steps bring little; full lines are "
        f"{plots.FORWARD}, dashed ones {plots.BACKWARD}.",
    )


def _fertility(summary: Summary) -> Figure:
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
        reading="Fewer pieces mean shorter inputs for the same held-out text, but only while few are unknown: "
        "a text of nothing but unknown words takes one piece a word.",
    )


def _provenance(summary: Summary) -> Figure:
    codes, last = plots.provenance_codes(summary), starts(summary)[-1]
    counts = summary["provenance"][last]
    total, (most, count) = sum(counts.values()), max(counts.items(), key=lambda item: (item[1], item[0]))
    listed = "; ".join(
        f"{plots.start_label(start)}: "
        + ", ".join(f"{n:,} {code.replace('_', ' ')}" for code, n in sorted(summary["provenance"][start].items()))
        for start in starts(summary)
    )
    return Figure(
        name="provenance",
        title=f"{count / total:.0%} of the {total:,} rows of the {last} start are “{most.replace('_', ' ')}”",
        image=plots.provenance(summary),
        alt=f"Bar charts of where the rows of the new embeddings come from. {listed}.",
        reading="Every row of the new embedding matrix is counted once, under what its first values were made of."
        + _placed(summary["placed"]),
        terms=tuple((code.replace("_", " "), ORIGINS.get(code, "")) for code in codes),
    )


def _placed(placed: Mapping[str, int]) -> str:
    """Which method of a chain placed how many."""
    return f" Placed by {', '.join(f'{name} {n:,}' for name, n in placed.items())}." if len(placed) > 1 else ""


def _seconds(summary: Summary) -> Figure:
    values = summary["seconds"]
    longest = max(values, key=lambda stage: (values[stage], stage))
    listed = ", ".join(f"{plots.stage_label(stage)} {plots.duration(values[stage])}" for stage in sorted(values))
    return Figure(
        name="seconds",
        title=f"The stages took {plots.duration(sum(values.values()))} in all, the longest "
        f"{plots.duration(values[longest])} ({plots.stage_label(longest)})",
        image=plots.seconds(summary),
        alt=f"Bar chart of the time of each stage: {listed}.",
        reading="Wall-clock time on the machine of this run; a stage that was interrupted counts only its last try. "
        + ("" if _alone(summary) else "Blue is the transferred chain, orange the random control, grey the rest."),
    )


def _alone(summary: Summary) -> bool:
    """Whether there is only one start, so that nothing can be compared with it."""
    return len(starts(summary)) < 2
