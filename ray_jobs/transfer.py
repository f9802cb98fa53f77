"""`scion transfer`: gives the source model the new vocabulary, with embeddings from a method."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from cluster.ray_executor import RayExecutor
from data_pipeline.artifacts import artifact, fingerprints, storage
from data_pipeline.artifacts.artifact import Draft, Spec
from data_pipeline.errors import ArtifactError, ConfigError
from data_pipeline.pairs import text_pairs as pairs
from data_pipeline.shards import manifest, sample
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.sources.models import model_folder
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.canonical import vocabulary_hash
from ray_jobs import shard
from ray_jobs.config.schema import FactoriseConfig, ScionConfig
from ray_jobs.console import Reporter
from ray_jobs.inputs import data_fingerprints, method_inputs, model_fingerprint
from ray_jobs.job import Job
from ray_jobs.stage import ChainStart, Stage, main_start, require
from trainer.models import loading
from trainer.transfer import chain
from trainer.transfer.factorise import rank_for_energy, rank_for_parameters, with_factors, without_factors
from trainer.transfer.graft import graft
from trainer.transfer.plan import TransferPlan
from trainer.transfer.problem import Placement, Problem, assemble
from trainer.word_vectors.texts import Texts

JOB = Job(
    summary="the source model with the new vocabulary",
    reads="OUTPUT/shards (made first if missing) and source_model",
    writes="OUTPUT/transfer: a Hugging Face folder, and the plan that made it",
    keys=("source_model", "pairs", "method", "transfer"),
    after=("shard",),
)
KIND = "model"
TEXT_BYTES = 1 << 30
"""UTF-8 bytes of text that methods learn from at most: the driver holds several copies."""


def spec(config: ScionConfig, start: ChainStart) -> Spec:
    """The specification of the transferred model of the chain `start`; fingerprints its inputs.

    Raises:
        ArtifactError: `transfer.plan` holds no plan.
    """
    own = {name: getattr(config.transfer.methods, name) for name in chain.parts(start.method)}
    settings = {
        "method": start.method,
        "copy_shared": config.transfer.copy_shared,
        "match": list(config.transfer.match),
        "factorise": artifact.identity(config.transfer.factorise),
        "settings": {name: artifact.identity(settings) for name, settings in own.items()},
        "seed": start.seed,
    }
    inputs = {
        "shards": shard.spec(config).id,
        "source_model": model_fingerprint(config.source_model),
        **data_fingerprints(config, "pairs"),
        **{f"{name}.{key}": value for name, settings in own.items() for key, value in method_inputs(settings)},
    }
    if config.transfer.plan is not None and start.name == "transferred":
        path = storage.join(config.transfer.plan, "plan.safetensors")
        if not storage.exists(path):
            raise ArtifactError(
                "there is no plan.", f"transfer.plan={config.transfer.plan}", "Name what `scion transfer` wrote."
            )
        inputs["plan"] = fingerprints.fingerprint(path)
    return Spec(uri=start.at(config, "transfer"), kind=KIND, config={"transfer": settings}, inputs=inputs)


def stage(config: ScionConfig, start: ChainStart) -> Stage:
    return Stage(
        name=f"transfer {start.method}",
        spec=spec(config, start),
        fill=lambda draft, report: fill(config, start, draft, report),
    )


def fill(config: ScionConfig, start: ChainStart, draft: Draft, report: Reporter) -> str:
    """Writes a Hugging Face folder, and its transfer plan. Returns a line for the user."""
    require(shard.spec(config), "shard")
    report("read", 0, 3)
    problem = make_problem(config, start.seed, storage.join(draft.uri, "source"), report.part(start.method), report.note)
    report(start.method, 1, 3)
    given = config.transfer.plan if start.name == "transferred" else None
    made = _load_plan(given, problem) if given else assemble(problem, place(config, start.method, problem), start.method)
    if warning := chain.shortfall(made):
        report.note(warning)
    report("apply", 2, 3)
    parameters, rank = write(config, problem, made, draft.uri)
    made.save(draft.uri)
    storage.remove(storage.join(draft.uri, "source"))
    fates = made.fates()
    draft.metrics = {
        "provenance": fates,
        "placed": made.placed_by_method(),
        "paper": chain.paper(made.method),
        "text_bytes": text_bytes(config),
        "parameters": parameters,
        "source_model": config.source_model,
        "tokenizer": config.tokenizer,
        "factors": None if rank is None else artifact.identity(config.transfer.factorise) | {"rank": rank},
    }
    fates_line = " · ".join(f"{count:,} {fate.replace('_', ' ')}" for fate, count in fates.items())
    methods = made.placed_by_method()
    placed = ", ".join(f"{count:,} by {name}" for name, count in methods.items())
    return f"{fates_line} (placed {placed})" if len(methods) > 1 else fates_line


def make_problem(
    config: ScionConfig,
    seed: int,
    cache: str,
    progress: Callable[[int, int], None],
    note: Callable[[str], None],
) -> Problem:
    """The input of every method: both tokenizers, the texts, and an executor on Ray.

    Args:
        cache: folder for copies of inputs that are not files.
        progress: receives the numbers of finished blocks and of all blocks of a search.
        note: receives an estimate of the costs of a search.
    """
    shards, settings = shard.folder(config), config.transfer
    training = pairs.load(config.pairs, cache, key="pairs")
    rates, sizes = sample.sampling_rates(text_sizes(config), TEXT_BYTES), text_bytes(config)
    if sizes["sample"] < sizes["corpus"]:
        note(f"vectors and dictionaries learn from {sizes['sample']:,} of {sizes['corpus']:,} bytes of text")
    texts = Texts(
        corpus=lambda: (text for _, text in shard.training_text(config, rates)),
        anchors=training.anchors,
        positives=training.positives,
        languages=texts_by_language(config, training, rates),
    )
    with model_folder(config.source_model) as folder:
        source = train.load(folder)
    executor = RayExecutor(int(settings.max_memory * 2**30), note, progress)
    target = load_tokenizer(storage.join(shards, "tokenizer"))
    return Problem(source, target, texts, seed, settings.copy_shared, settings.match, executor)


def text_bytes(config: ScionConfig) -> dict[str, int]:
    """Approximate UTF-8 bytes of the text, and of the sample that methods learn from."""
    sizes = text_sizes(config)
    rates = sample.sampling_rates(sizes, TEXT_BYTES)
    return {"sample": round(sum(rates[lang] * size for lang, size in sizes.items())), "corpus": sum(sizes.values())}


def text_sizes(config: ScionConfig) -> dict[str, int]:
    """UTF-8 bytes of each language's text."""
    streams = manifest.load(storage.join(shard.folder(config), "rows")).streams
    return {lang: sum(one.text_bytes for one in parts) for lang, parts in streams.items()}


