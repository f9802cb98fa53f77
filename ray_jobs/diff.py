"""`scion diff PLAN PLAN`: which rows two plans make differently."""

from rich.console import Console

from data_pipeline.errors import ConfigError
from trainer.transfer import plan
from trainer.transfer.diff import diff

_LISTED = 10


def command(arguments: list[str], console: Console) -> None:
    """Compares the plans in two folders that `scion transfer` wrote.

    Raises:
        ConfigError: not two folders.
        ArtifactError: a folder has no plan, or the plans are for different tokenizers.
    """
    if len(arguments) != 2:
        raise ConfigError("two folders are needed.", "scion diff", "Usage: scion diff PLAN PLAN")
    one, other = (plan.load(folder) for folder in arguments)
    found = diff(one, other)
    console.print(f"{len(found.rows):,} of {len(one):,} rows differ", highlight=False, markup=False)
    for (before, after), count in found.moves.items():
        console.print(f"  {count:>8,}  {before} -> {after}", highlight=False, markup=False)
    if len(found.rows):
        listed = ", ".join(f"{row} ({far:.2f})" for row, far in zip(found.rows[:_LISTED], found.distance, strict=False))
        console.print(f"farthest apart: {listed}", highlight=False, markup=False)
