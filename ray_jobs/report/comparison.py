"""The result of `scion compare`: a ranking that claims only differences larger than the spread over seeds, and its page."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ray_jobs.compared_runs import CONTROL
from ray_jobs.report import page, plots

COLUMNS = ("rank", "start", "step 0", "final", "speed-up")
RETRIEVAL = ("accuracy@1 before", "accuracy@1 after")
TITLE = "bits per byte of held-out text, {made.steps:,} steps, {made.seeds_note} (lower is better)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanAndSd:
    """Mean and standard deviation over the seeds; the deviation is 0 for a single seed."""

    mean: float
    sd: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f}" if self.sd else f"{self.mean:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The entry of a start, over all seeds."""

    rank: int
    """Starts share a rank while their final means are within two standard deviations of the first one's."""
    name: str
    """The method, or the name in `compare.runs`."""
    first: MeanAndSd
    """Bits per byte before training."""
    final: MeanAndSd
    """Bits per byte after training."""
    steps_to_random: MeanAndSd | None
    """Steps until the start is as good as the random start at its end, by `steps_to`; None if a seed never gets there, or if
    there is no random start."""
    flat_from: int | None
    """The step from which the mean curve no longer falls, if that is in the first three quarters of the run."""
    before: MeanAndSd | None
    """Accuracy@1 before training, the mean of both directions; None for decoders."""
    after: MeanAndSd | None
    curve: dict[int, MeanAndSd]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The entries in ascending order of final bits per byte."""

    steps: int
    seeds: int
    rows: list[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the table: decoders have none for retrieval."""
        return COLUMNS if all(row.before is None for row in self.rows) else COLUMNS + RETRIEVAL

    @property
    def seeds_note(self) -> str:
        """What the numbers are, for the title."""
        return f"mean ± sd of {self.seeds} seeds" if self.seeds > 1 else "one seed, so ranks mean little"


def compare(cells: Mapping[tuple[str, int], Mapping[str, Any]]) -> Comparison:
    """Ranks the starts.

    Args:
        cells: the metrics of every cell, by (name of the start, seed).
    """
    names = list(dict.fromkeys(name for name, _ in cells))
    seeds = list(dict.fromkeys(seed for _, seed in cells))
    curves = {key: {int(step): bits for step, bits in cell["bits_per_byte"].items()} for key, cell in cells.items()}
    steps = max(next(iter(curves.values())))
    ordered = sorted(names, key=lambda name: statistics.fmean(curves[name, seed][steps] for seed in seeds))
    finals = {name: mean_and_sd([curves[name, seed][steps] for seed in seeds]) for name in names}
    ranks = _ranks([finals[name] for name in ordered])
    rows = []
    for rank, name in zip(ranks, ordered, strict=True):
        goal_steps = [
            steps_to(curves[name, seed], monotone_fit(curves[CONTROL, seed])[steps]) if CONTROL in names else None
            for seed in seeds
        ]
        retrieval = [cells[name, seed]["retrieval"] for seed in seeds]
        curve = {step: mean_and_sd([curves[name, seed][step] for seed in seeds]) for step in sorted(curves[name, seeds[0]])}
        rows.append(
            Row(
                rank=rank,
                name=name,
                first=mean_and_sd([curves[name, seed][0] for seed in seeds]),
                final=finals[name],
                steps_to_random=mean_and_sd([step for step in goal_steps if step is not None])
                if None not in goal_steps
                else None,
                before=None if None in retrieval else mean_and_sd([_accuracy(scores["before"]) for scores in retrieval]),
                after=None if None in retrieval else mean_and_sd([_accuracy(scores["after"]) for scores in retrieval]),
                flat_from=_flat_from({step: value.mean for step, value in curve.items()}),
                curve=curve,
            )
        )
    return Comparison(steps=steps, seeds=len(seeds), rows=rows)


def mean_and_sd(values: list[float]) -> MeanAndSd:
    return MeanAndSd(mean=statistics.fmean(values), sd=statistics.stdev(values) if len(values) > 1 else 0.0)


