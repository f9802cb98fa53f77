"""A job on one artefact: its specification, the function that fills its folder, its run; and how chains start."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from data_pipeline.artifacts import artifact, lease, storage
from data_pipeline.artifacts.artifact import Artifact, Draft, Spec
from data_pipeline.artifacts.lease import Lease
from data_pipeline.errors import ArtifactError
from ray_jobs import console as show
from ray_jobs import stop_request
from ray_jobs.config.schema import ScionConfig
from ray_jobs.console import Reporter
from trainer.monitoring import run_log


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStart:
    """How a chain of models begins: with the user's method, or as the random control."""

    name: str
    method: str
    folder: str
    """Folder of the chain's artefacts below the output; empty for the user's chain."""
    seed: int

    def at(self, config: ScionConfig, job: str) -> str:
        """The folder of a job's artefact in this chain."""
        return storage.join(config.output, *filter(None, (self.folder, job)))


def main_start(config: ScionConfig) -> ChainStart:
    """The start of the user's chain: a transfer, or the model that is given as `embed.model`."""
    name = "model" if config.embed.model else "random" if _is_random(config) else "transferred"
    return ChainStart(name=name, method=config.method, folder="", seed=config.seed)


def control_start(config: ScionConfig) -> ChainStart:
    """The start of the random control; if the user's method is `random`, it is the user's chain."""
    folder = "" if _is_random(config) else "random"
    return ChainStart(name="random", method="random", folder=folder, seed=config.seed)


def starts(config: ScionConfig) -> tuple[ChainStart, ...]:
    """The starts of a pipeline's chains, the user's first."""
    controls = (control_start(config),) if config.control and config.has_transfer else ()
    return tuple(dict.fromkeys((main_start(config), *controls)))


def _is_random(config: ScionConfig) -> bool:
    return config.method == "random" and config.transfer.plan is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A job on one artefact."""

    name: str
    spec: Spec
    fill: Callable[[Draft, Reporter], str]
    """Writes the artefact, and returns a line for the user."""
    is_resumable: bool = False
    """Whether it continues from what a killed run left."""
    training_uri: str | None = None
    """The folder of its training, if it has one: once that has done a step, other settings do not clear it."""
    is_complete: Callable[[], bool] = lambda: True
    """Whether a finished artefact has all its files; missing ones are made again."""
    is_derived: bool = False
    """Whether it only describes other artefacts, so that it is made again when these change."""

    def finished(self) -> Artifact | None:
        """The artefact, if there is nothing left to do.

        Raises:
            ArtifactError: the folder holds something else.
        """
        found = artifact.find(self.spec, replace=self.is_derived)
        if found is None:
            artifact.has_unfinished_run(self.spec, self._has_stepped)
        return found if found is not None and self.is_complete() else None

    def run(self, console: Console) -> Artifact:
        """Makes the artefact, or keeps a finished one."""
        found = self.finished()
        if found is not None and artifact.is_clean(self.spec.uri):
            show.print_kept(console, self.name)
            return found
        # One run at a time writes there. The lease lies beside the folder, which only its stage may fill.
        with lease.hold(f"{self.spec.uri.rstrip('/')}.lease.json") as held:
            if (found := self.finished()) is not None:  # another run has finished it since, or was killed at its very end
                if not artifact.is_clean(self.spec.uri):
                    artifact.clean_up(self.spec.uri)
                show.print_kept(console, self.name)
                return found
            return self._make(console, held)

    def _make(self, console: Console, held: Lease) -> Artifact:
        """Runs the stage under the lease and returns the artefact; KeyboardInterrupt afterwards if the user asked to stop."""
        seconds = show.stopwatch()
        with (
            show.stage(console, self.name) as reporter,
            artifact.writing(
                self.spec, resumable=self.is_resumable, precious=self._has_stepped, replace=self.is_derived, lease=held
            ) as draft,
        ):
            line = self.fill(draft, reporter)
        show.print_done(console, self.name, seconds(), line)
        if stop_request.clear_request():  # this stage is finished; the next one does not start
            raise KeyboardInterrupt
        return artifact.read(self.spec.uri, self.spec.kind, self.spec.kind)

    def _has_stepped(self) -> bool:
        if self.training_uri is None:
            return False
        return bool(run_log.steps(run_log.read(storage.join(self.training_uri, run_log.FOLDER), fields=("step",))))


def require(spec: Spec, job: str) -> str:
    """The folder of a finished input that was made with the same settings.

    Raises:
        ArtifactError: there is none, or it is another run's.
    """
    if artifact.find(spec) is None:
        raise ArtifactError(f"the {spec.kind} artefact does not exist.", spec.uri, f"Make it with `scion {job} CONFIG`.")
    return spec.uri
