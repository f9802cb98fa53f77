"""Settings of a training run, shared by all objectives."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.errors import ConfigError
from data_pipeline.order.batch_sizes import BatchSizes
from trainer.config import schedule
from trainer.models.adapters import Lora

_LONGEST_MINUTES = 60 * 24 * 7
WINDOW = 64
"""Steps whose losses a spike is compared with, and that a rollback skips at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPart:
    """A part of the run with another batch size."""

    until: int
    """The step at which it ends."""
    rows: int
    """Rows of one optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChange:
    """A factor for the learning rates from a step on."""

    since: int
    """The first step with this factor."""
    factor: float
    """Multiplies the rates of the schedule, until the next change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How long, how fast and how to train. Sizes count rows; rates are per optimizer step.

    Fields marked `identity: False` change how a run computes, not what: they may change whenever it resumes. Fields marked
    `adjustable` may change, too, and the run records the change (`changes.adopt_settings`).
    """

    steps: int = field(default=10_000, metadata={"adjustable": True})
    """Optimizer steps of the whole run."""
    batch_size: int = 128
    """Rows of one optimizer step over all workers, whatever their number."""
    batch_warmup: tuple[BatchPart, ...] = ()
    """Other batch sizes at the beginning of the run, in order."""
    micro_batch: int | None = field(default=None, metadata={"identity": False, "adjustable": True})
    """Rows that a worker computes at once; all its rows of a step when not given. If a device has no memory for them,
    `pretrain` halves the number until they fit."""
    learning_rate: float = 1e-4
    """The highest learning rate, reached after the warm-up, which is measured in rows."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = field(default="linear", metadata={"adjustable": True})
    """How the rate falls after the warm-up, measured in rows: linearly, along half a cosine, linearly in the last `decay_steps`
    only (warmup-stable-decay), or not at all."""
    decay_steps: int | None = field(default=None, metadata={"adjustable": True})
    """Steps at the end of `wsd` in which the rate falls; a tenth of the run when not given."""
    smallest_rate: float = field(default=0.0, metadata={"adjustable": True})
    """The rate at the end, as a share of the highest."""
    rate_changes: tuple[RateChange, ...] = field(default=(), metadata={"adjustable": True})
    """Factors for the rates from some steps on, in order, e.g. to slow down a run that became unstable."""
    rate_batch: int | None = None
    """The batch size that `learning_rate` was tuned for. For steps of another size the rate is multiplied by the square root of
    their ratio (Malladi et al. 2022, for Adam). `batch_size` when not given: only `batch_warmup` is then scaled."""
    muon_rate: float | None = None
    """The highest rate of Muon, which then trains the matrices of the body: the spectral norm of an update, usually 0.02. AdamW
    trains all weights when not given."""
    warmup_steps: int | None = None
    """Steps in which the rate rises from 0; a twentieth of the run, but at most 500, when not given."""
    embedding_steps: int = 0
    """Steps at the beginning in which only the embeddings, the head and its bias learn. The body keeps its weights, while the
    optimizer collects its gradients: new embeddings settle before they change the body."""
    frozen: tuple[str, ...] = ()
    """Weights that are not trained: `body`, `embeddings` (with the head and its bias), or names of parameters with wildcards,
    such as `*.layer.[0-3].*`."""
    lora_rank: int | None = None
    """The rank of adapters on linear layers (LoRA, Hu et al. 2022, by the library peft); no adapters when not given. The
    embeddings and the head are trained in full, and all other weights are frozen. The trained model is a plain one, with the
    adapters merged."""
    lora_alpha: int = 32
    """Adapters are scaled by `lora_alpha / lora_rank`."""
    lora_targets: tuple[str, ...] = ()
    """Suffixes of the names of layers with adapters, such as `q_proj`; all linear layers but the head when not given."""
    weight_decay: float = 0.01
    """The decoupled weight decay of matrices; vectors do not decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the mean gradient and of its mean square."""
    eps: float = 1e-8
    """What AdamW adds to the root of the mean square."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; no average when not given. Evaluations and the
    trained model use the average."""
    clip: float = 1.0
    """The largest global gradient norm; 0 switches clipping off."""
    zero_stage: int = field(default=1, metadata={"identity": False, "adjustable": True})
    """The ZeRO stage. Partitioned among the workers are: 1 the optimizer's state, 2 also the gradients, 3 also the weights."""
    hpz: int = 1
    """Under ZeRO-3, the number of workers of a node that hold a second copy of the weights (ZeRO++, Wang et al. 2023)."""
    offload: Literal["optimizer", "all"] | None = field(default=None, metadata={"identity": False})
    """What is kept in the host's memory: the optimizer's state, or under ZeRO-3 also the weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The format of computation; bf16 keeps fp32 weights in the optimizer."""
    export: Literal["fp32", "bf16"] = field(default="fp32", metadata={"adjustable": True})
    """The format of the trained model's folder: the optimizer's fp32 weights, or rounded to bf16."""
    compile: bool | None = field(default=None, metadata={"identity": False})
    """Whether forward and backward are compiled, as one graph, or under ZeRO-3 layer by layer. On for GPUs under ZeRO-1 and 2
    when not given."""
    activation_checkpointing: bool = field(default=False, metadata={"identity": False})
    """Whether the backward pass recomputes the activations within a layer, to save memory."""
    evaluate_steps: int | None = field(default=None, metadata={"identity": False})
    """Steps between evaluations, on held-out text or, for an embedder, on test pairs; only before and after the training when
    not given."""
    spike: float = field(default=10.0, metadata={"identity": False, "adjustable": True})
    """How many robust standard deviations a loss may lie above the median of the last 64. A higher loss rolls the run back at
    least 64 steps, farther if it happens again, and skips the rows that led there. 0 switches this off."""
    checkpoint_steps: int | None = field(default=None, metadata={"identity": False})
    """Steps between checkpoints; only `checkpoint_minutes` counts when not given."""
    checkpoint_minutes: float | None = field(default=15.0, metadata={"identity": False})
    """The longest time between checkpoints; no limit when not given."""
    export_steps: int | None = field(default=None, metadata={"identity": False})
    """Steps between exports of model folders, RUN-step-STEP, made from checkpoints beside the training; none when not given."""
    keep_checkpoints: int = field(default=3, metadata={"identity": False})
    """Newest checkpoints to keep, at least 3; up to four more of the last 256 steps are kept for rollbacks (`spike`)."""
    keep_state: bool = field(default=False, metadata={"identity": False})
    """Whether to keep the last checkpoint of a finished run, so that it can resume with more `steps`: weights and optimizer, 12
    bytes a parameter, and the weights once more."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = field(default=(), metadata={"identity": False})
    """Trackers beside the log: `tensorboard` in the run's folder, `wandb`, `mlflow`; the last two read their own environment
    variables."""
    profile_steps: tuple[int, ...] = field(default=(), metadata={"identity": False})
    """Steps, counted from 0, that every worker profiles with torch.profiler, into `profile` in the run's folder; on a GPU with
    a snapshot of its memory. Such a step takes longer."""
    collective_minutes: float = field(default=30.0, metadata={"identity": False})
    """The longest wait of a worker for the others during steps; then the attempt ends and a new one begins."""
    first_step_minutes: float = field(default=60.0, metadata={"identity": False})
    """The same until the first step of an attempt is done, while kernels are compiled and weights fetched, and after the last
    step, while the model is written."""
    max_failures: int = field(default=20, metadata={"identity": False})
    """Worker failures that the run tolerates; three in the same step end it earlier."""

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 3:
            raise ConfigError(f"keep_checkpoints must be at least 3, got {self.keep_checkpoints}.")
        if self.spike < 0 or (self.checkpoint_minutes is not None and self.checkpoint_minutes <= 0):
            raise ConfigError("spike must be at least 0 and checkpoint_minutes above 0.")
        if self.zero_stage not in (1, 2, 3):
            raise ConfigError(f"zero_stage must be 1, 2 or 3, got {self.zero_stage}.")
        if min(self.lora_alpha if self.lora_rank is None else self.lora_rank, self.lora_alpha) < 1:
            raise ConfigError(f"lora_rank and lora_alpha must be at least 1, got {self.lora_rank} and {self.lora_alpha}.")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise ConfigError(f"ema must lie between 0 and 1, got {self.ema}.")
        self._refuse()
        self._check_times()
        self._check_batches()
        self._check_rates()

    def _check_times(self) -> None:
        """Checks steps and minutes."""
        for name in ("steps", "batch_size", "micro_batch", "checkpoint_steps", "evaluate_steps", "export_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.max_failures < 0 or self.hpz < 1:
            raise ConfigError(f"max_failures must be at least 0 and hpz at least 1, got {self.max_failures} and {self.hpz}.")
        if min([0, *self.profile_steps]) < 0:
            raise ConfigError(f"profile_steps count from 0, got {list(self.profile_steps)}.")
        if not 0 < self.collective_minutes <= self.first_step_minutes <= _LONGEST_MINUTES:
            raise ConfigError(
                f"collective_minutes must be above 0 and first_step_minutes at least as long, up to {_LONGEST_MINUTES:,}, "
                f"got {self.collective_minutes} and {self.first_step_minutes}."
            )

    def _check_batches(self) -> None:
        ends = [0, *(part.until for part in self.batch_warmup)]
        if sorted(set(ends)) != ends:
            raise ConfigError(f"the parts of batch_warmup must end one after the other, got until: {ends[1:]}.")
        if min([1, *(part.rows for part in self.batch_warmup)]) < 1:
            raise ConfigError(f"the rows of batch_warmup must be at least 1, got {[part.rows for part in self.batch_warmup]}.")

    def _check_rates(self) -> None:
        """Checks the learning rates, their schedule and the optimizer's settings; else raises ConfigError."""
        if self.rate_batch is not None and self.rate_batch < 1:
            raise ConfigError(f"rate_batch must be at least 1, got {self.rate_batch}.")
        rates = [self.learning_rate, *([] if self.muon_rate is None else [self.muon_rate])]
        if min(rates) <= 0 or min(self.clip, self.warmup_steps or 0, self.embedding_steps) < 0:
            raise ConfigError("learning_rate and muon_rate must be above 0, clip, warmup_steps and embedding_steps at least 0.")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay must be at least 0, got {self.weight_decay}.")
        if not 0.0 <= self.smallest_rate <= 1.0:
            raise ConfigError(f"smallest_rate is a share of the highest, between 0 and 1, got {self.smallest_rate}.")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas) or self.eps <= 0:
            raise ConfigError(
                f"betas must be two that lie between 0 and 1 and eps above 0, got {list(self.betas)} and {self.eps}."
            )
        starts, factors = [change.since for change in self.rate_changes], [change.factor for change in self.rate_changes]
        if sorted(set(starts)) != starts or min([0, *starts]) < 0 or min([1.0, *factors]) <= 0:
            raise ConfigError("the steps of rate_changes must rise from 0 on, and their factors be above 0.")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ConfigError(
                f"decay_steps is of schedule=wsd, not of {self.schedule}, which falls over the whole run or never."
            )
        if self.decay_steps is not None and not 1 <= self.decay_steps <= self.steps - self.warmup:
            raise ConfigError(
                f"decay_steps must lie between 1 and the {self.steps - self.warmup} steps after the warm-up, "
                f"got {self.decay_steps}."
            )

    def _refuse(self) -> None:
        """Refuses settings that do not go together."""
        zero3, muon, lora = self.zero_stage == 3, self.muon_rate is not None, self.lora is not None
        ema, frozen, offload, hpz = self.ema is not None, bool(self.frozen), self.offload, self.hpz != 1
        refused = (
            (lora and frozen, "adapters leave the body as it is already: frozen or lora_rank, not both."),
            (
                lora and ema,
                "the average of two adapters' products is no product of their averages: ema or lora_rank, not both.",
            ),
            (lora and muon, "Muon on the thin matrices of adapters is not tried: muon_rate or lora_rank, not both."),
            (not lora and self.lora_targets, "lora_targets say where adapters are, and there are none without lora_rank."),
            (hpz and not zero3, "hpz divides weights that only ZeRO-3 has divided: zero_stage=3."),
            (
                offload == "all" and not zero3,
                'offload="all" moves weights that only ZeRO-3 has divided: zero_stage=3, or offload=optimizer.',
            ),
            (
                muon and zero3,
                "DeepSpeed's Muon steps wrongly on ZeRO-3 where gradients are summed (DeepSpeed #8443): zero_stage=1 or 2.",
            ),
            (
                muon and self.clip > 0,
                "DeepSpeed clips the updates of Muon rather than its gradients, which would make every step smaller: "
                "clip=0. Muon needs no clipping.",
            ),
            (
                self.embedding_steps > 0 and "embeddings" in self.frozen,
                "embedding_steps trains the embeddings alone at first, and they are frozen.",
            ),
            (
                ema and (muon or offload or hpz),
                "an average of the weights is tested with AdamW on the device only: ema without muon_rate, offload and hpz.",
            ),
            (muon and offload, "Muon with the optimizer in the host's memory is not tested: offload=null."),
        )
        for holds, message in refused:
            if holds:
                raise ConfigError(message, "train")

    @property
    def lora(self) -> Lora | None:
        if self.lora_rank is None:
            return None
        return Lora(rank=self.lora_rank, alpha=self.lora_alpha, targets=tuple(self.lora_targets))

    def uses_compile(self, gpu: bool) -> bool:
        return self.zero_stage < 3 and gpu if self.compile is None else self.compile

    def rate(self, step: int, embedding: bool, muon: bool = False) -> float:
        """The learning rate of a step, for weights with a row per token (`embedding`), Muon's matrices, or the rest.

        A pure function, so that a resumed run has the same.
        """
        if step < self.embedding_steps and not embedding:
            return 0.0
        sizes = self.sizes
        size, before, warm = sizes.size(step), sizes.offset(step), sizes.offset(self.warmup)
        found = self.muon_rate if muon and self.muon_rate is not None else self.learning_rate
        highest = found * math.sqrt(size / (self.rate_batch or self.batch_size)) * self._factor(step)
        if step < self.warmup:
            return highest * (before + size) / warm
        decay = self.decay_steps or max(1, self.steps // 10)
        start = sizes.offset(max(self.warmup, self.steps - decay)) if self.schedule == "wsd" else warm
        share = schedule.SHARES[self.schedule](before, start, max(sizes.offset(self.steps), start + size))
        return highest * (self.smallest_rate + (1.0 - self.smallest_rate) * share)

    @property
    def warmup(self) -> int:
        """Steps in which the rate rises."""
        return min(self.steps // 20, 500) if self.warmup_steps is None else self.warmup_steps

    def _factor(self, step: int) -> float:
        """The factor of `rate_changes` in a step."""
        return next((change.factor for change in reversed(self.rate_changes) if step >= change.since), 1.0)

    @property
    def export_origin(self) -> dict[str, str]:
        """How the trained model was made of the run's weights, for `artifact.json`."""
        weights = "the optimizer's fp32 weights" if self.export == "fp32" else f"{self.precision} weights"
        made_from = weights if self.ema is None else f"the moving average (decay {self.ema}) of {weights}"
        return {"trained_in": self.precision, "saved_in": self.export, "made_from": made_from}

    @property
    def sizes(self) -> BatchSizes:
        return BatchSizes(batch=self.batch_size, warmup=tuple((part.until, part.rows) for part in self.batch_warmup))

    def is_evaluation_due(self, done: int) -> bool:
        """Whether an evaluation is due after `done` steps."""
        return done in (0, self.steps) or (self.evaluate_steps is not None and done % self.evaluate_steps == 0)

    def is_checkpoint_due(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` steps, regardless of the time."""
        due = self.checkpoint_steps is not None and done % self.checkpoint_steps == 0
        return (due or self.is_export_due(done)) and done < self.steps

    def is_export_due(self, done: int) -> bool:
        """Whether an export is due of the checkpoint after `done` steps."""
        return self.export_steps is not None and done > 0 and done % self.export_steps == 0
