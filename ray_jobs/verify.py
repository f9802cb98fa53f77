"""`scion verify MODEL`: whether a transferred model is what its plan says, and which rows are not."""

import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from data_pipeline import storage
from data_pipeline.artifact import FINISHED
from data_pipeline.errors import ArtifactError, ConfigError, VerifyError
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from trainer.models import loading
from trainer.transfer import plan
from trainer.transfer.factorise import multiplied_out, with_factors
from trainer.transfer.methods import METHODS
from trainer.transfer.verify import Finding, Side, verify

USAGE = "scion verify MODEL [source_model=FOLDER]"


def command(arguments: list[str], console: Console) -> None:
    """Checks the folder that `scion transfer` wrote, against the model that it was made from.

    Raises:
        ConfigError: the arguments are not as in `USAGE`.
        ArtifactError: the folder holds no transferred model.
        VerifyError: a check failed.
    """
    folder, *rest = arguments or [""]
    named = dict(item.split("=", 1) for item in rest if "=" in item)
    if not folder or len(named) != len(rest) or set(named) - {"source_model"}:
        raise ConfigError("the arguments are not right.", "scion verify", f"Usage: {USAGE}")
    found = plan.load(folder)
    source = _side(named.get("source_model") or _source(folder), found.seed)
    if METHODS[found.method].fresh:
        source = replace(source, model=loading.drawn_anew(source.model, found.seed))
    factors: dict[str, Any] = _metrics(folder).get("factors") or {}
    if factors:
        model = with_factors(source.model, factors["rank"], factors["split"])
        source = replace(source, model=model if factors["keep"] else multiplied_out(model))
    product = bool(factors) and not factors["keep"]
    findings = verify(source, _side(folder, found.seed), found, product)
    for finding in findings:
        _print(finding, console)
    failed = [finding.check for finding in findings if not finding.ok]
    if failed:
        raise VerifyError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}.", folder, "Transfer again.")


def _metrics(folder: str) -> dict[str, Any]:
    """What the transfer left about itself; nothing where the folder was moved without it."""
    path = storage.join(folder, FINISHED)
    return dict(json.loads(storage.read_bytes(path))["metrics"]) if storage.exists(path) else {}


def _source(folder: str) -> str:
    """The model that the folder says it was made from."""
    named = _metrics(folder).get("source_model")
    if not named:
        raise ArtifactError("it does not say what it was made from.", folder, "Name it: source_model=FOLDER.")
    return str(named)


def _side(spec: str, seed: int) -> Side:
    """The model as the transfer saw it: a head that the folder lacks is drawn from the plan's seed."""
    with model_folder(spec) as folder:
        return Side(model=loading.language_model(folder, seed), tokenizer=train.load(folder))


def _print(finding: Finding, console: Console) -> None:
    mark = "[green]ok[/green]    " if finding.ok else "[red]failed[/red]"
    console.print(f"{mark} {finding.check:<36} {finding.said}", highlight=False)
    for failure in finding.failures:
        console.print(f"         {failure}", highlight=False, markup=False)
