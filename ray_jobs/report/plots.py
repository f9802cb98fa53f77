"""Draws the figures of the report from the summary, each as an SVG in a data URI.

Text is drawn as paths, so a figure looks the same with any fonts. No figure depends on its colours, and colour-blind readers
can distinguish them (Okabe and Ito 2008).
"""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ray_jobs.report.summary import MODELS, STAGES, Summary, before_and_after, model_label, models, starts

FORWARD, BACKWARD = "anchor → positive", "positive → anchor"
_INK, _MUTED, _RULE = "#1f2933", "#52606d", "#c5ccd3"
_COLOURS = {
    "random": "#d55e00",
    "transferred": "#0072b2",
    "model": "#0072b2",
    "merged": "#00805f",
    "source": "#6b7280",
    "shared": "#4b5563",
}
_LINES = ("#0072b2", "#d55e00", "#00805f", "#a4477a", "#8c6d00", "#2f8fbd", "#1f2933", "#6b7280")
_WIDTH = 9.6
_ABOVE: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1), "ncols": 2, "frameon": False}
"""The position of a legend: above the plot, where it covers nothing."""
MOST_POINTS = 300
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": _INK, "text.parse_math": False,
    "axes.labelcolor": _MUTED, "axes.edgecolor": _RULE, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.axisbelow": True, "grid.color": "#e7eaee",
    "xtick.color": _MUTED, "ytick.color": _MUTED,
    "svg.fonttype": "path", "svg.hashsalt": "scion",
}  # fmt: skip
"""Text is not parsed as mathematics: a `$` in a name is a dollar. The salt makes the ids in the file deterministic."""


def retrieval(summary: Summary) -> str:
    """Accuracy@1 of every model: two bars each, one per direction."""
    compared = models(summary)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(0.56 * len(compared) + 1.0)
        axes = figure.add_subplot()
        for place, model in enumerate(compared):
            colour = _COLOURS[model.split("_")[0] if model in MODELS else "shared"]
            for shift, way, fill in ((-0.19, "forward", colour), (0.19, "backward", _tint(colour))):
                value = summary["retrieval"][model][way]["accuracy_at_1"]
                bar = axes.barh(place + shift, value, 0.34, color=fill, edgecolor=colour, linewidth=0.8)
                axes.bar_label(bar, [f"{value:.3f}"], padding=4)
        _rows(axes, [model_label(model) for model in compared])
        axes.set_xlim(0, 1.08)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.set_xlabel("accuracy@1 (share of queries, 1 is best)")
        key = [Patch(facecolor=fill, edgecolor="#4b5563") for fill in ("#4b5563", _tint("#4b5563"))]
        axes.legend(key, [FORWARD, BACKWARD], **_ABOVE)
        return _uri(figure)


def bits_per_byte(summary: Summary) -> str:
    """One line per start, from a hollow mark before training to a full mark after it."""
    pretrained = list(summary["bits_per_byte"])
    with matplotlib.rc_context(_STYLE):
        figure = _figure(0.5 * len(pretrained) + 1.15)
        axes = figure.add_subplot()
        for place, start in enumerate(pretrained):
            colour, ((_, before), (_, after)) = _COLOURS[start], before_and_after(summary, start)
            axes.plot([before, after], [place, place], color=colour, linewidth=2.5, zorder=1)
            axes.scatter([before], [place], s=70, facecolor="white", edgecolor=colour, linewidth=2, zorder=2)
            axes.scatter([after], [place], s=70, color=colour, zorder=3)
            for value, left in ((before, before < after), (after, before >= after)):
                axes.annotate(
                    f"{value:.3f}",
                    (value, place),
                    (-9 if left else 9, 0),
                    textcoords="offset points",
                    ha="right" if left else "left",
                    va="center",
                )
        _rows(axes, [start_label(start) for start in pretrained])
        axes.margins(x=0.12)
        steps = [step for step, _ in before_and_after(summary, pretrained[0])]
        key = [Line2D([], [], marker="o", ls="", ms=8, mew=2, mec=_MUTED, mfc=fill) for fill in ("white", _MUTED)]
        axes.legend(key, [f"step {step:,}" for step in steps], **_ABOVE)
        axes.set_xlabel("bits per byte of held-out text (lower is better)")
        return _uri(figure)


