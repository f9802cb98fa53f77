"""`scion merge`: one embedder from several that share a vocabulary."""

from functools import partial

from rich.console import Console

from data_pipeline.artifacts import artifact
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ModelError
from data_pipeline.shards.build import fingerprint
from ray_jobs import embed, pretrain
from ray_jobs.config import tables
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import model_fingerprint
from ray_jobs.job import Job
from ray_jobs.stage import Stage, main_start, require
from trainer.embedder import Embedder

JOB = Job(
    summary="the average of embedders",
    reads="OUTPUT/pretrain and OUTPUT/embed, or the embedders of merge.models",
    writes="OUTPUT/merge: the uniform average of their weights",
    keys=("merge",),
    after=("pretrain", "embed"),
    instead="merge.models",
)
KIND = "embedder"


def parents(config: ScionConfig) -> list[Spec]:
    """The embedder before and after its contrastive training: the default."""
    return [pretrain.spec(config, main_start(config)), embed.spec(config, main_start(config))]


def spec(config: ScionConfig) -> Spec:
    named = {f"model {i}": model_fingerprint(uri, key="merge.models") for i, uri in enumerate(config.merge.models)}
    chosen = tables.identity("method", config.merge.method, getattr(config.merge.methods, config.merge.method), "uniform")
    inputs = named or {f"model {i}": parent.id for i, parent in enumerate(parents(config))}
    return Spec(uri=config.at("merge"), kind=KIND, config={"merge": artifact.identity(config.merge) | chosen}, inputs=inputs)


def stage(config: ScionConfig) -> Stage:
    return Stage(name="merge", spec=spec(config), fill=partial(fill, config))


def fill(config: ScionConfig, draft: Draft, report: Reporter) -> str:
    """Writes the merged embedder, with the tokenizer and pooling of the last model. Returns a line for the user.

    Raises:
        ModelError: fewer than two models, or models with other tokenizers or shapes.
    """
    uris = list(config.merge.models) or [require(parent, "embed") for parent in parents(config)]
    if len(uris) < 2:
        raise ModelError("one model cannot be merged.", "merge.models", "Name two or more folders.")
    loaded = [Embedder.load(uri) for uri in uris]
    for uri, other in zip(uris, loaded, strict=True):
        if fingerprint(other.tokenizer) != fingerprint(loaded[-1].tokenizer):
            raise ModelError(
                f"its vocabulary differs from that of {uris[-1]}.",
                uri,
                "Merge models with the same tokenizer: equal rows must stand for equal tokens.",
            )
    report("average", 0, 1)
    merged = loaded[-1]
    merge = getattr(config.merge.methods, config.merge.method)
    merged.model.load_state_dict(merge([embedder.model.state_dict() for embedder in loaded], uris))
    merged.save(draft.uri)
    draft.metrics = {"models": len(uris)}
    return f"{len(uris)} embedders"


def main(config: ScionConfig, console: Console) -> None:
    stage(config).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
