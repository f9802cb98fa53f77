"""`scion status RUN`: the state of a training, from its log; live on a terminal."""

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from data_pipeline.artifacts import lease, storage
from data_pipeline.errors import ArtifactError, ConfigError
from ray_jobs.job import Command
from trainer.monitoring import run_log
from trainer.monitoring.goodput import account
from trainer.monitoring.stragglers import describe

COMMAND = Command(arguments="RUN", summary="how a training is doing, live on a terminal")
_SECONDS = 2.0
_RECENT = 20
"""Steps over which rates are averaged."""
_SILENT_SECONDS = 120.0
_INTERRUPTED = "interrupted; the same command resumes it"
_ENDS = ("finished", "stopped", "error", _INTERRUPTED)
_PARTS = ("data_wait", "forward", "backward", "update", "communication")
Attempts = list[list[dict[str, Any]]]


def command(arguments: list[str], console: Console) -> None:
    """Shows the run until it ends, or once if there is no terminal.

    Raises:
        ConfigError: the arguments are not those of `COMMAND`.
        ArtifactError: no training has run in that folder.
    """
    if len(arguments) != 1:
        raise ConfigError("the arguments are not right.", "scion status", f"Usage: scion status {COMMAND.arguments}")
    uri = storage.join(arguments[0], run_log.FOLDER)
    if not run_log.read(uri):
        raise ArtifactError("no training has run here.", arguments[0], "Name the folder of one, such as runs/demo/pretrain.")
    if not console.is_terminal:
        console.print(table(run_log.read(uri), time.time(), is_driven(arguments[0])))
        return
    with Live(console=console, refresh_per_second=4) as live:
        while True:
            attempts, driven = run_log.read(uri), is_driven(arguments[0])
            live.update(table(attempts, time.time(), driven))
            if state(attempts, time.time(), driven) in _ENDS:
                return
            time.sleep(_SECONDS)


def is_driven(run: str) -> bool:
    """Whether a command holds the lease of the run, or of its cell of a comparison."""
    folders = (run.rstrip("/"), run.rstrip("/").rpartition("/")[0])
    return any(lease.is_held(f"{folder}.lease.json") for folder in folders if folder)


def state(attempts: Attempts, now: float, driven: bool = True) -> str:
    """The state of the run in a word or two; `driven`: a command may be running it."""
    last = attempts[-1][-1]
    if last["kind"] in ("finished", "stopped", "error"):
        return str(last["kind"])
    silent = now - last["time"]
    if silent < _SILENT_SECONDS:
        return "running"
    return f"silent for {silent:.0f} s" if driven else _INTERRUPTED


def table(attempts: Attempts, now: float, driven: bool = True) -> Table:
    """The run as a table of two columns."""
    shown = Table.grid(padding=(0, 3))
    for name, value in [*_progress(attempts, now, driven), *_speed(attempts), *_quality(attempts), *_faults(attempts)]:
        shown.add_row(f"[bold]{name}[/bold]", escape(value))
    return shown


