"""What each job does, reads and writes, and which settings it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of `scion --help`, and the head of `scion JOB --help`."""

    what: str
    reads: str
    writes: str
    keys: tuple[str, ...]
    """Keys and sections, `COMMON` aside; all of them where empty."""
    after: tuple[str, ...] = ()
    """The jobs whose artefacts it looks for, by their settings."""
    required: tuple[str, ...] = ("text", "source_model", "output")
    """Keys that have to be given."""
    instead: str = ""
    """A key that names models, so that no job before this one counts."""
    required_then: tuple[str, ...] = ("output",)

    def needed(self, value: Callable[[str], Any]) -> tuple[str, ...]:
        """The keys that have to be given.

        Args:
            value: of a key of the configuration.
        """
        return self.required_then if self.instead and value(self.instead) else self.required


COMMON = ("output", "seed", "workers", "min_workers", "worker_cpus")
_DATA = ("text", "test_text", "pairs", "test_pairs", "source_model", "tokenizer", "shards")
JOBS = {
    "pipeline": Job(
        what="the whole chain, one stage after the other",
        reads="text and source_model; pairs and test_pairs, without which it ends with the pretrained model",
        writes="a folder a stage, config.yaml, report.html and summary.json below OUTPUT",
        keys=(),
    ),
    "shard": Job(
        what="text to a tokenizer and packed shards",
        reads="text, the tokenizer of source_model, and pairs where there are any",
        writes="OUTPUT/shards, or shards=FOLDER: tokenizer/, clean text/, packed rows/ and heldout/; manifests of hashes",
        keys=(*_DATA, "shard"),
    ),
    "transfer": Job(
        what="the source model with the new vocabulary",
        reads="OUTPUT/shards (made first if missing) and source_model",
        writes="OUTPUT/transfer: a Hugging Face folder, and the plan that made it",
        keys=("source_model", "pairs", "method", "transfer"),
        after=("shard",),
    ),
    "pretrain": Job(
        what="continued pretraining: masked tokens, or the next one",
        reads="OUTPUT/shards and OUTPUT/transfer",
        writes="OUTPUT/pretrain: a Hugging Face folder, and a log line a step",
        keys=("pretrain",),
        after=("shard", "transfer"),
    ),
    "embed": Job(
        what="contrastive training to an embedder",
        reads="OUTPUT/pretrain, or any model with embed.model=FOLDER; pairs, or where there are none lines of the text",
        writes="OUTPUT/embed: a sentence-transformers folder",
        keys=("pairs", "test_pairs", "embed"),
        after=("pretrain",),
        instead="embed.model",
    ),
    "merge": Job(
        what="the average of embedders",
        reads="OUTPUT/pretrain and OUTPUT/embed, or the embedders of merge.models",
        writes="OUTPUT/merge: the uniform average of their weights",
        keys=("merge",),
        after=("pretrain", "embed"),
        instead="merge.models",
    ),
    "evaluate": Job(
        what="retrieval on held-out pairs, bits per byte of held-out text",
        reads="source_model, the models that the jobs before it have made, and test_pairs",
        writes="OUTPUT/evaluate: accuracy@1 and MRR@10, both ways; bits per byte where there are no pairs",
        keys=("source_model", "test_pairs"),
        after=("transfer", "pretrain", "embed", "merge"),
    ),
    "serve": Job(
        what="an OpenAI-compatible endpoint, until Ctrl-C",
        reads="OUTPUT/embed, or serve.model=FOLDER",
        writes="nothing",
        keys=("test_pairs", "serve"),
        after=("embed",),
        instead="serve.model",
        required_then=(),
    ),
    "compare": Job(
        what="methods side by side on your model and text",
        reads="OUTPUT/shards (made first if missing), source_model and test_pairs",
        writes="OUTPUT/compare.json, and OUTPUT/compare.html with the curves",
        keys=("source_model", "pairs", "test_pairs", "compare", "transfer", "pretrain"),
        after=("shard",),
    ),
    "report": Job(
        what="report.html and summary.json from finished stages",
        reads="the artefacts that the jobs before it have made",
        writes="OUTPUT/report.html and OUTPUT/summary.json",
        keys=("test_pairs",),
        after=("shard", "transfer", "pretrain", "embed", "merge", "evaluate", "serve"),
    ),
}
