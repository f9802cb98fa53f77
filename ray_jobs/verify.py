"""`scion verify FOLDER`: checks an artefact."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_pipeline.artifacts import storage
from data_pipeline.artifacts.artifact import FINISHED
from data_pipeline.artifacts.check_result import CheckResult
from data_pipeline.errors import ArtifactError, ConfigError, ModelError, ScionError, VerifyError
from data_pipeline.feed import rank_feed
from data_pipeline.shards import manifest
from data_pipeline.shards import verify as shards
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers import verify as tokenizers
from ray_jobs import shard
from ray_jobs.job import Command
from trainer.checkpoints.store import WORKING, Store
from trainer.ledger import audit, ledger
from trainer.ledger.audit import History
from trainer.models import loading
from trainer.models.bidirectional import is_bidirectional
from trainer.models.packed_lm import PackedLM
from trainer.transfer import chain
from trainer.transfer.factorise import with_factors, without_factors
from trainer.transfer.in_process import GraftedModel
from trainer.transfer.plan import TransferPlan
from trainer.transfer.verify import Side
from trainer.transfer.verify import verify as verify_model

_FORWARD = 512
"""Tokens of the rows for the forward check, if the model has so many positions."""
COMMAND = Command(
    arguments="FOLDER [source_model=FOLDER] [shards=FOLDER]",
    summary="whether a transferred model, shards or a training are what they should be",
)


def command(arguments: list[str], console: Console) -> None:
    """Checks a folder that `scion transfer` or `scion shard` wrote, a training's folder, or any model.

    Raises:
        ConfigError: the arguments are not those of `COMMAND`.
        ArtifactError: the folder holds nothing of the kind.
        VerifyError: a check failed.
    """
    folder, *rest = arguments or [""]
    named = dict(item.split("=", 1) for item in rest if "=" in item)
    if not folder or len(named) != len(rest) or set(named) - {"source_model", "shards"}:
        raise ConfigError("the arguments are not right.", "scion verify", f"Usage: scion verify {COMMAND.arguments}")
    check, fix = _kind(folder, named)
    results = check(folder, named)
    for result in results:
        _print(result, console)
    _raise_failures(results, folder, fix)


def verify(
    what: str | os.PathLike[str] | GraftedModel,
    *,
    source_model: str | os.PathLike[str] | None = None,
    shards: str | os.PathLike[str] | None = None,
) -> list[CheckResult]:
    """Checks a grafted model, or a folder as `scion verify` does.

    Args:
        source_model: folder or hub name of the source model, where the artefact's own is no longer there.
        shards: the shards of a training, where they have moved.

    Raises:
        ArtifactError: the folder holds nothing that can be checked.
        ConfigError: `what` is neither a grafted model nor a folder.
        ModelError: the source model is of another architecture.
        VerifyError: a check failed; names it.
    """
    if not isinstance(what, GraftedModel | str | os.PathLike):
        raise ConfigError(f"expected a grafted model or a folder, got {type(what).__name__}.", "verify", "Save it first.")
    if isinstance(what, GraftedModel):
        source = _source_side(os.fspath(source_model or what.plan.source_model), what.plan)
        results, where, fix = (
            verify_model(source, Side(model=what.model, tokenizer=what.tokenizer), what.plan, given=what.has_given_tokenizer),
            "model",
            "Transfer again.",
        )
    else:
        what = os.fspath(what)
        named = {"source_model": source_model, "shards": shards}
        given = {name: os.fspath(value) for name, value in named.items() if value is not None}
        check, fix = _kind(what, given)
        results, where = check(what, given), what
    _raise_failures(results, where, fix, details=True)
    return results


def _raise_failures(results: list[CheckResult], where: str, fix: str, details: bool = False) -> None:
    """Raises VerifyError if a check failed; with `details` it says what the first failure of each was."""
    failed = [f"{result.check} ({result.failures[0]})" if details else result.check for result in results if not result.is_ok]
    if failed:
        raise VerifyError(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}.", where, fix)


def _kind(folder: str, named: dict[str, str]) -> tuple[Callable[[str, dict[str, str]], list[CheckResult]], str]:
    """The function that checks the folder, and the advice if it fails."""
    if storage.exists(storage.join(folder, ledger.FOLDER, ledger.PLAN)):
        return _run, "Do not use the model; report it with the folder `ledger`."
    if _artifact(folder).get("kind") == shard.KIND:
        return _shards, "Remove the files named and run `scion shard` again: what is intact is kept."
    if "source_model" not in named and not storage.exists(storage.join(folder, "plan.safetensors")):
        return _any_model, "Take another model, or report its architecture."
    return _model, "Transfer again."


def _run(folder: str, named: dict[str, str]) -> list[CheckResult]:
    """Compares the ledger of a training with its order and the shards."""
    uri = storage.join(folder, ledger.FOLDER)
    given = named.get("shards")
    if given and storage.exists(storage.join(given, "rows", manifest.NAME)):  # as `scion shard` wrote them
        given = storage.join(given, "rows")
    rows = rank_feed.load(storage.join(uri, ledger.PLAN), given)
    return audit.audit(uri, rows, audit.read_history(uri) or _so_far(folder))


def _so_far(folder: str) -> History:
    """The history of an unfinished run, from its newest checkpoint."""
    store = Store(storage.join(folder, WORKING), keep=3)
    newest = next(iter(store.usable()), None)
    if newest is None:
        return History(lineage=(), steps=0, skipped=())
    state = store.state(newest)
    skipped = [(skip["first"], skip["last"]) for skip in state["skips"]]
    return audit.parse_history({"lineage": state["lineage"], "steps": state["next_step"], "skipped": skipped})


def _model(folder: str, named: dict[str, str]) -> list[CheckResult]:
    """Compares a transferred model with its source."""
    found, artifact = TransferPlan.load(folder), _artifact(folder)
    metrics = artifact.get("metrics", {})
    named_source = named.get("source_model") or metrics.get("source_model") or found.source_model
    if not named_source:
        raise ArtifactError("it does not say what it was made from.", folder, "Name it: source_model=FOLDER.")
    source = _source_side(named_source, found)
    factors: dict[str, Any] = metrics.get("factors") or {}
    if factors:
        model = with_factors(source.model, factors["rank"], factors["split"])
        source = replace(source, model=model if factors["keep"] else without_factors(model))
    product = bool(factors) and not factors["keep"]
    made = _side(folder, found.seed)
    # A folder of GraftedModel.save has no artefact to say whose tokenizer it is.
    given = not artifact or bool(metrics.get("tokenizer"))
    return [*verify_model(source, made, found, product, given), forward(folder, made.model)]


def _any_model(folder: str, named: dict[str, str]) -> list[CheckResult]:
    """Checks a model that Scion did not make, with its tokenizer."""
    side = _side(folder, seed=0)
    return [_fits(folder, side), *tokenizers.verify(side.tokenizer, given=True), forward(folder, side.model)]


def _fits(folder: str, side: Side) -> CheckResult:
    """Checks that the model has a row for every token, and a masked language model a mask token."""
    embedding: Any = side.model.get_input_embeddings()
    rows, highest = len(embedding.weight), max(side.tokenizer.get_vocab().values())
    with model_folder(folder) as local:
        masked = loading.kind_of(local) == "masked"
    wrong = {
        f"the tokenizer has ids up to {highest:,}, the model {rows:,} rows": highest >= rows,
        "the tokenizer of a masked language model has no mask token": masked and side.tokenizer.mask_token_id is None,
    }
    failures = tuple(message for message, holds in wrong.items() if holds)
    return CheckResult(check="tokenizer fits", detail=f"ids up to {highest:,}, {rows:,} rows", failures=failures)


def forward(folder: str, model: PreTrainedModel) -> CheckResult:
    """Runs the check with which every training begins, on a CPU.

    Tells how a language model is trained on packed rows, or why it cannot be.
    """
    with model_folder(folder) as local:
        kind = loading.kind_of(local)
    if kind not in ("masked", "causal"):
        return CheckResult(check="forward", detail=f"a {kind} model is not trained on packed rows")
    is_causal = kind == "causal" and not is_bidirectional(model.config)
    try:
        found = PackedLM(model, is_causal).check(min(_FORWARD, loading.max_length(model.config)))
    except ModelError as error:
        return CheckResult(check="forward", detail="", failures=(str(error),))
    rows = "rows of one document" if found.path.kernel is None else f"packed rows, {found.path.kernel} attention"
    left_out = f"; {'; '.join(found.reasons)}" if found.reasons else ""
    detail = (
        f"{rows}, {found.path.head} head: within {found.difference:.1g} of its own, {found.tolerance:.1g} allowed{left_out}"
    )
    return CheckResult(check="forward", detail=detail)


def _shards(folder: str, named: dict[str, str]) -> list[CheckResult]:
    """Compares packed rows with their manifests, and checks their tokenizer."""
    tokenizer, parts = storage.join(folder, "tokenizer"), {part: storage.join(folder, part) for part in shard.PARTS}
    heldout = storage.join(folder, "text", "heldout")
    documents = [storage.join(heldout, name) for name in storage.files(heldout)]
    packed = [
        replace(finding, check=f"{part}: {finding.check}")
        for part, inner in parts.items()
        for finding in shards.verify(inner, manifest.load(inner), tokenizer)
    ]
    given = "tokenizer" in _artifact(folder).get("inputs", {})
    # Shards with wrong bytes are not read further.
    return (
        packed
        if not all(finding.is_ok for finding in packed)
        else [*packed, *shards.verify_tokenizer(tokenizer, documents, _old_tokenizer(folder, named), given)]
    )


def _old_tokenizer(folder: str, named: dict[str, str]) -> PreTrainedTokenizerFast | None:
    """The source model's tokenizer, if it is still available."""
    spec = named.get("source_model") or _artifact(folder).get("metrics", {}).get("source_model")
    if not spec:
        return None
    try:
        with model_folder(str(spec)) as source:
            return train.load(source)
    except ScionError:
        if "source_model" in named:
            raise
        return None


def _artifact(folder: str) -> dict[str, Any]:
    """What the job left about the folder; nothing where it was moved without it."""
    path = storage.join(folder, FINISHED)
    return dict(json.loads(storage.read_bytes(path))) if storage.exists(path) else {}


def _source_side(spec: str, of: TransferPlan) -> Side:
    """The source model of a plan, with random weights where the method draws the whole model anew."""
    side = _side(spec, of.seed)
    return replace(side, model=loading.with_random_weights(side.model, of.seed)) if chain.is_from_scratch(of.method) else side


def _side(spec: str, seed: int) -> Side:
    """The model as the transfer saw it, in the format that it is saved in.

    A head that the folder lacks is drawn from the plan's seed.
    """
    with model_folder(spec) as folder:
        return Side(model=loading.language_model(folder, seed, "auto"), tokenizer=train.load(folder))


def _print(finding: CheckResult, console: Console) -> None:
    mark = "[green]ok[/green]    " if finding.is_ok else "[red]failed[/red]"
    console.print(f"{mark} {finding.check:<36} {escape(finding.detail)}", highlight=False)
    for failure in finding.failures:
        console.print(f"         {failure}", highlight=False, markup=False)
