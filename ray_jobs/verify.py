"""`scion verify FOLDER`: whether an artefact is what it should be, and what of it is not."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console

from data_pipeline import storage
from data_pipeline.artifact import FINISHED
from data_pipeline.errors import ArtifactError, ConfigError, VerifyError
from data_pipeline.finding import Finding
from data_pipeline.shards import manifest
from data_pipeline.shards import verify as shards
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from ray_jobs import shard
from trainer.models import loading
from trainer.transfer import plan
from trainer.transfer.factorise import multiplied_out, with_factors
from trainer.transfer.methods import METHODS
from trainer.transfer.verify import Side, verify

USAGE = "scion verify FOLDER [source_model=FOLDER]"


def command(arguments: list[str], console: Console) -> None:
    """Checks a folder that `scion transfer` or `scion shard` wrote.

    Raises:
        ConfigError: the arguments are not as in `USAGE`.
        ArtifactError: the folder holds neither a transferred model nor shards.
        VerifyError: a check failed.
    """
    folder, *rest = arguments or [""]
    named = dict(item.split("=", 1) for item in rest if "=" in item)
    if not folder or len(named) != len(rest) or set(named) - {"source_model"}:
        raise ConfigError("the arguments are not right.", "scion verify", f"Usage: {USAGE}")
    check, fix = _KINDS.get(_artifact(folder).get("kind", ""), (_model, "Transfer again."))
    findings = check(folder, named.get("source_model"))
    for finding in findings:
        _print(finding, console)
    failed = [finding.check for finding in findings if not finding.ok]
    if failed:
        raise VerifyError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}.", folder, fix)


def _model(folder: str, source_model: str | None) -> list[Finding]:
    """A transferred model against the one that it was made from."""
    found = plan.load(folder)
    source = _side(source_model or _source(folder), found.seed)
    if METHODS[found.method].fresh:
        source = replace(source, model=loading.drawn_anew(source.model, found.seed))
    factors: dict[str, Any] = _artifact(folder).get("metrics", {}).get("factors") or {}
    if factors:
        model = with_factors(source.model, factors["rank"], factors["split"])
        source = replace(source, model=model if factors["keep"] else multiplied_out(model))
    product = bool(factors) and not factors["keep"]
    return verify(source, _side(folder, found.seed), found, product)


def _shards(folder: str, source_model: str | None) -> list[Finding]:
    """Packed rows, those to train on and those that are held out, against their manifests."""
    tokenizer, parts = storage.join(folder, "tokenizer"), {part: storage.join(folder, part) for part in shard.PARTS}
    return [
        replace(finding, check=f"{part}: {finding.check}")
        for part, inner in parts.items()
        for finding in shards.verify(inner, manifest.load(inner), tokenizer)
    ]


_KINDS: dict[str, tuple[Callable[[str, str | None], list[Finding]], str]] = {
    shard.KIND: (_shards, "Remove the files named and run `scion shard` again: what is intact is kept."),
}


def _artifact(folder: str) -> dict[str, Any]:
    """What the job left about the folder; nothing where it was moved without it."""
    path = storage.join(folder, FINISHED)
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}


def _source(folder: str) -> str:
    """The model that the folder says it was made from."""
    named = _artifact(folder).get("metrics", {}).get("source_model")
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
