"""Writes pairs as rows of token ids, in the same format and order as packed text."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from data_pipeline import keyed_random
from data_pipeline.artifacts import storage
from data_pipeline.pairs.text_pairs import Pairs
from data_pipeline.ray_map import Progress, ray_map
from data_pipeline.shards import format
from data_pipeline.shards.build import fingerprint, load_tokenizer
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.text.clean import digest

STREAM = "pairs"
_SHARD_PAIRS = 16384


def build(pairs: Pairs, tokenizer_uri: str, folder: str, *, max_length: int, actors: int, progress: Progress) -> Manifest:
    """Writes the pairs below `folder` as shards of ids with special tokens, cut at `max_length`, and their manifest."""
    jobs = [
        {
            "texts": [column[start : start + _SHARD_PAIRS] for column in (pairs.anchors, pairs.positives, pairs.negatives)],
            "path": f"{STREAM}/part-{number:05d}.parquet",
            "folder": folder,
            "max_length": max_length,
            "uri": tokenizer_uri,
        }
        for number, start in enumerate(range(0, len(pairs), _SHARD_PAIRS))
    ]
    shards = ray_map(write_shard, jobs, actors=actors, progress=progress)
    tokenizer = load_tokenizer(tokenizer_uri)
    manifest = Manifest(length=0, vocab_size=len(tokenizer), tokenizer=fingerprint(tokenizer), streams={STREAM: tuple(shards)})
    manifest.save(folder)
    return manifest


def text_key(text: str) -> int:
    """A signed 64-bit hash of the text, by which the loss recognises false negatives."""
    return keyed_random.key("text", digest(text)) - (1 << 63)


def write_shard(job: dict[str, Any]) -> Shard:
    """Tokenizes a job's pairs, writes them with the keys of their texts to a Parquet shard, and returns its manifest entry."""
    anchors, positives, negatives = job["texts"]
    table = tokenize_pairs(anchors, positives, negatives, load_tokenizer(job["uri"]), job["max_length"])
    sha256 = format.write(storage.join(job["folder"], job["path"]), table)
    return Shard(
        path=job["path"],
        rows=len(table),
        tokens=sum(pc.sum(pc.list_value_length(table[side])).as_py() for side in ("anchor", "positive")),
        text_tokens=0,
        text_bytes=sum(len(text.encode()) for text in [*anchors, *positives]),
        padding=0,
        documents=len(table),
        cut=0,
        sha256=sha256,
    )


def tokenize_pairs(
    anchors: list[str], positives: list[str], negatives: list[list[str]], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> pa.Table:
    """The pairs as rows of token ids, with the keys of their texts."""
    kind = pa.list_(pa.int32())
    return pa.table(
        {
            "anchor": pa.array(token_ids(tokenizer, anchors, max_length), kind),
            "positive": pa.array(token_ids(tokenizer, positives, max_length), kind),
            "negatives": pa.array([token_ids(tokenizer, row, max_length) for row in negatives], pa.list_(kind)),
            "anchor_key": pa.array([text_key(text) for text in anchors], pa.int64()),
            "positive_key": pa.array([text_key(text) for text in positives], pa.int64()),
            "negative_keys": pa.array([[text_key(text) for text in row] for row in negatives], pa.list_(pa.int64())),
        }
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int) -> list[list[int]]:
    """Ids of each text with special tokens, cut at `max_length`."""
    if not texts:
        return []
    return tokenizer(texts, truncation=True, max_length=max_length, padding=False).input_ids
