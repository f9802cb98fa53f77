"""`scion pipeline`: all stages, from text to a served embedder and its report."""

from rich.console import Console

from data_pipeline.artifacts import storage
from ray_jobs import embed, evaluate, merge, mine, pretrain, serve, shard, transfer
from ray_jobs.config.load import save_config
from ray_jobs.config.schema import ScionConfig
from ray_jobs.inputs import ask_once
from ray_jobs.job import Job
from ray_jobs.report import job as report
from ray_jobs.stage import Stage, starts

JOB = Job(
    summary="the whole chain, one stage after the other",
    reads="text and source_model; pairs and test_pairs, without which it ends with the pretrained model",
    writes="a folder a stage, config.yaml, report.html and summary.json below OUTPUT",
    keys=(),
)


@ask_once()
def stages(config: ScionConfig) -> dict[str, Stage]:
    """All stages by their names in the summary, in the order of execution.

    Without pairs the last model is the pretrained one.
    """
    jobs = {"transfer": transfer, "pretrain": pretrain, "embed": embed}
    if config.pairs is None:
        del jobs["embed"]
    made = {"shard": shard.stage(config)}
    for name, job in jobs.items():
        if name == "embed" and config.embed.mined:
            made["mine"] = mine.stage(config)
        for start in starts(config):
            of_chain = embed.stages(config, start) if name == "embed" else {name: job.stage(config, start)}
            made |= {storage.join(start.folder, folder): stage for folder, stage in of_chain.items()}
    if config.pairs is not None:
        made["merge"] = merge.stage(config)
    made["evaluate"] = evaluate.stage(config, evaluate.pipeline_models(config))
    if config.pairs is not None:
        made["serve"] = serve.stage(config)
    return made | {"report": report.stage(config, {name: stage.spec for name, stage in made.items()})}


def main(config: ScionConfig, console: Console) -> None:
    """Checks all folders, runs the unfinished stages in order, saves `config.yaml`, and shows the report."""
    ordered = stages(config)
    for stage in ordered.values():
        stage.finished()
    for stage in ordered.values():
        stage.run(console)
        # After the first stage has accepted its input: bad input leaves nothing behind.
        save_config(config)
    report.show(config, {name: stage.spec for name, stage in ordered.items() if name != "report"}, console)


def needs_ray(config: ScionConfig) -> bool:
    """Whether a stage is unfinished; if not, Ray is not started.

    Raises:
        ArtifactError: a folder holds something else.
    """
    return any([stage.finished() is None for stage in stages(config).values()])


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
