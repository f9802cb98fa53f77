"""The scores of an evaluation as files that mteb's tools read (`TaskResult` and `ResultCache` of mteb 2)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

VERSION = "2.26.24"
"""The version of mteb whose files these are: readers choose the format by it."""
_TASKS = {
    "retrieval": ("ScionRetrieval", "mrr_at_10"),
    "ranking": ("ScionRanking", "ndcg_at_10"),
    "sts": ("ScionSTS", "cosine_spearman"),
    "classification": ("ScionClassification", "accuracy"),
    "clustering": ("ScionClustering", "v_measure"),
    "reranking": ("ScionReranking", "map"),
}
"""Name and main score of each task."""
_UNKNOWN = (
    "loader", "release_date", "languages", "n_parameters", "n_embedding_parameters", "memory_usage_mb", "max_tokens",
    "embed_dim", "license", "open_weights", "public_training_code", "public_training_data", "similarity_fn_name",
    "use_instructions", "training_datasets",
)  # fmt: skip
"""Fields that mteb requires of a model, and that may be null."""
_RENAMED = {"spearman": "cosine_spearman", "pearson": "cosine_pearson"}


def files(metrics: Mapping[str, Any], models: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Paths below a folder that `mteb.ResultCache` opens, and their content: one file for each model and task.

    Both directions of retrieval and ranking are subsets, and so is each language if there are several, as in
    `forward` and `forward-el`; scores without a direction are `default`.

    Args:
        metrics: of the artefact of an evaluation.
        models: what identifies each model; a change makes another revision.
    """
    for name, (task, main_score) in _TASKS.items():
        for model, scores in metrics.get(name, {}).items():
            by_language = metrics.get(f"{name}_by_language", {}).get(model, {})
            subsets = [*_subsets(scores, "", main_score)]
            subsets += [one for lang, own in by_language.items() for one in _subsets(own, lang, main_score)]
            folder = f"results/scion__{model}/{_revision(models[model])}"
            yield f"{folder}/{task}.json", _json(_result(task, subsets))
            yield f"{folder}/model_meta.json", _json(_model(f"scion/{model}", _revision(models[model])))


def _result(task: str, subsets: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of mteb's `TaskResult`."""
    return {
        "dataset_revision": "local",
        "task_name": task,
        "mteb_version": VERSION,
        "scores": {"test": subsets},
        "evaluation_time": None,
        "kg_co2_emissions": None,
    }


def _model(name: str, revision: str) -> dict[str, Any]:
    """The fields of mteb's `ModelMeta`; most stay empty."""
    return dict.fromkeys(_UNKNOWN) | {"name": name, "revision": revision, "framework": ["PyTorch"]}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _subsets(scores: Mapping[str, Any], lang: str, main_score: str) -> Iterator[dict[str, Any]]:
    """The scores of one language, or of all, by direction if there are two."""
    if "forward" in scores:
        for way in ("forward", "backward"):
            yield _scores(scores[way], f"{way}-{lang}" if lang else way, lang, main_score)
    else:
        yield _scores(scores, lang or "default", lang, main_score)


def _scores(scores: Mapping[str, Any], subset: str, lang: str, main_score: str) -> dict[str, Any]:
    named = {_RENAMED.get(name, name): value for name, value in scores.items()}
    return named | {"main_score": named[main_score], "hf_subset": subset, "languages": [lang] if lang else []}


def _revision(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
