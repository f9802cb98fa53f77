"""The results of a run as one dict: the content of `summary.json`, and the only input of the page and the plots."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.artifacts.artifact import Artifact

Summary = dict[str, Any]

SCHEMA = 1
"""The version of `summary.schema.json`, which defines the keys; incremented if a key changes its meaning or is removed."""

STARTS = ("random", "transferred", "model")
MODELS = (
    "source_model", "random_untrained", "random_pretrained", "random_trained",
    "transferred_untrained", "transferred_pretrained", "transferred_trained", "model_trained", "merged",
)  # fmt: skip
"""The run's own models; other models come behind them."""
FURTHER = ("ranking", "isotropy", "sts", "classification", "clustering", "reranking", "speed", "nested")
"""The metrics beside retrieval."""
STAGES = (
    "shard", "transfer", "random/transfer", "pretrain", "random/pretrain", "mine", "embed", "random/embed",
    "merge", "evaluate", "serve",
)  # fmt: skip
"""All stages in the order of the pipeline; `random/` is the chain of the random control."""


def summarize(artifacts: Mapping[str, Artifact], folders: Mapping[str, str], config: Mapping[str, Any]) -> Summary:
    """Summarises the finished artefacts.

    The result does not depend on the date or on the machine that builds it; keys without an artefact are empty.

    Args:
        artifacts: artefacts by their name in `STAGES`.
        folders: the folder of each start's chain: `{"random": "random", "transferred": ""}`.
        config: the resolved config.
    """
    chains = {start: chain for start in STARTS if start in folders and (chain := _chain(artifacts, folders[start]))}
    names = ("shard", "evaluate", "serve")
    shard, evaluation, served = (artifacts[name].metrics if name in artifacts else {} for name in names)

    def of_stages(metric: str) -> dict[str, Any]:
        """A metric of the stages that have it."""
        return {name: found for name in STAGES if name in artifacts and (found := artifacts[name].metrics.get(metric))}

    transfers = {start: chain["transfer"].metrics for start, chain in chains.items() if "transfer" in chain}
    user_metrics = [{}, *transfers.values()][-1]
    pretrainings = {start: chain["pretrain"].metrics for start, chain in chains.items() if "pretrain" in chain}
    return {
        "schema": SCHEMA,
        "method": config["method"],
        "paper": user_metrics.get("paper", ""),
        "retrieval": by_model(evaluation.get("retrieval", {})),
        "retrieval_by_language": evaluation.get("retrieval_by_language", {}),
        "scores": {name: by_model(evaluation[name]) for name in FURTHER if name in evaluation},
        "differences": {name: by_model(models) for name, models in evaluation.get("differences", {}).items()},
        "pairs": evaluation.get("pairs", 0),
        "pairs_by_language": evaluation.get("pairs_by_language", {}),
        "bits_per_byte": {start: metrics["bits_per_byte"] for start, metrics in pretrainings.items()},
        "bits_per_byte_by_language": {start: metrics["bits_per_byte_by_language"] for start, metrics in pretrainings.items()},
        "loss": {job: _losses(chains, job) for job in ("pretrain", "embed")},
        "retrieval_in_training": _retrieval_in_training(chains),
        "provenance": {start: metrics["provenance"] for start, metrics in transfers.items()},
        "placed": user_metrics.get("placed", {}),
        "parameters": user_metrics.get("parameters"),
        "fertility": shard.get("fertility", {}),
        "fertility_by_language": shard.get("fertility_by_language", {}),
        "data": {name: shard[name] for name in ("documents", "rows", "tokens", "padding_share", "dataset") if shard},
        "merged_models": artifacts["merge"].metrics["models"] if "merge" in artifacts else 0,
        "serve": {name: served[name] for name in ("requests", "max_abs_diff") if served},
        "seconds": {name: artifacts[name].seconds for name in STAGES if name in artifacts},
        "devices": of_stages("devices"),
        "changes": of_stages("changes"),
        "versions": _versions(artifacts.values()),
        "config": dict(config),
    }


