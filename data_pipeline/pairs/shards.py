"""Writes pairs as rows of token ids, in the same format and order as packed text."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from data_pipeline import keyed_random
from data_pipeline.artifacts import storage
from data_pipeline.pairs.text_form import TextForm, TokenizedText
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.ray_map import Progress, ray_map
from data_pipeline.shards import format
from data_pipeline.shards.build import fingerprint, load_tokenizer
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.text.clean import digest

STREAM = "pairs"
"""The stream of the pairs without a task."""
_SHARD_PAIRS = 16384

Forms = tuple[TextForm, TextForm]
"""Of anchors, and of positives and negatives."""
PLAIN: Forms = (TextForm(), TextForm())

Encode = Callable[[list[str], str], NDArray[np.float32]]
"""From n texts and their side, `query` or `document`, to vectors [n, d]."""


def build(
    pairs: Pairs,
    tokenizer_uri: str,
    folder: str,
    *,
    max_length: int,
    actors: int,
    progress: Progress,
    forms: Forms = PLAIN,
    teacher: Callable[[], Encode] | None = None,
    gpus: int = 0,
) -> Manifest:
    """Writes the pairs below `folder` as shards of ids with special tokens, cut at `max_length`, and their manifest.

    Each task is a stream of its own.

    Args:
        teacher: called once an actor, loads the encoder whose vectors of all texts the rows hold as well.
        gpus: of an actor.
    """
    tasks = by_task(pairs)
    jobs = [
        {
            "pairs": pairs.take(places[start : start + _SHARD_PAIRS]),
            "path": f"{below}/part-{number:05d}.parquet",
            "folder": folder,
            "max_length": max_length,
            "uri": tokenizer_uri,
            "forms": forms,
        }
        for below, places in zip(_folders(tasks), tasks.values(), strict=True)
        for number, start in enumerate(range(0, len(places), _SHARD_PAIRS))
    ]
    shards = ray_map(write_shard, jobs, actors=actors, gpus=gpus, setup=teacher, progress=progress)
    tokenizer = load_tokenizer(tokenizer_uri)
    streams = {
        name: tuple(shard for shard in shards if shard.path.startswith(f"{below}/"))
        for name, below in zip(tasks, _folders(tasks), strict=True)
    }
    manifest = Manifest(length=0, vocab_size=len(tokenizer), tokenizer=fingerprint(tokenizer), streams=streams)
    manifest.save(folder)
    return manifest


def by_task(pairs: Pairs) -> dict[str, list[int]]:
    """The places of each task's pairs, by name; `STREAM` for those without a task."""
    places: dict[str, list[int]] = {}
    for place, task in enumerate(pairs.tasks):
        places.setdefault(task or STREAM, []).append(place)
    return dict(sorted(places.items()))


def _folders(tasks: Iterable[str]) -> list[str]:
    """A folder for each task, numbered: the name of a task may be no name of a folder."""
    return [name if name == STREAM else f"task-{number:03d}" for number, name in enumerate(tasks)]


def text_key(text: str) -> int:
    """A signed 64-bit hash of the text, by which the loss recognises false negatives."""
    return keyed_random.key("text", digest(text)) - (1 << 63)


def write_shard(job: dict[str, Any], teacher: Encode | None = None) -> Shard:
    """Tokenizes a job's pairs, writes them with the keys of their texts to a Parquet shard, and returns its manifest entry."""
    pairs: Pairs = job["pairs"]
    table = tokenize_pairs(pairs, load_tokenizer(job["uri"]), job["max_length"], job["forms"])
    if teacher is not None:
        table = with_vectors(table, pairs, teacher)
    sha256 = format.write(storage.join(job["folder"], job["path"]), table)
    return Shard(
        path=job["path"],
        rows=len(table),
        tokens=sum(pc.sum(pc.list_value_length(table[side])).as_py() for side in ("anchor", "positive")),
        text_tokens=0,
        text_bytes=sum(len(text.encode()) for text in [*pairs.queries, *pairs.positives]),
        padding=0,
        documents=len(table),
        cut=0,
        sha256=sha256,
    )


def tokenize_pairs(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, max_length: int, forms: Forms = PLAIN) -> pa.Table:
    """The pairs as rows of token ids, with the keys and scores of their texts and, where tokens are not pooled, their numbers.

    An anchor's ids begin with its prompts; its key is that of the anchor alone, so that it is recognised among the documents.
    """
    of_queries, of_documents = (partial(form.tokenize, tokenizer, max_length=max_length) for form in forms)
    ids = of_queries(pairs.queries), of_documents(pairs.positives), [of_documents(texts) for texts in pairs.negatives]
    kind = pa.list_(pa.int32())
    table = pa.table(
        {
            "anchor": pa.array(ids[0], kind),
            "positive": pa.array(ids[1], kind),
            "negatives": pa.array(ids[2], pa.list_(kind)),
            "anchor_key": pa.array([text_key(text) for text in pairs.anchors], pa.int64()),
            "positive_key": pa.array([text_key(text) for text in pairs.positives], pa.int64()),
            "negative_keys": pa.array([[text_key(text) for text in texts] for texts in pairs.negatives], pa.list_(pa.int64())),
            "positive_score": pa.array(pairs.positive_scores, pa.float32()),
            "negative_scores": pa.array(pairs.negative_scores, pa.list_(pa.float32())),
            "in_batch": pa.array(pairs.in_batch, pa.bool_()),
        }
    )
    return _with_skips(table, *ids)


def with_vectors(table: pa.Table, pairs: Pairs, teacher: Encode) -> pa.Table:
    """The rows with a teacher's vectors of their texts, fp16. Each distinct text of a side is encoded once."""
    negatives = list(chain.from_iterable(pairs.negatives))
    documents = _encoded([*pairs.positives, *negatives], "document", teacher)
    ends = pa.array(np.cumsum([0, *map(len, pairs.negatives)], dtype=np.int32))
    columns = {
        "anchor_vector": _encoded(pairs.queries, "query", teacher),
        "positive_vector": documents[: len(pairs)],
        "negative_vectors": pa.ListArray.from_arrays(ends, documents[len(pairs) :]),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def _encoded(texts: list[str], side: str, teacher: Encode) -> pa.Array:
    """The vectors of the texts."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = teacher(list(distinct), side).astype(np.float16)[[distinct[text] for text in texts]]
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def _with_skips(
    table: pa.Table, anchors: list[TokenizedText], positives: list[TokenizedText], negatives: list[list[TokenizedText]]
) -> pa.Table:
    """Adds how many of each text's first tokens are not pooled, unless all are."""
    skips = [[text.skip for text in texts] for texts in (anchors, positives, *negatives)]
    if not any(map(any, skips)):
        return table
    for name, column in (("anchor_skip", skips[0]), ("positive_skip", skips[1])):
        table = table.append_column(name, pa.array(column, pa.int32()))
    return table.append_column("negative_skips", pa.array(skips[2:], pa.list_(pa.int32())))
