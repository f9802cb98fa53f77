"""What the driver gives to the workers of a run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.feed.rank_feed import OrderedRows
from trainer.checkpoints.store import Store
from trainer.config.train import TrainConfig
from trainer.tasks.heldout_pairs import HeldoutPairs
from trainer.tasks.heldout_text import HeldoutText
from trainer.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRun:
    """A run as its workers know it. The driver pickles it."""

    task: Task
    config: TrainConfig
    rows: OrderedRows
    heldout: HeldoutText | HeldoutPairs | None
    row_groups: dict[str, NDArray[np.int64]]
    """Embedding rows whose mean norm is logged, by the name of the group."""
    uri: str
    """The run's folder."""
    export_uri: str
    """Where the trained model is written."""
    store: Store
    identity: str
    """Equal for all runs whose checkpoints this run may resume."""
    threads: int
    """torch's threads in a worker without a GPU."""
    progress: Any
    """Handle of the driver's progress actor, or None."""
