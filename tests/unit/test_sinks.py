"""TensorBoard is told what the log is told, and of steps that are made again the last."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.engine.sinks import FOLDER, Sinks


def entry(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "step", "step": step, "loss": loss, "mfu": None, "streams": {"el": {"loss": loss / 2, "targets": 3}}}


def test_tensorboard_keeps_the_last_of_steps_that_were_made_again(tmp_path: Path) -> None:
    for next_step, offset in ((0, 0.0), (3, 10.0)):
        sinks = Sinks(str(tmp_path), True, next_step)
        for step in range(next_step, next_step + 5):
            sinks.step(entry(step, step + offset))
        sinks.evaluation({"kind": "evaluation", "step": next_step, "bits_per_byte": 1.5, "by_language": {"el": 1.5}})
        sinks.evaluation({"kind": "evaluation", "step": next_step, "retrieval": {"forward": {"accuracy_at_1": 0.25}}})
        sinks._board.close()
    found = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    losses = {event.step: event.value for event in found.Scalars("loss")}
    assert losses == {step: step + (10.0 if step >= 3 else 0.0) for step in range(8)}
    assert {event.step: event.value for event in found.Scalars("loss/el")} == {s: v / 2 for s, v in losses.items()}
    assert [event.value for event in found.Scalars("evaluation/bits_per_byte")] == [1.5, 1.5]
    assert [event.value for event in found.Scalars("evaluation/accuracy_at_1/forward")] == [0.25, 0.25]
    assert not [tag for tag in found.Tags()["scalars"] if "mfu" in tag]


def test_a_run_below_a_folder_in_one_s_own_language_is_measured(tmp_path: Path) -> None:
    """Ray takes labels in ASCII only: the training ended at its first step."""
    sinks = Sinks(str(tmp_path / "χρήστης wörk"), False, 0)
    sinks.step(entry(0, 1.0) | {"streams": {"ελ": {"loss": 1.0}}})
