"""Tokenise and pack in a pool of Ray Data actors: one input file becomes one shard a language.

The content of a shard depends on its input file and the tokenizer alone, so the bytes are the same for any number of
actors and after any interruption.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from data_pipeline import storage
from data_pipeline.once import once
from data_pipeline.ray_map import Progress, ray_map
from data_pipeline.shards import format
from data_pipeline.shards.corpus import read_texts
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.pack import PACKINGS
from data_pipeline.tokenizers import train

Loader = Callable[[], PreTrainedTokenizerFast]


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokenizer as it would be saved."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def load_tokenizer(uri: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder at any URI."""
    with storage.local_copy(uri) as folder:
        return train.load(folder)


def build(
    parts: tuple[str, ...], tokenizer_uri: str, folder: str, *, length: int, packing: str, actors: int, progress: Progress
) -> Manifest:
    """Packs corpus files (see `corpus.build`) into rows of `length` tokens below `folder` and writes its manifest.

    What an earlier run has packed from the same file and tokenizer is kept, if it is still what was written.
    """
    jobs = [
        {"path": path, "length": length, "packing": packing, "folder": folder, "name": f"part-{number:05d}"}
        for number, path in enumerate(parts)
    ]
    setup = partial(load_tokenizer, tokenizer_uri)
    results = ray_map(_pack, jobs, actors=actors, setup=setup, progress=progress)
    streams: dict[str, list[Shard]] = {}
    for result in results:
        for lang, shard in result.items():
            streams.setdefault(lang, []).append(Shard(**shard))
    tokenizer = load_tokenizer(tokenizer_uri)
    manifest = Manifest(
        length=length,
        vocab_size=len(tokenizer),
        tokenizer=fingerprint(tokenizer),
        streams={lang: tuple(shards) for lang, shards in sorted(streams.items())},
    )
    manifest.save(folder)
    return manifest


def _pack(job: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, Any]]:
    """The shards of one corpus file by language, as JSON."""

    def make() -> tuple[dict[str, Any], list[str]]:
        by_language: dict[str, list[str]] = {}
        for lang, text in read_texts([job["path"]]):
            by_language.setdefault(lang, []).append(text)
        shards = {lang: _pack_language(job, lang, texts, tokenizer) for lang, texts in sorted(by_language.items())}
        return {lang: asdict(shard) for lang, shard in shards.items()}, [shard.path for shard in shards.values()]

    key = {"text": storage.sha256(job["path"]), "tokenizer": fingerprint(tokenizer)}
    key |= {name: job[name] for name in ("length", "packing")}
    return once(job["folder"], f"{job['name']}.json", key, make)


def _pack_language(job: dict[str, Any], lang: str, texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Shard:
    frame = frame_of(tokenizer)
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    framed = [np.array([*frame.prefix, *text.ids, *frame.suffix], np.uint32) for text in encoded]
    packed = PACKINGS[job["packing"]](framed, job["length"], frame.pad)
    path = f"{lang}/{job['name']}.parquet"
    sha256 = format.write(storage.join(job["folder"], path), format.text_rows(packed, len(tokenizer)))
    return Shard(
        path=path,
        rows=len(packed.ids),
        tokens=int(packed.n_tokens.sum()),
        text_tokens=sum(len(text.ids) for text in encoded),
        text_bytes=sum(len(text.encode()) for text in texts),
        padding=packed.padding,
        documents=len(texts),
        cut=packed.cut,
        sha256=sha256,
    )
