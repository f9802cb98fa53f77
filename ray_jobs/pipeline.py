"""`scion pipeline`: the whole chain, from text to a served embedder and its report."""

import sys

from rich.console import Console

from data_pipeline import artifact, storage
from ray_jobs import embed, evaluate, merge, pretrain, serve, shard, transfer
from ray_jobs.config import ScionConfig, to_yaml
from ray_jobs.report import job as report
from ray_jobs.stage import Stage, control, transferred


def stages(config: ScionConfig) -> list[Stage]:
    """Every stage in the order in which it runs."""
    chains = [
        job.stage(config, start)
        for job in (transfer, pretrain, embed)
        for start in dict.fromkeys((transferred(config), control(config)))
    ]
    return [
        shard.stage(config), *chains, merge.stage(config), evaluate.stage(config), serve.stage(config), report.stage(config)
    ]  # fmt: skip


def main(config: ScionConfig, console: Console) -> None:
    """Runs what is not finished yet. All folders are checked before anything is written."""
    ordered = stages(config)
    for stage in ordered:
        artifact.existing(stage.plan)
    for stage in ordered:
        stage.run(console)
        # Not before the first stage has accepted its input: bad input leaves nothing behind.
        storage.write_bytes(config.at("config.yaml"), to_yaml(config).encode())
    report.show(config, console)


def needs_ray(config: ScionConfig) -> bool:
    """Whether anything is left to do; Ray is not started to say that nothing is.

    Raises:
        ArtifactError: a folder holds something else.
    """
    return any([stage.finished() is None for stage in stages(config)])


if __name__ == "__main__":
    from ray_jobs.cli import main as command

    sys.exit(command(["pipeline", *sys.argv[1:]]))