def loss(summary: Summary, job: str, unit: str) -> str:
    """The training loss of every start, each curve labelled at its end."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.7)
        axes = figure.add_subplot()
        ends = {}
        for start, losses in summary["loss"][job].items():
            steps, values = thin(losses)
            axes.plot(steps, values, color=_COLOURS[start], linewidth=2, solid_capstyle="round")
            axes.plot(steps[-1:], values[-1:], "o", color=_COLOURS[start], markersize=6, clip_on=False)
            ends[start] = (steps[-1], values[-1])
        axes.margins(y=0.08)
        axes.set_xlim(0, 1.01 * max(1, *(step for step, _ in ends.values())))
        low, high = axes.get_ylim()
        label_places = space_out([value for _, value in ends.values()], gap=(high - low) * 0.075)
        for (start, (step, value)), place in zip(ends.items(), label_places, strict=True):
            axes.annotate(
                f"{start} {value:.2f}",
                (step, place),
                (9, 0),
                textcoords="offset points",
                va="center",
                color=_COLOURS[start],
                weight="bold",
                annotation_clip=False,
            )
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(unit)
        return _uri(figure)


def retrieval_in_training(summary: Summary) -> str:
    """Accuracy@1 of every start by step: solid lines forward, dashed ones backward."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(3.7)
        axes = figure.add_subplot()
        for start, scores in summary["retrieval_in_training"].items():
            steps = sorted(map(int, scores))
            for way, dashes in (("forward", "-"), ("backward", "--")):
                values = [scores[str(step)][way]["accuracy_at_1"] for step in steps]
                axes.plot(steps, values, dashes, color=_COLOURS[start], linewidth=2, label=start if way == "forward" else None)
        axes.set_ylim(0, 1.03)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("accuracy@1 on test pairs")
        axes.legend(**_ABOVE)
        return _uri(figure)


def comparison(curves: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    """Bits per byte by step: one line per method for the mean, with a band of one standard deviation."""
    with matplotlib.rc_context(_STYLE):
        figure = _figure(max(4.2, 0.3 * len(curves) + 1.0))
        axes = figure.add_subplot()
        ends, colours = {}, {}
        for place, (method, curve) in enumerate(curves.items()):
            colours[method] = colour = _LINES[place % len(_LINES)]
            steps, means = list(curve), [mean for mean, _ in curve.values()]
            dashes = ("-", "--", ":")[place // len(_LINES) % 3]
            axes.plot(steps, means, dashes, color=colour, linewidth=2)
            lower, upper = ([mean + sign * sd for mean, sd in curve.values()] for sign in (-1, 1))
            axes.fill_between(steps, lower, upper, color=colour, alpha=0.15, linewidth=0)
            ends[method] = (steps[-1], means[-1])
        low, high = axes.get_ylim()
        places = space_out([value for _, value in ends.values()], gap=(high - low) * 0.052)
        for (method, (step, value)), at in zip(ends.items(), places, strict=True):
            axes.annotate(
                f"{method} {value:.3f}",
                (step, value),
                (1.02, at),
                textcoords=("axes fraction", "data"),
                va="center",
                color=colours[method],
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colours[method], "linewidth": 0.6},
            )
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("bits per byte of held-out text")
        return _uri(figure)


def fertility(summary: Summary) -> str:
    """Three panels: pieces per word, pieces per character, and the share of unknown pieces, old above new."""
    panels = (("pieces_per_word", "pieces per word", 1), ("pieces_per_character", "pieces per character", 1))
    with matplotlib.rc_context(_STYLE):
        figure = _figure(1.75)
        plots = figure.subplots(1, 3)
        for axes, (name, label, scale) in zip(plots, (*panels, ("unknown", "unknown pieces (%)", 100)), strict=True):
            values = [scale * summary["fertility"][tokenizer][name] for tokenizer in ("source", "target")]
            bars = axes.barh([0, 1], values, 0.6, color=[_COLOURS["source"], _INK])
            axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=4)
            _rows(axes, ["old tokenizer", "new tokenizer"] if axes is plots[0] else ["", ""])
            axes.set_xlim(0, 1.3 * max(values) or 1)
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.set_xlabel(label)
        return _uri(figure)