def by_model(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores in the order of the run, the own models first; `summary.json` sorts them by name."""
    return {model: scores[model] for model in (*MODELS, *scores) if model in scores}


def model_label(model: str) -> str:
    """The label of a model: "random, untrained" for `random_untrained`."""
    if model not in MODELS:
        return model
    return model.replace("_", " ") if model == "source_model" else model.replace("_", ", ")


def to_json(summary: Summary) -> bytes:
    """The bytes of `summary.json`, with sorted keys, so two runs can be compared line by line."""
    return (json.dumps(summary, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def starts(summary: Summary) -> tuple[str, ...]:
    """The starts with a transfer, the user's last; with the method `random` it is the control."""
    return tuple(start for start in STARTS if start in summary["provenance"])


def models(summary: Summary) -> list[str]:
    """The models with retrieval scores, in order."""
    return list(by_model(summary["retrieval"]))


def best(summary: Summary) -> str:
    """The model with retrieval scores that the run is about, see `last_model`."""
    return last_model(models(summary))


def last_model(names: Sequence[str]) -> str:
    """The last model that the run has made: of its chain, else the merged one; if it has made none, the last of all."""
    made = [name for name in names if name in MODELS and name not in ("source_model", "merged")]
    return (made or [name for name in names if name == "merged"] or names)[-1]


def before_and_after(summary: Summary, start: str) -> tuple[tuple[int, float], tuple[int, float]]:
    """The first and the last (step, bits per byte) of a start."""
    steps = sorted((int(step), value) for step, value in summary["bits_per_byte"][start].items())
    return steps[0], steps[-1]


def languages(summary: Summary) -> list[dict[str, Any]]:
    """One record per language of its tokens, its bits per byte and its retrieval.

    Pieces per word of the old and the new tokenizer, bits per byte of each start before and after, text pairs, and accuracy@1
    both ways of the source and the trained models. None without text or pairs in the language.
    """
    bits = summary["bits_per_byte_by_language"]
    ends = [str(step) for step, _ in before_and_after(summary, next(iter(bits)))] if bits else []
    model_names = [model for model in models(summary) if model == "source_model" or model.endswith("_trained")]
    retrieval = {model: summary["retrieval_by_language"].get(model, {}) for model in model_names}
    bits_by_language = [scores for steps in bits.values() for scores in steps.values()]
    pieces: dict[str, Any] = summary["fertility_by_language"]
    names = sorted({lang for scores in [*bits_by_language, *retrieval.values(), pieces] for lang in scores})

    def accuracy(model: str, lang: str) -> tuple[float, float] | None:
        ways = retrieval[model].get(lang)
        return None if ways is None else (ways["forward"]["accuracy_at_1"], ways["backward"]["accuracy_at_1"])

    return [
        {
            "lang": lang,
            "pieces": [pieces[lang][name]["pieces_per_word"] for name in ("source", "target")] if lang in pieces else None,
            "pairs": summary["pairs_by_language"].get(lang),
            "bits": {start: [bits[start].get(step, {}).get(lang) for step in ends] for start in bits},
            "accuracy": {model: accuracy(model, lang) for model in model_names},
        }
        for lang in names
    ]


def _chain(artifacts: Mapping[str, Artifact], folder: str) -> dict[str, Artifact]:
    names = {job: f"{folder}/{job}" if folder else job for job in ("transfer", "pretrain", "embed")}
    return {job: artifacts[name] for job, name in names.items() if name in artifacts}


def _losses(chains: Mapping[str, Mapping[str, Artifact]], job: str) -> dict[str, list[float]]:
    return {start: [step["loss"] for step in chain[job].metrics["history"]] for start, chain in chains.items() if job in chain}


def _retrieval_in_training(chains: Mapping[str, Mapping[str, Artifact]]) -> dict[str, dict[str, Any]]:
    """Retrieval by start and step, for starts that were also scored during training, not only before and after."""
    retrieval = {start: chain["embed"].metrics.get("retrieval", {}) for start, chain in chains.items() if "embed" in chain}
    return {start: scores for start, scores in retrieval.items() if len(scores) > 2}


def _versions(artefacts: Iterable[Artifact]) -> dict[str, str]:
    """The version of each package, or all versions if the stages ran with different ones."""
    versions: dict[str, set[str]] = {}
    for artefact in artefacts:
        for package, version in artefact.versions.items():
            versions.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions[package])) for package in sorted(versions)}
