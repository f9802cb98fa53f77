"""What `scion compare` found: a ranking that claims no order that the seeds do not show, and its page."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ray_jobs.compared_runs import CONTROL
from ray_jobs.report import page, plots

COLUMNS = ("rank", "start", "step 0", "final", "speed-up")
RETRIEVAL = ("accuracy@1 before", "accuracy@1 after")
TITLE = "bits per byte of held-out text, {made.steps:,} steps, {made.spread} (less is better)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanAndSd:
    """Mean and standard deviation over the seeds; 0 for a single seed, which has none."""

    mean: float
    sd: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.sd:.3f}" if self.sd else f"{self.mean:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A start over all seeds."""

    rank: int
    """Starts share a rank while their final means lie within two standard deviations of the first one's."""
    name: str
    """Of the start: its method, or what `compare.runs` calls it."""
    first: MeanAndSd
    """Bits per byte before training."""
    final: MeanAndSd
    """Bits per byte after it."""
    steps_to_random: MeanAndSd | None
    """Steps after which the start is as good as the random start at its end, by `steps_to`; None when it is never, with some
    seed, or when there is no random start."""
    flat_from: int | None
    """The step from which on the mean curve no longer falls, where that is in the first three quarters of the run."""
    before: MeanAndSd | None
    """Accuracy@1, the mean of both directions, before training; None for decoders."""
    after: MeanAndSd | None
    curve: dict[int, MeanAndSd]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows in the order of their final bits per byte."""

    steps: int
    seeds: int
    rows: list[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its table: decoders are not asked for retrieval."""
        return COLUMNS if all(row.before is None for row in self.rows) else COLUMNS + RETRIEVAL

    @property
    def spread(self) -> str:
        """What the figures are, for the title."""
        return f"mean ± sd of {self.seeds} seeds" if self.seeds > 1 else "one seed, so that ranks mean little"


def compare(cells: Mapping[tuple[str, int], Mapping[str, Any]]) -> Comparison:
    """The ranking.

    Args:
        cells: the metrics of every cell, by the name of the start and seed.
    """
    names = list(dict.fromkeys(name for name, _ in cells))
    seeds = list(dict.fromkeys(seed for _, seed in cells))
    curves = {key: {int(step): bits for step, bits in cell["bits_per_byte"].items()} for key, cell in cells.items()}
    steps = max(next(iter(curves.values())))
    ordered = sorted(names, key=lambda name: statistics.fmean(curves[name, seed][steps] for seed in seeds))
    finals = {name: figure([curves[name, seed][steps] for seed in seeds]) for name in names}
    ranks = _ranks([finals[name] for name in ordered])
    rows = []
    for rank, name in zip(ranks, ordered, strict=True):
        reached = [
            steps_to(curves[name, seed], falling(curves[CONTROL, seed])[steps]) if CONTROL in names else None for seed in seeds
        ]
        own = [cells[name, seed]["retrieval"] for seed in seeds]
        curve = {step: figure([curves[name, seed][step] for seed in seeds]) for step in sorted(curves[name, seeds[0]])}
        rows.append(
            Row(
                rank=rank,
                name=name,
                first=figure([curves[name, seed][0] for seed in seeds]),
                final=finals[name],
                steps_to_random=figure([step for step in reached if step is not None]) if None not in reached else None,
                before=None if None in own else figure([_accuracy(scores["before"]) for scores in own]),
                after=None if None in own else figure([_accuracy(scores["after"]) for scores in own]),
                flat_from=_flat_from({step: value.mean for step, value in curve.items()}),
                curve=curve,
            )
        )
    return Comparison(steps=steps, seeds=len(seeds), rows=rows)


def figure(values: list[float]) -> MeanAndSd:
    return MeanAndSd(mean=statistics.fmean(values), sd=statistics.stdev(values) if len(values) > 1 else 0.0)


