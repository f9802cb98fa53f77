"""`scion export RUN [STEP]`: a model folder from a checkpoint of a training that runs, was killed or has ended."""

from rich.console import Console

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.artifact import FINISHED
from data_pipeline.errors import ArtifactError, ConfigError
from ray_jobs.job import Command
from trainer.checkpoints import export
from trainer.checkpoints.store import WORKING, Store
from trainer.ledger.step_name import step_of

COMMAND = Command(
    arguments="RUN [STEP] [output=FOLDER]", summary="a model folder out of a training's checkpoint: the newest, or that of STEP"
)
_OUTPUT = "output="


def command(arguments: list[str], console: Console) -> None:
    """Writes the model of the newest checkpoint, or of the one after STEP steps, to RUN-step-STEP or to `output`.

    Raises:
        ConfigError: the arguments are not those of `COMMAND`, or there is no checkpoint of that step.
        ArtifactError: no training has left a checkpoint in RUN.
    """
    outputs = [item.removeprefix(_OUTPUT) for item in arguments if item.startswith(_OUTPUT)]
    run, step = _positional([item for item in arguments if not item.startswith(_OUTPUT)])
    store = Store(storage.join(run, WORKING), keep=3)
    name = choose(store, run, step)
    uri = storage.absolute("".join(outputs[-1:]) or f"{run.rstrip('/')}-step-{step_of(name)}")
    made = export.export(store, name, uri)
    console.print(f"{made.kind} after {step_of(name)} steps: {uri}", highlight=False, markup=False)


def _positional(arguments: list[str]) -> tuple[str, int | None]:
    match arguments:
        case [run]:
            return run, None
        case [run, step] if step.isdecimal():
            return run, int(step)
    raise ConfigError("the arguments are not right.", "scion export", f"Usage: scion export {COMMAND.arguments}")


def choose(store: Store, run: str, step: int | None) -> str:
    """The newest checkpoint, or the newest of those after `step` steps.

    Raises:
        ConfigError: there is none of that step; names the existing ones.
        ArtifactError: there is none at all.
    """
    names = store.usable()
    if not names and storage.exists(storage.join(run, FINISHED)):
        raise ArtifactError(
            "the run has ended and kept no checkpoint; its folder is the model.",
            run,
            "With train.keep_state=true a run keeps its last checkpoint.",
        )
    if not names:
        raise ArtifactError("no training has left a checkpoint here.", run, "Name the folder of one, e.g. runs/demo/pretrain.")
    found = next((name for name in names if step in (None, step_of(name))), None)
    if found is None:
        steps = ", ".join(str(number) for number in sorted({step_of(name) for name in names}))
        raise ConfigError(f"there is no checkpoint of step {step}.", run, f"There are checkpoints of {steps}.")
    return found
