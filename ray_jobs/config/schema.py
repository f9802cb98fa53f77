"""The configuration: one dataclass a section, one section a job, `ScionConfig` around them."""

import glob
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.serve.config import ServeConfig
from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError
from data_pipeline.pairs.builders import BUILDERS
from data_pipeline.pairs.text_form import check_template
from data_pipeline.text.language import TAG_RULE, is_tag
from data_pipeline.tokenizers.train import TokenizerConfig
from ray_jobs.config import tables
from trainer.config.train import TrainConfig
from trainer.evaluation import METRICS
from trainer.merging import MERGES
from trainer.mining.config import MineConfig
from trainer.models.pooling import check_latents, pooling_name
from trainer.objectives import OBJECTIVES
from trainer.objectives.nested import NestedConfig
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
ObjectiveSettings: Any = tables.sections("ObjectiveSettings", OBJECTIVES)
BuilderSettings: Any = tables.sections("BuilderSettings", BUILDERS)
MergeSettings: Any = tables.sections("MergeSettings", MERGES)
MetricSettings: Any = tables.sections("MetricSettings", METRICS)


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


def _check_mixture(alpha: float, weights: dict[str, float], where: str) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}.", where)
    if weights and (min(weights.values()) < 0 or max(weights.values()) == 0):
        raise ConfigError(f"weights must be at least 0, and one of them above, got {weights}.", where)


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
        _check_mixture(self.alpha, self.weights, "pretrain.stages")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """Continued pretraining, masked or causal."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(micro_batch=16))
    objective: Literal["auto", "mntp"] = field(default="auto", metadata={"identity": False})
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
        _check_mixture(self.alpha, self.weights, "pretrain")
        ends = [0, *(stage.until for stage in self.stages)]
        if sorted(set(ends)) != ends:
            raise ConfigError(f"the stages must end one after the other, got until: {ends[1:]}.", "pretrain.stages")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """Contrastive training of the embedder."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1000, batch_size=256, learning_rate=5e-5))
    objective: str = field(default="info_nce", metadata={"identity": False})
    """The loss, or a sum of several such as `[info_nce, score_kl]`: info_nce; dse, margin_mse and score_kl follow the scores of
    a teacher in the pairs, embedding_distillation follows the vectors of `embed.teacher`."""
    objectives: ObjectiveSettings = field(default_factory=ObjectiveSettings, metadata={"identity": False})
    nested: NestedConfig = field(default_factory=NestedConfig, metadata={"identity": False})
    builder: str = field(default="simcse", metadata={"identity": False})
    """How pairs are made of the text where pairs= is not given: simcse."""
    builders: BuilderSettings = field(default_factory=BuilderSettings, metadata={"identity": False})
    pooling: str = "mean"
    """How token vectors become one: mean, weightedmean (a token counts by its place), mean_sqrt_len_tokens, max, lasttoken or
    cls (the first token), the last two also spelt last and first; or latentattention (NV-Embed), which is trained."""
    latents: int = field(default=512, metadata={"identity": False})
    """Rows of the dictionary of latentattention."""
    bidirectional: bool = field(default=False, metadata={"identity": False})
    """Whether the causal mask of a decoder is dropped, so that every token reads the whole text. A model that was pretrained
    with mntp has none already; encoders neither."""
    prompts: dict[str, str] = field(default_factory=dict, metadata={"identity": False})
    """Texts to put in front, by name: query in front of anchors, document in front of positives and negatives. Other names are
    saved with the embedder. A cut text keeps its prompt."""
    include_prompt: bool = field(default=True, metadata={"identity": False})
    """Whether the tokens of a prompt are pooled like those of the text."""
    template: str | None = field(default=None, metadata={"identity": False})
    """What is written around a text, with {text} once or twice: echo ("{text} {text}", of which the second copy is pooled),
    prompteol (which asks for the text in one word), or a template of your own."""
    max_length: int = 128
    """Tokens of a text, with its prompt and template; longer texts are cut."""
    chunk_tokens: int | None = field(default=None, metadata={"identity": False})
    """Tokens, with padding, that a worker encodes at once. A larger batch is encoded twice (GradCache), with the same gradient:
    `train.batch_size` has no limit. 2,048 on a CPU and 32,768 on a GPU when not given. If a device has no memory for them, the
    number is halved until they fit."""
    reduce: Literal["once", "per_chunk"] = field(default="once", metadata={"identity": False})
    """When the workers exchange the gradients of a batch in several chunks: once, which takes memory for a whole gradient, or
    chunk by chunk, which keeps it divided under ZeRO-2 and 3."""
    mined: bool = field(default=False, metadata={"identity": False})
    """Whether the training pairs are those of `scion mine`, with hard negatives and scores; a pipeline then mines them."""
    batches: Literal["one_task", "mixed"] = field(default="one_task", metadata={"identity": False})
    """Whether all pairs of a step have the same `task`, so that its negatives are of that task, or of any (`mixed`)."""
    alpha: float = field(default=0.5, metadata={"identity": False})
    """Tasks are drawn in proportion to pairs ** alpha: 1 as in the pairs, 0 equally often."""
    weights: dict[str, float] = field(default_factory=dict, metadata={"identity": False})
    """Shares of the tasks in the pairs, in place of alpha; tasks without a share are left out. `pairs` is the task of pairs
    without one."""
    heldout_pairs: int = field(default=1000, metadata={"identity": False})
    """Test pairs on which retrieval is measured during the training, at even distances; all if there are fewer."""
    model: str | None = None
    """A model folder that `scion embed` trains in place of the pretrained model."""
    teacher: str | None = field(default=None, metadata={"identity": False})
    """An embedder whose vectors the loss embedding_distillation follows, a folder or hub name, of any architecture and
    vocabulary. Every text of the pairs is encoded by it once, before the training."""
    actors: int = field(default=2, metadata={"identity": False})
    """Actors that tokenize the pairs; the shards are the same for any number."""

    def __post_init__(self) -> None:
        if self.max_length < 4 or self.heldout_pairs < 1:
            raise ConfigError("embed needs max_length of at least 4 and heldout_pairs of at least 1.")
        vector_losses = {name: entry for name, entry in OBJECTIVES.items() if entry.config().needs.vectors}
        for name in self.losses:
            tables.check(name, vector_losses, "embed.objective")
        if len(set(self.losses)) < len(self.losses):
            raise ConfigError(f"{self.objective} names a loss twice.", "embed.objective", "Name it once, and set its weight.")
        self._check_teacher()
        tables.check(self.builder, BUILDERS, "embed.builder")
        _check_mixture(self.alpha, self.weights, "embed")
        check_template(self.template, pooling_name(self.pooling))
        check_latents(self.latents, pooling_name(self.pooling), adapts=self.train.lora is not None)
        if self.chunk_tokens is not None and self.chunk_tokens < self.max_length:
            raise ConfigError(
                f"a chunk holds at least one text: {self.chunk_tokens} is below max_length={self.max_length}.",
                "embed.chunk_tokens",
                "Raise it, or lower max_length.",
            )
        if self.train.micro_batch is not None:
            raise ConfigError(
                "contrastive training has no micro-batches: a pair's negatives are the whole batch.",
                "embed.train.micro_batch",
                "Leave it out; embed.chunk_tokens bounds the memory.",
            )

    @property
    def losses(self) -> tuple[str, ...]:
        """The rows of the table of objectives whose losses are added."""
        return tuple(self.objective.split("+"))

    def _check_teacher(self) -> None:
        """Checks that there is a teacher exactly where a loss follows its vectors; else raises ConfigError."""
        followed = [name for name in self.losses if OBJECTIVES[name].config().needs.teacher]
        if followed and self.teacher is None:
            raise ConfigError(f"{followed[0]} follows a teacher's vectors.", "embed.teacher", "Name the teacher's folder.")
        if self.teacher is not None and not followed:
            fix = "Leave it out, or set embed.objective=[info_nce, embedding_distillation]."
            raise ConfigError("no loss follows a teacher's vectors.", "embed.teacher", fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig:
    """From several embedders to one."""

    models: tuple[str, ...] = ()
    """Folders of embedders; when empty, the embedder before and after its contrastive training."""
    base: str | None = field(default=None, metadata={"identity": False})
    """The model from which the others were trained, for methods that merge what they changed: task_arithmetic, ties and
    model_stock. The pretrained model when not given."""
    method: str = field(default="uniform", metadata={"identity": False})
    """How weights are merged: uniform is their average; greedy_soup and lm_cocktail measure the models on training pairs."""
    methods: MergeSettings = field(default_factory=MergeSettings, metadata={"identity": False})

    def __post_init__(self) -> None:
        tables.check(self.method, MERGES, "merge.method")
        if self.base is not None and not getattr(self.methods, self.method).needs.base:
            raise ConfigError(f"{self.method} needs no base.", "merge.base", "Leave it out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """What is measured of embedders."""

    metrics: tuple[str, ...] = ("retrieval",)
    """Any of retrieval (accuracy at 1 and MRR at 10, both ways), ranking (also nDCG, MAP and recall, with the hard negatives as
    documents) and isotropy (how evenly the vectors use their dimensions), on test_pairs=."""
    sts: str | None = None
    """Sentence pairs with columns sentence1, sentence2 and score, optional lang, in the formats of text=: the correlation of
    cosine and score is measured on them."""
    settings: MetricSettings = field(default_factory=MetricSettings)

    def __post_init__(self) -> None:
        if self.sts == "":
            raise ConfigError("it is empty.", "evaluate.sts", "Name a file, or leave the key out.")
        for name in self.metrics:
            tables.check(name, METRICS, "evaluate.metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftConfig:
    """From versions of an embedder to one whose queries search the indexes of all earlier ones."""

    versions: dict[str, str] = field(default_factory=dict)
    """Folders of embedders by the names of their versions, the oldest first, such as `{v1: runs/a/embed, v2: runs/b/embed}`;
    the last one is the embedder that will be served."""
    kind: Literal["mean", "ridge", "procrustes"] = "mean"
    """How the new queries are moved to the old vectors: by the mean difference, by a linear map, or by a rotation."""
    queries: int = 10_000
    """Anchors of pairs= on which the move is fitted; all if there are fewer."""

    def __post_init__(self) -> None:
        if len(self.versions) == 1 or any("/" in name or not name for name in self.versions):
            raise ConfigError("give two versions or more, and names without a slash.", "drift.versions")
        if self.queries < 1:
            raise ConfigError(f"it must be at least 1, got {self.queries}.", "drift.queries")


RUN_KEYS = ("method", "transfer", "pretrain")
"""Sections in which the runs of a comparison may differ; all have the same shards."""
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

    def at(self, stage: str) -> str:
        """The folder of a stage's artefact."""
        return storage.join(self.output, stage)
