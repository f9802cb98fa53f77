"""The configuration: one dataclass a section, one section a job, `ScionConfig` around them."""

import glob
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.jobs.config import SubmitConfig
from cluster.kuberay.config import KubernetesConfig
from cluster.serve.config import ServeConfig
from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError
from data_pipeline.order.mixture import check_shares
from data_pipeline.text.language import TAG_RULE, is_tag
from data_pipeline.tokenizers.train import TokenizerConfig
from ray_jobs.config import tables
from ray_jobs.config.embedders import DriftConfig, EmbedConfig, EvaluateConfig, MergeConfig
from trainer.config.train import TrainConfig
from trainer.mining.config import MineConfig
from trainer.transfer import chain
from trainer.transfer.methods import METHODS
from trainer.transfer.overlap import LEVELS

AUTO = "auto"
"""Decided by the other settings, or by the cluster."""
MUST_BE_GIVEN: Any = "???"
"""OmegaConf's mark for a key without a default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardConfig:
    """From text to packed shards."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    length: int = 512
    """Tokens in a packed row."""
    packing: Literal["concat", "first_fit", "best_fit"] = "concat"
    """How documents share rows: concatenated and cut every `length` tokens, or whole where they fit, with padding."""
    lang: str = "und"
    """Language of documents without `lang`."""
    layout: bool | None = None
    """Whether the text keeps indentation and empty lines; when not given, for decoders only, which write text."""
    heldout: float = 0.05
    """Share of the documents that is held out where test_text= is not given."""
    actors: int = field(default=2, metadata={"identity": False})
    """Actors that tokenize; the shards are the same for any number."""

    def __post_init__(self) -> None:
        if not is_tag(self.lang):
            raise ConfigError(f"{self.lang!r} is not a language tag.", "shard.lang", TAG_RULE)
        if self.length < 8 or self.actors < 1:
            raise ConfigError(f"length must be at least 8 and actors at least 1, got {self.length} and {self.actors}.")
        if not 0.0 <= self.heldout < 1.0:
            raise ConfigError(f"heldout is a share, between 0 and 1, got {self.heldout}.")


