"""Which texts become hard negatives."""

from dataclasses import dataclass, field

from data_pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MineConfig:
    """Hard negatives for the pairs, and the scores of a teacher."""

    model: str | None = None
    """The embedder that searches, or any model folder; embed.model, or else the pretrained model, when not given."""
    corpus: str | None = None
    """Texts among which negatives are searched, in the formats of text=; the positives and negatives of the pairs when not
    given."""
    negatives: int = 5
    """Negatives drawn for a pair, beside those that it has; 0 for the scores of mine.teacher alone."""
    first: int = 11
    """The rank from which negatives are drawn: the nearest texts often are positives that nobody marked."""
    last: int = 200
    """The rank up to which negatives are drawn."""
    margin: float | None = None
    """Leaves out texts whose score is above the positive's minus this."""
    relative_margin: float | None = 0.05
    """Leaves out texts whose score is above the positive's minus this share of it."""
    max_score: float | None = None
    """Leaves out texts whose score is above this."""
    teacher: str | None = None
    """The folder of a cross-encoder (sequence classification with one output), whose scores of all pairs and negatives are
    written in place of cosines."""
    teacher_length: int = 512
    """Tokens of an anchor and a document together for the teacher; longer ones are cut."""
    actors: int = field(default=2, metadata={"identity": False})
    """Actors that encode, search and score, each with a GPU if there are GPUs; the negatives are the same for any number."""

    def __post_init__(self) -> None:
        for name, least in {"negatives": 0, "first": 1, "actors": 1, "teacher_length": 4}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"it must be at least {least}, got {getattr(self, name)}.", f"mine.{name}")
        if self.last < self.first:
            raise ConfigError(f"the last rank, {self.last}, comes before mine.first={self.first}.", "mine.last", "Raise it.")
        if self.negatives > self.last - self.first + 1:
            raise ConfigError(
                f"ranks {self.first} to {self.last} have fewer than {self.negatives} texts.",
                "mine.negatives",
                "Raise mine.last.",
            )
        for name, value in (("margin", self.margin), ("relative_margin", self.relative_margin)):
            if value is not None and value < 0:
                raise ConfigError(f"it must be at least 0, got {value}.", f"mine.{name}")
        if self.negatives == 0 and self.teacher is None:
            raise ConfigError("there is nothing to mine and no teacher.", "mine.negatives", "Give a number, or mine.teacher.")
