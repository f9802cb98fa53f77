"""What the jobs have in common: a plan, known before anything runs, and a body that fills its folder."""

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
class Start:
    """Where a chain of models begins: the method that the user chose, or the random control."""

    name: str
    method: str
    folder: str
    """Folder of the chain's artefacts below the output."""
    seed: int

    def at(self, config: ScionConfig, job: str) -> str:
        return storage.join(config.output, *filter(None, (self.folder, job)))


def main_start(config: ScionConfig) -> Start:
    name = "random" if _starts_at_random(config) else "transferred"
    return Start(name=name, method=config.method, folder="", seed=config.seed)


def control_start(config: ScionConfig) -> Start:
    """The random control; when the user's method is `random` it is the user's chain."""
    folder = "" if _starts_at_random(config) else "random"
    return Start(name="random", method="random", folder=folder, seed=config.seed)


def starts(config: ScionConfig) -> tuple[Start, ...]:
    """The chains of a pipeline, the user's first."""
    return tuple(dict.fromkeys((main_start(config), control_start(config)))) if config.control else (main_start(config),)


def _starts_at_random(config: ScionConfig) -> bool:
    return config.method == "random" and config.transfer.plan is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A job on one artefact. `fill` writes it and answers with a line for the user."""

    name: str
    plan: Spec
    fill: Callable[[Draft, Reporter], str]
    is_resumable: bool = False
    training_uri: str | None = None
    """The folder of the training in it, if there is one: once that has done a step, other settings do not remove it."""
    is_complete: Callable[[], bool] = lambda: True
    """Whether a finished artefact has all its files; what it lacks is made again."""
    is_derived: bool = False
    """Whether it only says what other artefacts are worth, so that it is made again where these are others."""

    def finished(self) -> Artifact | None:
        """The artefact, if there is nothing left to do.

        Raises:
            ArtifactError: the folder holds something else.
        """
        found = artifact.find(self.plan, replace=self.is_derived)
        if found is None:
            artifact.has_unfinished_run(self.plan, self._has_stepped)
        return found if found is not None and self.is_complete() else None

    def run(self, console: Console) -> Artifact:
        """Makes the artefact, or keeps the one that is there."""
        found = self.finished()
        if found is not None and artifact.is_clean(self.plan.uri):
            show.print_kept(console, self.name)
            return found
        # One run at a time writes there: the lease lies beside the folder, which only its plan may fill.
        with lease.hold(f"{self.plan.uri.rstrip('/')}.lease.json") as held:
            if (found := self.finished()) is not None:  # another run has made it since, or was killed at its very end
                if not artifact.is_clean(self.plan.uri):
                    artifact.clean_up(self.plan.uri)
                show.print_kept(console, self.name)
                return found
            return self._made(console, held)

    def _made(self, console: Console, held: Lease) -> Artifact:
        seconds = show.stopwatch()
        with (
            show.stage(console, self.name) as reporter,
            artifact.writing(
                self.plan, resumable=self.is_resumable, precious=self._has_stepped, replace=self.is_derived, lease=held
            ) as draft,
        ):
            said = self.fill(draft, reporter)
        show.print_done(console, self.name, seconds(), said)
        if stop_request.clear_request():  # what was under way is done, and nothing else is begun
            raise KeyboardInterrupt
        return artifact.read(self.plan.uri, self.plan.kind, self.plan.kind)

    def _has_stepped(self) -> bool:
        if self.training_uri is None:
            return False
        return bool(run_log.steps(run_log.read(storage.join(self.training_uri, run_log.FOLDER), fields=("step",))))


def require(plan: Spec, job: str) -> str:
    """The folder of an input that must be finished and made with the same settings.

    Raises:
        ArtifactError: it is not there, or is another run's.
    """
    if artifact.find(plan) is None:
        raise ArtifactError(f"the {plan.kind} artefact is not there.", plan.uri, f"Make it with `scion {job} CONFIG`.")
    return plan.uri
