"""Tokenises and packs in a pool of Ray Data actors: one input file becomes one shard a language.

The content of a shard depends on its input file and the tokenizer alone, so its bytes are the same for any number of
actors and after any interruption.
"""

import hashlib
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from data_pipeline.artifacts import fingerprints, storage
from data_pipeline.artifacts.cached_step import cached_step
from data_pipeline.ray_map import Progress, ray_map
from data_pipeline.shards import format
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.shards.pack import PACKINGS
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.encode import encode
from data_pipeline.tokenizers.folder import is_tokenizer_file


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokenizer as it would be saved."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def load_tokenizer(uri: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder at any URI. Does not download the model's weights."""
    with storage.local_copy(uri, is_tokenizer_file) as folder:
        return train.load(folder)


def build(
    parts: tuple[str, ...], tokenizer_uri: str, folder: str, *, length: int, packing: str, actors: int, progress: Progress
) -> Manifest:
    """Packs corpus files (see `corpus.build`) into rows of `length` tokens below `folder` and writes its manifest.

    Reuses the intact shards of an earlier run from the same file and tokenizer.
    """
    jobs = [
        {"path": path, "length": length, "packing": packing, "folder": folder, "name": f"part-{number:05d}"}
        for number, path in enumerate(parts)
    ]
    setup = partial(load_tokenizer, tokenizer_uri)
    results = ray_map(pack_file, jobs, actors=actors, setup=setup, progress=progress)
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


def pack_file(job: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, Any]]:
    """Packs one corpus file into a shard per language; returns their manifest entries by language, as JSON.

    Args:
        job: `path` of the file, `length` and `packing` of the rows, `folder` and `name` of the shards.
        tokenizer: the tokenizer of all jobs.
    """

    def make() -> tuple[dict[str, Any], list[str]]:
        table = format.read_groups(job["path"])
        shards = {}
        for lang in sorted(table["lang"].unique().to_pylist()):
            texts = table.filter(pc.equal(table["lang"], lang))["text"].combine_chunks()
            shards[lang] = _pack_language(job, lang, texts, tokenizer)
        return {lang: asdict(shard) for lang, shard in shards.items()}, [shard.path for shard in shards.values()]

    key = {"text": fingerprints.sha256(job["path"]), "tokenizer": fingerprint(tokenizer)}
    key |= {name: job[name] for name in ("length", "packing")}
    return cached_step(job["folder"], f"{job['name']}.json", key, make)


def _pack_language(job: dict[str, Any], lang: str, texts: pa.StringArray, tokenizer: PreTrainedTokenizerFast) -> Shard:
    """Tokenizes and packs the texts of a language into rows, writes them to a Parquet shard, and returns its manifest entry."""
    frame = frame_of(tokenizer)
    encoded = encode(tokenizer.backend_tokenizer, texts)
    packed = PACKINGS[job["packing"]](encoded.wrap(frame.prefix, frame.suffix), job["length"], frame.pad)
    path = f"{lang}/{job['name']}.parquet"
    sha256 = format.write(storage.join(job["folder"], path), format.text_rows(packed, len(tokenizer)))
    return Shard(
        path=path,
        rows=len(packed.ids),
        tokens=int(packed.n_tokens.sum()),
        text_tokens=len(encoded.flat),
        text_bytes=pc.sum(pc.binary_length(texts)).as_py(),
        padding=packed.padding,
        documents=len(texts),
        cut=packed.cut_documents,
        sha256=sha256,
    )
