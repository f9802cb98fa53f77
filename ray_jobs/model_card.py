"""The model card of an embedder: `README.md`, with the front matter that the hub reads.

https://huggingface.co/docs/hub/model-cards names the fields. Nothing is guessed: the licence is that of the source model's own
card, and the card says so if there is none.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data_pipeline.artifacts import storage
from data_pipeline.errors import mask_passwords
from data_pipeline.sources.models import hub_name, is_path
from ray_jobs import embed_stages
from ray_jobs.config.schema import ScionConfig
from trainer.embedder_spec import EmbedderSpec, is_readable, read_spec

FILE = "README.md"
_FRONT_MATTER = re.compile(r"\s*---\s*?\n(.*?)\n---\s*?(?:\n|$)", re.DOTALL)
_DIRECTIONS = {"forward": "from anchors to positives", "backward": "from positives to anchors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What the card of an embedder says beside what its folder says."""

    title: str
    made: str
    """How it was made, in one sentence."""
    parents: tuple[str, ...]
    """The models that it was made from: folders and hub names."""
    data: tuple[str, ...] = ()
    """The training data: files and names of data sets."""
    indexes: tuple[str, ...] = ()
    """Versions whose indexes its queries can search, its own the last."""
    languages: tuple[str, ...] = ()
    """Tags of the languages of the data."""
    papers: tuple[str, ...] = ()
    test_pairs: str = ""
    retrieval: dict[str, Any] = field(default_factory=dict)
    """Accuracy at 1 and MRR at 10 of both directions on `test_pairs`; empty if nothing was measured."""


def origin(config: ScionConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The models and the data from which `scion embed` makes an embedder."""
    parents = (config.first_model, config.embed.teacher)
    data = (stage.config.pairs or stage.config.text for stage in embed_stages.every(config, "embed"))
    return tuple(filter(None, parents)), tuple(dict.fromkeys(filter(None, data)))


def write(folder: str, card: Card) -> None:
    """Writes the card into the folder of an embedder, in place of an earlier one.

    Args:
        folder: a folder or URI with the files of an embedder.
    """
    with storage.local_copy(folder, lambda name: name.endswith(".json") and "/" not in name) as local:
        spec = read_spec(local, 1 << 20)
    front = _front_matter(card).to_yaml()
    text = mask_passwords(str(ModelCard(f"---\n{front}\n---\n\n{_body(card, spec)}")))
    with storage.local_output(folder) as local, open(os.path.join(local, FILE), "w", encoding="utf-8") as file:
        file.write(text)


def _front_matter(card: Card) -> ModelCardData:
    """The fields of the hub."""
    on_hub = [hub_name(parent)[0] for parent in card.parents if not _is_folder(parent)]
    results = [
        EvalResult(
            task_type="retrieval",
            dataset_type="pairs",
            dataset_name=os.path.basename(card.test_pairs),
            metric_type=f"{measure}_{way}",
            metric_name=f"{measure} {_DIRECTIONS[way]}",
            metric_value=round(float(scores[measure]), 5),
        )
        for way, scores in card.retrieval.items()
        for measure in ("accuracy_at_1", "mrr_at_10")
    ]
    return ModelCardData(
        model_name=card.title,
        language=sorted(set(card.languages) - {"und"}) or None,
        license=_licence(card.parents),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "scion"],
        base_model=on_hub or None,
        eval_results=results or None,
    )


def _is_folder(parent: str) -> bool:
    """Whether it is a folder or a URI, and not a hub name."""
    return "://" in parent or is_path(parent) or os.path.isdir(parent)


def _licence(parents: Sequence[str]) -> str | None:
    """The licence that the first parent's own card names, None if there is none."""
    for parent in parents:
        path = storage.join(parent, FILE)
        if _is_folder(parent) and storage.is_file(path) and (found := _named_licence(storage.read_bytes(path))):
            return found
    return None


def _named_licence(content: bytes) -> str | None:
    """The licence in the front matter of somebody's card; None if it has none, or is not one that the hub can read.

    A card of any content must not end a training that took days.
    """
    match = _FRONT_MATTER.match(content.decode(errors="replace"))
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    found = fields.get("license") if isinstance(fields, dict) else None
    return str(found) if found else None


def _body(card: Card, spec: EmbedderSpec) -> str:
    """The text of the card."""
    parts = [f"# {card.title}", card.made, _usage(spec), _indexes(card.indexes), _properties(spec), _origin(card)]
    if card.retrieval:
        measures = {way: (one["accuracy_at_1"], one["mrr_at_10"]) for way, one in card.retrieval.items()}
        rows = [f"| {_DIRECTIONS[way]} | {accuracy:.3f} | {mrr:.3f} |" for way, (accuracy, mrr) in measures.items()]
        head = f"## Evaluation\n\nRetrieval on `{os.path.basename(card.test_pairs)}`:"
        parts.append("\n".join([head, "", "| | accuracy at 1 | MRR at 10 |", "|---|---|---|", *rows]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _usage(spec: EmbedderSpec) -> str:
    """How to load it."""
    prompt = ', prompt_name="query"' if "query" in spec.prompts else ""
    scion = f'import scion\n\nembedder = scion.Embedder.load("FOLDER")\nvectors = embedder.encode(["a text"]{prompt})'
    if not is_readable(spec):
        return f"## Use\n\n```python\n{scion}\n```"
    imported = "from sentence_transformers import SentenceTransformer"
    theirs = f'{imported}\n\nmodel = SentenceTransformer("FOLDER")\nvectors = model.encode(["a text"]{prompt})'
    return f"## Use\n\n```python\n{theirs}\n```\n\nor\n\n```python\n{scion}\n```"


def _indexes(versions: Sequence[str]) -> str:
    """How queries search the indexes of earlier versions; empty if there are none."""
    if not versions:
        return ""
    *earlier, own = (f"`{version}`" for version in versions)
    call = f'queries = embedder.encode(["a query"], prompt_name="query", index="{versions[0]}")'
    indexes = f"Documents are embedded anew by this model ({own}), or stay in an index of {', '.join(earlier)}."
    return f"{indexes} Queries name the index that they search; only Scion can move them:\n\n```python\n{call}\n```"


def _properties(spec: EmbedderSpec) -> str:
    """What vectors it gives."""
    rows = {
        "pooling": spec.pooling,
        "longest text": f"{spec.max_length} tokens",
        "normalised": "yes" if spec.normalize else "no",
        "widths beside the full one": ", ".join(map(str, spec.dimensions)),
        "exits behind layers": ", ".join(map(str, spec.layers)),
        "prompts": ", ".join(f"`{name}`: `{_in_a_row(prompt)}`" for name, prompt in spec.prompts.items()),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def _in_a_row(prompt: str) -> str:
    """A prompt as a row of a table can hold it."""
    return json.dumps(prompt, ensure_ascii=False)[1:-1].replace("|", "\\|") if set(prompt) & {"\n", "|"} else prompt


def _origin(card: Card) -> str:
    """What it was made from."""
    licence = _licence(card.parents)
    lines = [f"- model: `{parent}`" for parent in card.parents] + [f"- data: `{one}`" for one in card.data]
    lines += [f"- method: {paper}" for paper in card.papers]
    lines.append(
        f"- licence: {licence}, that of the model" if licence else "- licence: the model that it was made from names none"
    )
    return "\n".join(["## Origin", "", *lines])
