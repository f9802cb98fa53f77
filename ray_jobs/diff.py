"""`scion diff PLAN PLAN`: which rows two plans make differently."""

from rich.console import Console

from data_pipeline.artifacts import storage
from data_pipeline.errors import ConfigError, ModelError
from data_pipeline.tokenizers import folder as tokenizers
from ray_jobs.job import Command
from trainer.transfer.diff import diff
from trainer.transfer.plan import TransferPlan

COMMAND = Command(arguments="PLAN PLAN", summary="which rows two transfer plans make differently")
_LISTED = 10


def command(arguments: list[str], console: Console) -> None:
    """Compares the plans in two folders that `scion transfer` wrote.

    Raises:
        ConfigError: not two folders.
        ArtifactError: a folder has no plan, or the plans are for different tokenizers.
    """
    if len(arguments) != 2:
        raise ConfigError("two folders are needed.", "scion diff", f"Usage: scion diff {COMMAND.arguments}")
    one, other = (TransferPlan.load(folder) for folder in arguments)
    found = diff(one, other)
    console.print(f"{len(found.rows):,} of {len(one):,} rows differ", highlight=False, markup=False)
    for (before, after), count in found.moves.items():
        console.print(f"  {count:>8,}  {before} -> {after}", highlight=False, markup=False)
    if len(found.rows):
        tokens = _tokens(arguments[0], found.rows[:_LISTED].tolist())
        listed = ", ".join(f"{token} ({far:.2f})" for token, far in zip(tokens, found.distance, strict=False))
        console.print(f"farthest apart: {listed}", highlight=False, markup=False)


def _tokens(uri: str, rows: list[int]) -> list[str]:
    """The tokens of rows, or their ids where no tokenizer lies beside the plan; rows that fill the vocabulary up have none."""
    try:
        with storage.local_copy(uri, tokenizers.is_tokenizer_file) as local:
            tokens = tokenizers.load(local).convert_ids_to_tokens(rows)
    except ModelError:
        return [f"row {row}" for row in rows]
    return [f"row {row}" if token is None else repr(token) for row, token in zip(rows, tokens, strict=True)]
