"""Settings of a training run, shared by all objectives."""

from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How long, how fast and how to train. Sizes count rows; rates are per optimizer step."""

    steps: int = 40
    batch_size: int = 32
    """Rows of one optimizer step over all workers, whatever their number."""
    micro_batch: int | None = None
    """Rows that a worker computes at once; the whole of its share when not given."""
    learning_rate: float = 3e-4
    """The highest, reached after the warm-up; it then falls linearly to 0."""
    warmup_steps: int = 5
    embedding_steps: int = 0
    """Steps at the beginning in which only the embeddings, the head and its bias learn; the rest keeps its weights, while
    the optimizer gets to know its gradients. New rows then settle before they pull at the body."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    zero_stage: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_steps: int | None = None
    """Steps between evaluations on held-out text; only before and after training when not given."""
    checkpoint_steps: int = field(default=20, metadata={"identity": False})
    keep_checkpoints: int = field(default=3, metadata={"identity": False})
    max_failures: int = field(default=2, metadata={"identity": False})
    """Worker failures after which the run gives up."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.checkpoint_steps, self.keep_checkpoints) < 1:
            raise ConfigError("steps, batch_size, checkpoint_steps and keep_checkpoints must be at least 1.")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch_size:
            raise ConfigError(f"micro_batch must lie between 1 and batch_size={self.batch_size}, got {self.micro_batch}.")
        if self.zero_stage not in (1, 2, 3):
            raise ConfigError(f"zero_stage must be 1, 2 or 3, got {self.zero_stage}.")
        if self.learning_rate <= 0 or min(self.clip, self.warmup_steps, self.embedding_steps) < 0:
            raise ConfigError("learning_rate must be above 0, clip, warmup_steps and embedding_steps at least 0.")
        if self.evaluate_steps is not None and self.evaluate_steps < 1:
            raise ConfigError(f"evaluate_steps must be at least 1, got {self.evaluate_steps}.")

    def rate(self, step: int) -> float:
        """The learning rate of a step: a pure function, so that a resumed run has the same."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        return self.learning_rate * (self.steps - step) / max(1, self.steps - self.warmup_steps)

    def evaluates(self, done: int) -> bool:
        """Whether held-out text is scored after `done` steps."""
        return done in (0, self.steps) or (self.evaluate_steps is not None and done % self.evaluate_steps == 0)

    def deepspeed(self, micro: int, accumulation: int) -> dict[str, Any]:
        """The DeepSpeed settings. Clipping is always named, because DeepSpeed's default is 1.0, not off."""
        return {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": self.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
            # The scan for overflow launches six kernels a parameter; our own guard reads loss and norm instead.
            "bf16": {"enabled": self.precision == "bf16", "check_grad_overflow": False},
            "gradient_clipping": self.clip,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 30,
        }
