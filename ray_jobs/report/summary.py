"""What a run found, as one dict: `summary.json`, and all that the page and the plots know."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.artifacts.artifact import Artifact

Summary = dict[str, Any]

SCHEMA = 1
"""The version of `summary.schema.json`, which says what each key means; it rises where a key changes its meaning or goes."""

STARTS = ("random", "transferred")
MODELS = (
    "source_model", "random_untrained", "random_pretrained", "random_trained",
    "transferred_untrained", "transferred_pretrained", "transferred_trained", "merged",
)  # fmt: skip
STAGES = (
    "shard", "transfer", "random/transfer", "pretrain", "random/pretrain", "embed", "random/embed",
    "merge", "evaluate", "serve",
)  # fmt: skip
"""Every stage in the order in which the pipeline runs them; `random/` is the random control's chain."""


def summarize(found: Mapping[str, Artifact], folders: Mapping[str, str], config: Mapping[str, Any]) -> Summary:
    """The summary of the artefacts that there are, of which the shards are one. Nothing in it depends on the date or on the
    machine it is built on; what no artefact says is empty.

    Args:
        found: artefacts by their name in `STAGES`.
        folders: where the chain of each start lies: `{"random": "random", "transferred": ""}`.
        config: the resolved configuration.
    """
    chains = {start: chain for start in STARTS if start in folders and (chain := _chain(found, folders[start]))}
    shard, evaluated = found["shard"].metrics, found["evaluate"].metrics if "evaluate" in found else {}
    transferred = {start: chain["transfer"].metrics for start, chain in chains.items() if "transfer" in chain}
    own = list(transferred.values())[-1] if transferred else {}
    pretrained = {start: chain["pretrain"].metrics for start, chain in chains.items() if "pretrain" in chain}
    return {
        "schema": SCHEMA,
        "method": config["method"],
        "paper": own.get("paper", ""),
        "retrieval": {model: evaluated["retrieval"][model] for model in MODELS if model in evaluated.get("retrieval", {})},
        "retrieval_by_language": evaluated.get("retrieval_by_language", {}),
        "pairs": evaluated.get("pairs", 0),
        "pairs_by_language": evaluated.get("pairs_by_language", {}),
        "bits_per_byte": {start: metrics["bits_per_byte"] for start, metrics in pretrained.items()},
        "bits_per_byte_by_language": {start: metrics["bits_per_byte_by_language"] for start, metrics in pretrained.items()},
        "loss": {job: _losses(chains, job) for job in ("pretrain", "embed")},
        "retrieval_in_training": _retrieval_in_training(chains),
        "provenance": {start: metrics["provenance"] for start, metrics in transferred.items()},
        "placed": own.get("placed", {}),
        "parameters": own.get("parameters"),
        "fertility": shard["fertility"],
        "fertility_by_language": shard["fertility_by_language"],
        "data": {name: shard[name] for name in ("documents", "rows", "tokens", "padding_share", "dataset")},
        "merged_models": found["merge"].metrics["models"] if "merge" in found else 0,
        "serve": {name: found["serve"].metrics[name] for name in ("requests", "max_abs_diff")} if "serve" in found else {},
        "seconds": {name: found[name].seconds for name in STAGES if name in found},
        "devices": {
            name: found[name].metrics["devices"] for name in STAGES if name in found and "devices" in found[name].metrics
        },
        "changes": {name: changes for name in STAGES if name in found and (changes := found[name].metrics.get("changes"))},
        "versions": _versions(found.values()),
        "config": dict(config),
    }


def to_json(summary: Summary) -> bytes:
    """`summary.json`: sorted, so that two runs can be compared line by line."""
    return (json.dumps(summary, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def starts(summary: Summary) -> tuple[str, ...]:
    """The starts that were made, the user's last: with the method `random` it is the control."""
    return tuple(start for start in STARTS if start in summary["provenance"])


def models(summary: Summary) -> list[str]:
    """The models that retrieval was measured of, in order."""
    return [model for model in MODELS if model in summary["retrieval"]]


def best(summary: Summary) -> str:
    """The last model of the user's chain that retrieval was measured of."""
    return [model for model in models(summary) if model != "merged"][-1]


def before_and_after(summary: Summary, start: str) -> tuple[tuple[int, float], tuple[int, float]]:
    """The first and the last (step, bits per byte) of a start."""
    steps = sorted((int(step), value) for step, value in summary["bits_per_byte"][start].items())
    return steps[0], steps[-1]


def languages(summary: Summary) -> list[dict[str, Any]]:
    """A row a language: pieces a word of the old and the new tokenizer, bits per byte of each start before and after, pairs,
    and accuracy@1, both ways, of the source and of the trained models; None where there is no text, or no pair, in it."""
    bits = summary["bits_per_byte_by_language"]
    ends = [str(step) for step, _ in before_and_after(summary, next(iter(bits)))] if bits else []
    shown = [model for model in models(summary) if model == "source_model" or model.endswith("_trained")]
    retrieved = {model: summary["retrieval_by_language"].get(model, {}) for model in shown}
    scored = [scores for steps in bits.values() for scores in steps.values()]
    pieces: dict[str, Any] = summary["fertility_by_language"]
    names = sorted({lang for scores in [*scored, *retrieved.values(), pieces] for lang in scores})

    def accuracy(model: str, lang: str) -> tuple[float, float] | None:
        ways = retrieved[model].get(lang)
        return None if ways is None else (ways["forward"]["accuracy_at_1"], ways["backward"]["accuracy_at_1"])

    return [
        {
            "lang": lang,
            "pieces": [pieces[lang][name]["pieces_per_word"] for name in ("source", "target")] if lang in pieces else None,
            "pairs": summary["pairs_by_language"].get(lang),
            "bits": {start: [bits[start].get(step, {}).get(lang) for step in ends] for start in bits},
            "accuracy": {model: accuracy(model, lang) for model in shown},
        }
        for lang in names
    ]


def _chain(found: Mapping[str, Artifact], folder: str) -> dict[str, Artifact]:
    names = {job: f"{folder}/{job}" if folder else job for job in ("transfer", "pretrain", "embed")}
    return {job: found[name] for job, name in names.items() if name in found}


def _losses(chains: Mapping[str, Mapping[str, Artifact]], job: str) -> dict[str, list[float]]:
    return {start: [step["loss"] for step in chain[job].metrics["history"]] for start, chain in chains.items() if job in chain}


def _retrieval_in_training(chains: Mapping[str, Mapping[str, Artifact]]) -> dict[str, dict[str, Any]]:
    """Step to retrieval both ways, of the starts whose embedder was scored on the way, not only before and after."""
    found = {start: chain["embed"].metrics.get("retrieval", {}) for start, chain in chains.items() if "embed" in chain}
    return {start: scores for start, scores in found.items() if len(scores) > 2}


def _versions(artefacts: Iterable[Artifact]) -> dict[str, str]:
    """The version of each package; all of them, when the stages ran with different ones."""
    seen: dict[str, set[str]] = {}
    for artefact in artefacts:
        for package, version in artefact.versions.items():
            seen.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(seen[package])) for package in sorted(seen)}