MethodSettings: Any = tables.sections("MethodSettings", METHODS)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoriseConfig:
    """Embeddings of low rank, E = F P; off unless one of the first three keys is given."""

    rank: int | None = None
    """The width of the factors."""
    energy: float | None = None
    """Takes the smallest rank that keeps this share of the source embeddings' energy."""
    parameters: int | None = None
    """Takes the largest rank at which the new embeddings have at most so many parameters."""
    split: Literal["balanced", "paper"] = "balanced"
    """How the factors share the singular values: each the square roots (`balanced`), or P all of them, as in OFA (`paper`)."""
    keep: bool = False
    """Whether the folder holds the factors, with its own code, in place of their product in a standard folder."""

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.rank, self.energy, self.parameters)) > 1:
            raise ConfigError("give one of rank, energy and parameters.", "transfer.factorise")
        if min(self.rank or 1, self.parameters or 1) < 1 or 0 in (self.rank, self.parameters):
            raise ConfigError("rank and parameters must be at least 1.", "transfer.factorise")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"energy is a share above 0, got {self.energy}.", "transfer.factorise")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """From the source model to one with the new vocabulary."""

    copy_shared: bool = True
    """Whether shared tokens, which both vocabularies have, keep their embeddings."""
    match: tuple[str, ...] = ("exact", "bytes")
    """When two tokens are the same: any of exact, bytes, case, start, nfkc, from strict to loose."""
    plan: str | None = None
    """The folder of an earlier transfer plan, to apply it to another model with the same tokenizer."""
    factorise: FactoriseConfig = field(default_factory=FactoriseConfig)
    max_memory: float = field(default=4.0, metadata={"identity": False})
    """GiB that the search for neighbours may take on a machine, in all processes; with less it is slower, with equal
    results."""
    methods: MethodSettings = field(default_factory=MethodSettings)

    def __post_init__(self) -> None:
        unknown = [level for level in self.match if level not in LEVELS]
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is not a comparison.", "transfer.match", f"Choose from {', '.join(LEVELS)}.")
        if self.max_memory <= 0:
            raise ConfigError(f"transfer.max_memory must be above 0 GiB, got {self.max_memory}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixturePhase:
    """A phase of the run with other proportions of the languages."""

    until: int
    """The step at which it ends."""
    alpha: float = 0.3
    """As `pretrain.alpha`, for this phase."""
    weights: dict[str, float] = field(default_factory=dict)
    """As `pretrain.weights`, for this phase."""

    def __post_init__(self) -> None:
        check_shares(self.alpha, self.weights, "pretrain.stages")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Continued pretraining, masked or causal."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(micro_batch=16))
    objective: Literal["auto", "mntp"] = field(default="auto", metadata={"identity": "unless default"})
    """What is predicted: auto is masked tokens for an encoder and the next token for a decoder. mntp drops a decoder's causal
    mask, masks tokens and predicts each from the place before it (LLM2Vec): the first step from a decoder to an embedder."""
    probability: float = 0.15
    """Share of the tokens that are masked, 0.2 in LLM2Vec; decoders ignore it without mntp."""
    alpha: float = 0.3
    """Languages are drawn in proportion to tokens ** alpha: 1 as in the text, 0 equally often."""
    weights: dict[str, float] = field(default_factory=dict)
    """Shares of the languages in the tokens, in place of alpha; languages without a share are left out."""
    stages: tuple[MixturePhase, ...] = ()
    """Phases with other proportions at the beginning of the run, in order."""
    heldout_rows: int = 96
    """Held-out rows on which bits per byte are measured."""

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0 or self.heldout_rows < 1:
            raise ConfigError("pretrain needs a probability between 0 and 1 and heldout_rows of at least 1.")
        check_shares(self.alpha, self.weights, "pretrain")
        ends = [0, *(stage.until for stage in self.stages)]
        if sorted(set(ends)) != ends:
            raise ConfigError(f"the stages must end one after the other, got until: {ends[1:]}.", "pretrain.stages")


RUN_KEYS = ("method", "transfer", "pretrain")
"""Sections in which the runs of a comparison may differ; all have the same shards."""
STAGE_KEYS = ("pairs", "embed")
"""Keys in which a stage of contrastive training may differ from the last one."""
STAGE_RULE = f"A stage is a section such as {{name: weak, pairs: weak.jsonl, embed: ...}}, of name and {', '.join(STAGE_KEYS)}."
RUN_RULE = f"A run is a section such as {{name: fast, method: focus, pretrain: ...}}, of name and {', '.join(RUN_KEYS)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """The methods and runs to compare; `pretrain.train` says how long they train."""

    methods: tuple[str, ...] = ()
    """Methods, or chains of methods, `[aligned, focus]` or `aligned+focus`; auto takes all that need no donor, and no pairs if
    there are none. auto when neither methods nor runs are given."""
    runs: tuple[dict[str, Any], ...] = ()
    """Runs with other settings, such as `{name: fast, method: focus, pretrain: {train: {learning_rate: 1.0e-3}}}`. Other
    settings are those of the configuration. A run without a name has that of its method."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of random embeddings, the order of the rows, masks and dropout."""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name != AUTO:
                chain.check(name, "compare.methods")
        if not self.seeds or not all(0 <= seed < 1 << 63 for seed in self.seeds):
            raise ConfigError("compare needs at least one seed, each between 0 and 2^63.", "compare.seeds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScionConfig:
    """All jobs: common keys at the top, a section for each job."""

    text: str = MUST_BE_GIVEN
    """Documents in the new language, with column text, optional lang and id: a path, glob or URI of .parquet, .jsonl or .txt,
    the last two also compressed (.gz, .bz2, .zst, .lz4), or the NAME[@REVISION][:CONFIG[:SPLIT]] of a dataset."""
    test_text: str | None = None
    """Held-out documents in the same formats; a share of text= when not given."""
    pairs: str | None = None
    """Aligned pairs with columns anchor and positive or positives, optional negatives, positive_score, negative_scores, task,
    prompt, in_batch_negatives, lang and id; or in the layout of sentence-transformers or FlagEmbedding. Without pairs the
    pipeline ends with the pretrained model."""
    test_pairs: str | None = None
    """Held-out pairs in the same formats, on which retrieval is measured; no id may be in both."""
    source_model: str = MUST_BE_GIVEN
    """A model folder, or a name on the hub, `NAME` or `NAME@REVISION`."""
    tokenizer: str | None = None
    """The folder or hub name of the new tokenizer; when not given, a tokenizer is trained on the text."""
    method: str = AUTO
    """How new embeddings start: a method, or a chain such as `[aligned, focus, fvt]`, in which each method places the tokens
    that the earlier ones left. auto is ramen if there are pairs, else focus."""
    control: bool = True
    """Whether the pipeline also trains a control, whose new embeddings start at random."""
    output: str = MUST_BE_GIVEN
    """The folder or URI below which every job writes."""
    shards: str | None = None
    """The folder of the shards, for runs with the same text and tokenizer; OUTPUT/shards when not given."""
    seed: int = 0
    """Seed of all random choices: random embeddings, the order of the rows, masks, dropout, held-out documents."""
    workers: int | None = None
    """Training workers of Ray Train, each with a GPU if there are GPUs; auto (null) is the number of GPUs of the cluster, or 2
    on CPUs."""
    min_workers: int | None = field(default=None, metadata={"identity": False})
    """The fewest workers with which a training continues if there is no room for all; when not given, it waits for all."""
    worker_cpus: float = field(default=1.0, metadata={"identity": False})
    """CPU cores that Ray reserves for a training worker."""
    shard: ShardConfig = field(default_factory=ShardConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    mine: MineConfig = field(default_factory=MineConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    submit: SubmitConfig = field(default_factory=SubmitConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)

    def __post_init__(self) -> None:
        if self.method != AUTO:
            chain.check(self.method, "method")
        if self.tokenizer is not None and self.shard.tokenizer.extend:
            raise ConfigError(
                "an existing tokenizer is taken as it is, so there is nothing to extend.",
                "shard.tokenizer.extend",
                "Leave extend or tokenizer out.",
            )
        if self.embed.train.evaluate_steps is not None and self.test_pairs is None:
            where, fix = "embed.train.evaluate_steps", "Give test_pairs=, or leave it out."
            raise ConfigError("there are no test pairs on which retrieval could be measured.", where, fix)
        if self.test_text is None and self.shard.heldout == 0:
            fix = "Give test_text=, or a share above 0."
            raise ConfigError("nothing would be held out to measure on.", "shard.heldout", fix)
        for name in ("output", "shards"):
            if "://" in (value := str(getattr(self, name) or "")) and glob.has_magic(value):
                raise ConfigError(f"{value} would be a pattern to an object store.", name, "Leave *, ? and [ out of it.")
            if value.startswith("memory://"):
                raise ConfigError("memory:// is the memory of one process.", name, "Name a folder or a bucket.")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must lie between 0 and 2^63, got {self.seed}.")
        self._check_workers()

    def _check_workers(self) -> None:
        """Checks the numbers of workers, also against the settings that depend on them; else raises ConfigError."""
        if (self.workers is not None and self.workers < 1) or self.worker_cpus <= 0:
            raise ConfigError(f"workers and worker_cpus must be above 0, got {self.workers} and {self.worker_cpus}.")
        most = math.inf if self.workers is None else self.workers
        if self.min_workers is not None and not 1 <= self.min_workers <= most:
            raise ConfigError(f"min_workers must lie between 1 and workers={self.workers}, got {self.min_workers}.")
        for name, train in (("pretrain", self.pretrain.train), ("embed", self.embed.train)):
            if self.workers is not None and self.workers % train.hpz:
                raise ConfigError(
                    f"{train.hpz} workers share a copy of the weights, and {self.workers} are no multiple of that.",
                    f"{name}.train.hpz",
                    "Give a number that divides workers.",
                )
        averages = self.pretrain.train.ema or self.embed.train.ema
        for said, value in (("Muon's state", self.pretrain.train.muon_rate), ("the average of train.ema", averages)):
            if value is not None and self.min_workers not in (None, self.workers):
                raise ConfigError(f"{said} cannot be divided among other workers.", "min_workers", "Leave min_workers out.")

    @property
    def first_model(self) -> str:
        """The first of the chain of models: `embed.model`, else `source_model`."""
        return self.embed.model or self.source_model

    @property
    def has_transfer(self) -> bool:
        """Whether the chain of models begins with a transfer, and not with a given model."""
        return bool(self.source_model) and self.embed.model is None

    def at(self, stage: str) -> str:
        """The folder of a stage's artefact."""
        return storage.join(self.output, stage)