def falling(curve: Mapping[int, float]) -> dict[int, float]:
    """The curve that never rises and is nearest to this one by least squares (pooled adjacent violators, Ayer et al. 1955): a
    score that wavers does not cross a line by luck."""
    pools: list[tuple[float, int]] = []
    for _, value in sorted(curve.items()):
        pools.append((value, 1))
        while len(pools) > 1 and pools[-1][0] >= pools[-2][0]:
            (right, more), (left, size) = pools.pop(), pools.pop()
            pools.append(((left * size + right * more) / (size + more), size + more))
    values = [value for value, size in pools for _ in range(size)]
    return dict(zip(sorted(curve), values, strict=True))


def steps_to(curve: Mapping[int, float], goal: float) -> float | None:
    """The first step at which the `falling` curve is down at `goal`, between its points by a straight line."""
    points = sorted(falling(curve).items())
    if points[0][1] <= goal:
        return 0.0
    for (left, above), (right, below) in pairwise(points):
        if below <= goal:
            return left + (right - left) * (above - goal) / (above - below)
    return None


def _flat_from(curve: Mapping[int, float]) -> int | None:
    last = falling(curve)[max(curve)]
    first = min(step for step, value in falling(curve).items() if value == last)
    return first if first <= 0.75 * max(curve) else None


def flat_curves(made: Comparison) -> str:
    """Which curves had stopped to fall, since steps say little about them; nothing where none had."""
    named = [f"{row.name} from step {row.flat_from}" for row in made.rows if row.flat_from is not None]
    return f"flat at their end, so that steps say little: {', '.join(named)}" if named else ""


def _ranks(finals: list[MeanAndSd]) -> list[int]:
    """1, 1, 3, ...: a new rank begins where a mean is more than two standard deviations above the rank's first one."""
    ranks: list[int] = []
    first = 0
    for place, value in enumerate(finals):
        if value.mean - finals[first].mean > 2 * max(value.sd, finals[first].sd):
            first = place
        ranks.append(first + 1)
    return ranks


def _accuracy(scores: Mapping[str, Mapping[str, float]]) -> float:
    return (scores["forward"]["accuracy_at_1"] + scores["backward"]["accuracy_at_1"]) / 2


def cells(made: Comparison, row: Row) -> list[str]:
    """A row as text, in the order of the comparison's columns."""
    return [
        str(row.rank),
        row.name,
        str(row.first),
        str(row.final),
        _speed_up(made, row),
        *(f"{value.mean:.3f}" for value in (row.before, row.after) if value is not None),
    ]


def _speed_up(made: Comparison, row: Row) -> str:
    """How many times fewer steps than the random start, whose own steps are found by the same rule: its speed-up is 1.
    A dash where no random start was trained."""
    control = next((other.steps_to_random for other in made.rows if other.name == CONTROL), None)
    if control is None:
        return "-"
    if row.steps_to_random is None:
        return "never"
    if not row.steps_to_random.mean:
        return "1.0 x" if row.name == CONTROL else "at once"
    return f"{control.mean / row.steps_to_random.mean:.1f} x"


def render(made: Comparison, papers: Mapping[str, str], source_model: str, config_yaml: str) -> str:
    """The page. Equal arguments give equal bytes."""
    curves = {row.name: {step: (value.mean, value.sd) for step, value in row.curve.items()} for row in made.rows}
    best, worst = made.rows[0], made.rows[-1]
    return page.filled(
        "compare.html.j2",
        made=made,
        title=TITLE.format(made=made),
        columns=made.columns,
        rows=[(cells(made, row), papers[row.name]) for row in made.rows],
        flat=flat_curves(made),
        curves=plots.comparison(curves),
        alt="; ".join(f"{row.name} {row.first.mean:.3f} to {row.final.mean:.3f}" for row in made.rows),
        best=best,
        worst=worst,
        source_model=source_model,
        config_yaml=config_yaml,
    )