def provenance(summary: Summary) -> str:
    """One panel per start: the number of new embedding rows by origin."""
    start_names, codes = starts(summary), provenance_codes(summary)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(0.36 * len(codes) + 1.1)
        plots = figure.subplots(1, len(start_names), squeeze=False, sharex=True)[0]
        for axes, start in zip(plots, start_names, strict=True):
            counts = [summary["provenance"][start].get(code, 0) for code in codes]
            bars = axes.barh(range(len(codes)), counts, 0.65, color=_COLOURS[start])
            axes.bar_label(bars, [_counted(count, sum(counts)) for count in counts], padding=4)
            axes.set_title(start_label(start), weight="bold", color=_COLOURS[start])
            _rows(axes, [code.replace("_", " ") if start == start_names[0] else "" for code in codes])
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set_xlabel("rows of the new embedding matrix")
        plots[0].set_xlim(0, 1.45 * max(max(summary["provenance"][start].values()) for start in start_names))
        return _uri(figure)


def seconds(summary: Summary) -> str:
    """The time of each stage, in the order of the pipeline."""
    stages = [stage for stage in STAGES if stage in summary["seconds"]]
    values = [summary["seconds"][stage] for stage in stages]
    unit, size = _time_unit(max(values))
    with matplotlib.rc_context(_STYLE):
        figure = _figure(0.34 * len(stages) + 0.75)
        axes = figure.add_subplot()
        bars = axes.barh(range(len(stages)), [value / size for value in values], 0.65)
        for bar, stage in zip(bars, stages, strict=True):
            bar.set_color(_stage_colour(stage, summary))
        axes.bar_label(bars, [duration(value) for value in values], padding=4)
        _rows(axes, [stage_label(stage) for stage in stages])
        axes.margins(x=0.12)
        axes.set_xlabel(f"time ({unit})")
        return _uri(figure)


def start_label(start: str) -> str:
    return f"{start} start"


def stage_label(stage: str) -> str:
    folder, _, job = stage.rpartition("/")
    return f"{job}, random control" if folder else job


def duration(value: float) -> str:
    """Formats seconds: `8.2 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def provenance_codes(summary: Summary) -> list[str]:
    """The origins that occur, in descending order of frequency."""
    totals: dict[str, int] = {}
    for counts in summary["provenance"].values():
        for code, count in counts.items():
            totals[code] = totals.get(code, 0) + count
    return sorted(totals, key=lambda code: (-totals[code], code))


def thin(values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """Reduces a curve to at most `most` points (step, value), each the mean of equally many consecutive steps."""
    size = -(-len(values) // most)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    steps = [number * size + (len(group) - 1) / 2 for number, group in enumerate(groups)]
    return steps, [sum(group) / len(group) for group in groups]


def space_out(values: Sequence[float], gap: float) -> list[float]:
    """Moves values apart symmetrically until neighbours differ by at least `gap`; keeps their order."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    moved = [values[index] for index in order]
    for lower, upper in pairwise(range(len(moved))):
        lack = max(0.0, gap - (moved[upper] - moved[lower]))
        moved = [place - lack / 2 if index <= lower else place + lack / 2 for index, place in enumerate(moved)]
    return [place for _, place in sorted(zip(order, moved, strict=True))]


def _counted(count: int, total: int) -> str:
    """A count with its share, which is never rounded to 0."""
    if count == 0:
        return "0"
    return f"{count:,} ({count / total:.1%})" if count >= 0.0005 * total else f"{count:,} (<0.1%)"


def _time_unit(longest: float) -> tuple[str, int]:
    if longest >= 3 * 3600:
        return "h", 3600
    return ("min", 60) if longest >= 180 else ("s", 1)


def _stage_colour(stage: str, summary: Summary) -> str:
    """The colour of a stage: grey if both starts share it."""
    if stage.rpartition("/")[2] not in ("transfer", "pretrain", "embed"):
        return _COLOURS["shared"]
    return _COLOURS["random" if "/" in stage or summary["method"] == "random" else "transferred"]


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height))
    figure.set_layout_engine("constrained", wspace=0.06)
    return figure


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels the rows of a horizontal plot, the first one on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=_INK)


def _tint(colour: str) -> tuple[float, float, float]:
    """Mixes a colour with white."""
    red, green, blue = (1 - 0.35 * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    # Drops the XML prolog: its DOCTYPE has an address that a strict reader might fetch.
    return "data:image/svg+xml;base64," + base64.b64encode(svg[svg.index(b"<svg") :]).decode()
