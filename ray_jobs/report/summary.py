"""What a run found, as one dict: `summary.json`, and all that the page and the plots know."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.artifact import Artifact

Summary = dict[str, Any]

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
    """The summary of finished artefacts. Nothing in it depends on the date or on the machine it is built on.

    Args:
        found: artefacts by their name in `STAGES`; those of `random/` are absent when the method is `random`.
        folders: where the chain of each start lies: `{"random": "random", "transferred": ""}`.
        config: the resolved configuration.
    """
    chains = {start: _chain(found, folders[start]) for start in STARTS}
    shard, evaluated = found["shard"].metrics, found["evaluate"].metrics
    return {
        "method": config["method"],
        "paper": chains["transferred"]["transfer"].metrics["paper"],
        "retrieval": {model: evaluated["retrieval"][model] for model in MODELS},
        "retrieval_by_language": evaluated["retrieval_by_language"],
        "pairs": evaluated["pairs"],
        "pairs_by_language": evaluated["pairs_by_language"],
        "bits_per_byte": {start: chain["pretrain"].metrics["bits_per_byte"] for start, chain in chains.items()},
        "bits_per_byte_by_language": {
            start: chain["pretrain"].metrics["bits_per_byte_by_language"] for start, chain in chains.items()
        },
        "loss": {
            job: {start: [step["loss"] for step in chain[job].metrics["history"]] for start, chain in chains.items()}
            for job in ("pretrain", "embed")
        },
        "provenance": {start: chain["transfer"].metrics["provenance"] for start, chain in chains.items()},
        "placed": chains["transferred"]["transfer"].metrics["placed"],
        "parameters": chains["transferred"]["transfer"].metrics["parameters"],
        "fertility": shard["fertility"],
        "fertility_by_language": shard["fertility_by_language"],
        "data": {name: shard[name] for name in ("documents", "rows", "tokens", "padding_share", "dataset")},
        "merged_models": found["merge"].metrics["models"],
        "serve": {name: found["serve"].metrics[name] for name in ("requests", "max_abs_diff")},
        "seconds": {name: found[name].seconds for name in STAGES if name in found},
        "versions": _versions(found.values()),
        "config": dict(config),
    }


def to_json(summary: Summary) -> bytes:
    """`summary.json`: sorted, so that two runs can be compared line by line."""
    return (json.dumps(summary, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def distinct_starts(summary: Summary) -> tuple[str, ...]:
    """The starts that are worth a line of their own: with the method `random` both are the same artefacts."""
    return ("random",) if summary["method"] == "random" else STARTS


def distinct_models(summary: Summary) -> tuple[str, ...]:
    """The compared models without those that stand there twice."""
    twice = set(STARTS) - set(distinct_starts(summary))
    return tuple(model for model in MODELS if model.split("_")[0] not in twice)


def before_and_after(summary: Summary, start: str) -> tuple[tuple[int, float], tuple[int, float]]:
    """The first and the last (step, bits per byte) of a start."""
    steps = sorted((int(step), value) for step, value in summary["bits_per_byte"][start].items())
    return steps[0], steps[-1]


def languages(summary: Summary) -> list[dict[str, Any]]:
    """A row a language: pieces a word of the old and the new tokenizer, bits per byte of each start before and after, pairs,
    and accuracy@1, both ways, of the source and of the trained models; None where there is no text, or no pair, in it."""
    starts = distinct_starts(summary)
    bits = {start: summary["bits_per_byte_by_language"][start] for start in starts}
    ends = [str(step) for step, _ in before_and_after(summary, starts[0])]
    models = ["source_model", *(f"{start}_trained" for start in starts)]
    retrieved = {model: summary["retrieval_by_language"].get(model, {}) for model in models}
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
            "bits": {start: [bits[start].get(step, {}).get(lang) for step in ends] for start in starts},
            "accuracy": {model: accuracy(model, lang) for model in models},
        }
        for lang in names
    ]


def _chain(found: Mapping[str, Artifact], folder: str) -> dict[str, Artifact]:
    return {job: found[f"{folder}/{job}" if folder else job] for job in ("transfer", "pretrain", "embed")}


def _versions(artefacts: Iterable[Artifact]) -> dict[str, str]:
    """The version of each package; all of them, when the stages ran with different ones."""
    seen: dict[str, set[str]] = {}
    for artefact in artefacts:
        for package, version in artefact.versions.items():
            seen.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(seen[package])) for package in sorted(seen)}