def texts_by_language(config: ScionConfig, training: pairs.Pairs, rates: Mapping[str, float]) -> dict[str, Texts]:
    """The texts of each of several languages; empty if one of them has no pairs."""
    langs = set(rates)
    if len(langs) < 2 or not langs <= set(training.langs):
        return {}

    def of(lang: str) -> Texts:
        own = [place for place, name in enumerate(training.langs) if name == lang]
        return Texts(
            corpus=lambda: (text for name, text in shard.training_text(config, rates) if name == lang),
            anchors=[training.anchors[place] for place in own],
            positives=[training.positives[place] for place in own],
        )

    return {lang: of(lang) for lang in sorted(langs)}


def place(config: ScionConfig, method: str, problem: Problem) -> Placement:
    """The placement of a method or chain, with its settings in the configuration."""
    return chain.place(problem, method, partial(getattr, config.transfer.methods))


def write(config: ScionConfig, problem: Problem, made: TransferPlan, uri: str) -> tuple[int, int | None]:
    """Applies a plan to the source model and saves the result with its tokenizer.

    Returns:
        The number of parameters, and the rank of the embeddings if they are factorised.
    """
    with model_folder(config.source_model) as folder:
        model = loading.language_model(folder, problem.seed, "auto")
    if chain.is_from_scratch(made.method):
        model = loading.with_random_weights(model, problem.seed)
    rank = _rank(config.transfer.factorise, model, len(made))
    if rank is not None:
        model = with_factors(model, rank, config.transfer.factorise.split)
    graft(model, made, problem.target)
    if rank is not None and not config.transfer.factorise.keep:
        model = without_factors(model)
    with storage.local_output(uri) as folder:
        model.save_pretrained(folder)
        problem.target.save_pretrained(folder)
    return loading.parameter_count(model), rank


def _rank(settings: FactoriseConfig, model: PreTrainedModel, rows: int) -> int | None:
    """The rank of the factors; None for no factors.

    Raises:
        ConfigError: factors of that rank have more parameters than the matrix.
    """
    embedding: Any = model.get_input_embeddings()
    matrix = embedding.weight.detach()
    if settings.energy is not None:
        rank = rank_for_energy(matrix, settings.energy)
    elif settings.parameters is not None:
        rank = min(len(matrix), rank_for_parameters(settings.parameters, rows, matrix.shape[1]))
    elif settings.rank is not None:
        rank = settings.rank
    else:
        return None
    if settings.keep and rank * (rows + matrix.shape[1]) >= rows * matrix.shape[1]:
        raise ConfigError(
            f"factors of rank {rank} are no smaller than the matrix of {rows:,} x {matrix.shape[1]:,}.",
            "transfer.factorise.keep",
            "Choose a lower rank, or keep=false.",
        )
    return rank


def _load_plan(uri: str, problem: Problem) -> TransferPlan:
    """Loads a plan that another run made.

    Raises:
        ArtifactError: there is none, or it is for other tokenizers.
    """
    found = TransferPlan.load(uri)
    for side, made_for, here in (
        ("source", found.source_tokenizer, problem.source),
        ("new", found.target_tokenizer, problem.target),
    ):
        if made_for != vocabulary_hash(here):
            raise ArtifactError(
                f"the plan was made for another {side} tokenizer.",
                f"transfer.plan={uri}",
                "Use the models, text and seed that it was made with; only the weights may be others.",
            )
    return found


def main(config: ScionConfig, console: Console) -> None:
    """Makes missing shards first: the new vocabulary is part of them."""
    shard.stage(config).run(console)
    stage(config, main_start(config)).run(console)


if __name__ == "__main__":
    from ray_jobs.cli import run_module

    run_module(__file__)