def _progress(attempts: Attempts, now: float, driven: bool) -> list[tuple[str, str]]:
    """The (label, text) rows on the state of the run: its step, workers and time left."""
    starts, done = _all(attempts, "start"), run_log.steps(attempts)
    if not starts:
        return [("state", "starting")]
    step, steps = (done[-1]["step"] + 1 if done else starts[-1]["next_step"]), starts[-1]["steps"]
    rows = [("state", state(attempts, now, driven)), ("step", f"{step:,} of {steps:,}"), ("workers", str(starts[-1]["world"]))]
    rows += [("slow", reason) for reason in starts[-1].get("slow", [])]
    if (recent := done[-_RECENT:]) and rows[0][1] == "running":
        left = (steps - step) * sum(entry["seconds"] for entry in recent) / len(recent)
        rows.append(("time left", f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min"))
    return rows


def _speed(attempts: Attempts) -> list[tuple[str, str]]:
    """The (label, text) rows on recent steps: tokens per second, TFLOP/s, the parts of a step and padding."""
    recent = [entry for entry in run_log.steps(attempts)[-_RECENT:] if entry["seconds"]]
    if not recent:
        return []
    seconds = sum(entry["seconds"] for entry in recent)
    tokens = sum(entry["tokens"] for entry in recent) / seconds
    rows = [("tokens/s", f"{tokens:,.0f} in all, {tokens / recent[-1]['world']:,.0f} a worker")]
    if recent[-1].get("tflops") is not None:
        mfu = recent[-1].get("mfu")
        speed = f"{sum(entry['tflops'] for entry in recent) / len(recent):.3g} useful TFLOP/s a worker"
        rows.append(("operations", speed + ("" if mfu is None else f", {mfu:.1%} of the peak")))
    parts = {part: sum(entry.get(part) or 0.0 for entry in recent) / seconds for part in _PARTS}
    within = parts.pop("communication")
    shares = ", ".join(f"{part.replace('_', ' ')} {share:.0%}" for part, share in parts.items() if share)
    rows.append(("a step", shares + (f"; communication, within these, {within:.0%}" if within else "")))
    rows.append(("padding", f"{sum(entry['padding'] for entry in recent) / len(recent):.1%}"))
    return rows


def _quality(attempts: Attempts) -> list[tuple[str, str]]:
    """The (label, text) rows on what the model has learnt: the loss and the last evaluation."""
    done, scores = run_log.steps(attempts), _all(attempts, "evaluation")
    rows = []
    if done:
        rows.append(("loss", f"{done[-1]['loss']:.4f}"))
        by_stream = {name: part["loss"] for entry in done[-_RECENT:] for name, part in entry["streams"].items()}
        if len(by_stream) > 1:
            rows.append(("by stream", ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(by_stream.items()))))
    if scores and "retrieval" in scores[-1]:
        last = scores[-1]
        accuracies = " / ".join(f"{last['retrieval'][way]['accuracy_at_1']:.3f}" for way in ("forward", "backward"))
        rows.append(("retrieval", f"accuracy@1 {accuracies} on {last['pairs']:,} test pairs at step {last['step']:,}"))
    elif scores:
        last = scores[-1]
        by_lang = ", ".join(f"{name} {value:.3f}" for name, value in sorted(last.get("by_language", {}).items()))
        rows.append(
            ("bits per byte", f"{last['bits_per_byte']:.4f} at step {last['step']:,}" + (f" ({by_lang})" if by_lang else ""))
        )
        if last.get("row_norms"):
            rows.append(("row norms", ", ".join(f"{name} {value:.3f}" for name, value in last["row_norms"].items())))
    return rows


def _faults(attempts: Attempts) -> list[tuple[str, str]]:
    """The (label, text) rows on reliability: checkpoints, exports, failed saves, slow workers, rollbacks and goodput."""
    figures, saves = account(attempts), _all(attempts, "checkpoint")
    rows = []
    if saves and attempts[-1][-1]["kind"] != "finished":
        rows.append(
            ("checkpoint", f"step {saves[-1]['next_step']:,}, saved in {saves[-1]['seconds']:.1f} s beside the training")
        )
    if exports := [entry for entry in _all(attempts, "export") if "wrong" not in entry]:
        rows.append(("model folder", f"of step {exports[-1]['step']:,}: {exports[-1]['uri']}"))
    if missed := _all(attempts, "missed"):
        rows.append(("saves that failed", f"{len(missed)}, the last: {missed[-1]['why']}"))
    if (last := _all(attempts[-1:], "straggler")[-1:]) and last[0]["rank"] is not None:
        rows.append(("slow worker", describe(last[0])))
    rows += [("went back", f"to step {entry['next_step']:,}: {entry['why']}") for entry in _all(attempts, "back")]
    goodput, recover = figures["goodput"], figures["time_to_recover"]
    rows.append(("attempts", f"{figures['attempts']}, {figures['replayed_steps']} steps repeated"))
    hours = (figures["idle"] or 0.0) / 3600
    idle = f" ({hours:.1f} h without a running command are left out)" if hours >= 0.1 else ""
    rows.append(("goodput", "-" if goodput is None else f"{goodput:.1%}{idle}"))
    if recover is not None:
        rows.append(("time to recover", f"{recover:.0f} s"))
    return rows


def _all(attempts: Attempts, kind: str) -> list[dict[str, Any]]:
    return [entry for entries in attempts for entry in entries if entry["kind"] == kind]