def monotone_fit(curve: Mapping[int, float]) -> dict[int, float]:
    """The nearest curve by least squares that never rises (pool adjacent violators, Ayer et al. 1955).

    With it, noise in a score does not count as reaching a goal.
    """
    pools: list[tuple[float, int]] = []
    for _, value in sorted(curve.items()):
        pools.append((value, 1))
        while len(pools) > 1 and pools[-1][0] >= pools[-2][0]:
            (right, more), (left, size) = pools.pop(), pools.pop()
            pools.append(((left * size + right * more) / (size + more), size + more))
    values = [value for value, size in pools for _ in range(size)]
    return dict(zip(sorted(curve), values, strict=True))


def steps_to(curve: Mapping[int, float], goal: float) -> float | None:
    """The first step at which the monotone curve reaches `goal`, linearly interpolated between its points."""
    points = sorted(monotone_fit(curve).items())
    if points[0][1] <= goal:
        return 0.0
    for (left, above), (right, below) in pairwise(points):
        if below <= goal:
            return left + (right - left) * (above - goal) / (above - below)
    return None


def _flat_from(curve: Mapping[int, float]) -> int | None:
    last = monotone_fit(curve)[max(curve)]
    first = min(step for step, value in monotone_fit(curve).items() if value == last)
    return first if first <= 0.75 * max(curve) else None


def flat_curves(comparison: Comparison) -> str:
    """Names the curves that are flat at their end, whose speed-up means little; empty if there are none."""
    names = [f"{row.name} from step {row.flat_from}" for row in comparison.rows if row.flat_from is not None]
    return f"flat at their end, so steps mean little: {', '.join(names)}" if names else ""


def _ranks(finals: list[MeanAndSd]) -> list[int]:
    """Ranks as 1, 1, 3, ...: a new rank begins if a mean is more than two standard deviations above the first of the rank."""
    ranks: list[int] = []
    first = 0
    for place, value in enumerate(finals):
        if value.mean - finals[first].mean > 2 * max(value.sd, finals[first].sd):
            first = place
        ranks.append(first + 1)
    return ranks


def _accuracy(scores: Mapping[str, Mapping[str, float]]) -> float:
    return (scores["forward"]["accuracy_at_1"] + scores["backward"]["accuracy_at_1"]) / 2


def cells(comparison: Comparison, row: Row) -> list[str]:
    """An entry as text, in the order of the comparison's columns."""
    return [
        str(row.rank),
        row.name,
        str(row.first),
        str(row.final),
        _speed_up(comparison, row),
        *(f"{value.mean:.3f}" for value in (row.before, row.after) if value is not None),
    ]


def _speed_up(comparison: Comparison, row: Row) -> str:
    """How many times fewer steps than the random start, whose steps come from the same rule, so its speed-up is 1.

    A dash if there is no random start.
    """
    control = next((other.steps_to_random for other in comparison.rows if other.name == CONTROL), None)
    if control is None:
        return "-"
    if row.steps_to_random is None:
        return "never"
    if not row.steps_to_random.mean:
        return "1.0 x" if row.name == CONTROL else "at once"
    return f"{control.mean / row.steps_to_random.mean:.1f} x"


def render(comparison: Comparison, papers: Mapping[str, str], source_model: str, config_yaml: str) -> str:
    """Renders the page. Equal arguments give equal bytes."""
    curves = {row.name: {step: (value.mean, value.sd) for step, value in row.curve.items()} for row in comparison.rows}
    best, worst = comparison.rows[0], comparison.rows[-1]
    return page.fill_template(
        "compare.html.j2",
        comparison=comparison,
        title=TITLE.format(made=comparison),
        columns=comparison.columns,
        rows=[(cells(comparison, row), papers[row.name]) for row in comparison.rows],
        flat=flat_curves(comparison),
        curves=plots.comparison(curves),
        alt="; ".join(f"{row.name} {row.first.mean:.3f} to {row.final.mean:.3f}" for row in comparison.rows),
        best=best,
        worst=worst,
        source_model=source_model,
        config_yaml=config_yaml,
    )
