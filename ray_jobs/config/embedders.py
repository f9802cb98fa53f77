"""The sections of embedders: their training, merging and evaluation, and the drift between their versions."""

from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.errors import ConfigError
from data_pipeline.order.mixture import check_shares
from data_pipeline.pairs.builders import BUILDERS
from data_pipeline.pairs.text_form import check_prompt_names, check_template
from ray_jobs.config import tables
from ray_jobs.config.keys import check_folder_name
from trainer.config.train import TrainConfig
from trainer.evaluation import METRICS
from trainer.merging import MERGES
from trainer.models.pooling import check_latents, pooling_name
from trainer.objectives import OBJECTIVES
from trainer.objectives.nested import NestedConfig

ObjectiveSettings: Any = tables.sections("ObjectiveSettings", OBJECTIVES)
BuilderSettings: Any = tables.sections("BuilderSettings", BUILDERS)
MergeSettings: Any = tables.sections("MergeSettings", MERGES)
MetricSettings: Any = tables.sections("MetricSettings", METRICS)
_OF_CHAINS = ("source_model", "random_", "transferred_", "model_")
"""How the names of a run's own models begin."""
TEST_SETS = ("sts", "classification", "clustering", "reranking")
"""The rows of `trainer.evaluation.probes.PROBES`, whose module imports too much for a configuration."""


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
    bidirectional: bool = field(default=False, metadata={"identity": "unless default"})
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
    batches: Literal["one_task", "mixed"] = field(default="one_task", metadata={"identity": "unless default"})
    """Whether all pairs of a step have the same `task`, so that its negatives are of that task, or of any (`mixed`)."""
    alpha: float = field(default=0.5, metadata={"identity": "unless default"})
    """Tasks are drawn in proportion to pairs ** alpha: 1 as in the pairs, 0 equally often."""
    weights: dict[str, float] = field(default_factory=dict, metadata={"identity": "unless default"})
    """Shares of the tasks in the pairs, in place of alpha; tasks without a share are left out. `pairs` is the task of pairs
    without one."""
    stages: tuple[dict[str, Any], ...] = field(default=(), metadata={"identity": False})
    """Trainings before this one, in order, such as `{name: weak, pairs: weak.jsonl, embed: {train: {steps: 5000}}}`; the first
    starts from the model, each other from the result of the one before. Other settings are those of this training."""
    heldout_pairs: int = field(default=1000, metadata={"identity": False})
    """Test pairs on which retrieval is measured during the training, at even distances; all if there are fewer."""
    model: str | None = None
    """The model that `scion embed` trains in place of the pretrained model, a folder or hub name; one of the hub is copied to
    OUTPUT/hub."""
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
        check_prompt_names(self.prompts)
        tables.check(self.builder, BUILDERS, "embed.builder")
        check_shares(self.alpha, self.weights, "embed")
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
    """The model from which the others were trained, for methods that merge what they changed: task_arithmetic, ties,
    model_stock and self_positioning. The pretrained model when not given."""
    method: str = field(default="uniform", metadata={"identity": False})
    """How weights are merged: uniform is their average; greedy_soup and lm_cocktail measure the models on training
    pairs, and self_positioning searches the weights on them."""
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
    """Pairs of sentences with columns sentence1, sentence2 and score, or of words with word1, word2 and score, optional lang,
    in the formats of text=: the correlation of cosine and score is measured on them."""
    classification: str | None = None
    """Texts with columns text and label, optional split (train or test), else a fifth of each label is for the test: accuracy
    and macro-averaged F1 of a logistic regression on the vectors."""
    clustering: str | None = None
    """Texts with columns text and label: V-measure of k-means on the vectors, with a cluster for each label."""
    reranking: str | None = None
    """Queries with columns query, and the lists positive and negative: MAP and MRR at 10 of these candidates by cosine."""
    models: dict[str, str] = field(default_factory=dict)
    """Other models to compare, folders or hub names by the names that the report gives them, such as `{e5: models/e5}`."""
    settings: MetricSettings = field(default_factory=MetricSettings)

    def __post_init__(self) -> None:
        for name, spec in self.files.items():
            if not spec:
                raise ConfigError("it is empty.", f"evaluate.{name}", "Name a file, or leave the key out.")
        for name in self.metrics:
            tables.check(name, METRICS, "evaluate.metrics")
        for name in self.models:
            check_folder_name(name, "evaluate.models")
            if name == "merged" or name.startswith(_OF_CHAINS):
                raise ConfigError(f"{name} is the name of a model of the run.", "evaluate.models", "Choose another name.")

    @property
    def files(self) -> dict[str, str]:
        """The test sets that are given, by probe."""
        return {name: spec for name in TEST_SETS if (spec := getattr(self, name)) is not None}


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
