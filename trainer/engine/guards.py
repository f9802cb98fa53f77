"""What to make of a step's numbers: pure functions."""

import math

from data_pipeline.errors import TrainingError


def check_finite(step: int, loss: float, norm: float | None) -> None:
    """Refuses a loss or gradient norm that is not a number.

    Raises:
        TrainingError: names the step and what to try.
    """
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if value is not None and not math.isfinite(value):
            raise TrainingError(
                f"the {name} of step {step} is {value}.",
                "training",
                "Lower learning_rate, or use precision=fp32; the checkpoint before this step is intact.",
            )
