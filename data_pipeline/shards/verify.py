"""Checks packed shards against their manifest, to the last byte."""

from collections import defaultdict

from transformers import PreTrainedTokenizerFast

from data_pipeline.artifacts import fingerprints, storage
from data_pipeline.artifacts.check_result import CheckResult
from data_pipeline.errors import ScionError
from data_pipeline.shards import corpus, format
from data_pipeline.shards.build import fingerprint, load_tokenizer
from data_pipeline.shards.manifest import Manifest, Shard
from data_pipeline.tokenizers import verify as tokenizers

_DOCUMENTS = 50
"""Held-out documents of a language that supply the words of its round trip."""


def verify(folder: str, manifest: Manifest, tokenizer_uri: str) -> list[CheckResult]:
    """Checks every file against its SHA-256, every row group against its checksum, every count, and the tokenizer."""
    shards = [shard for part in manifest.streams.values() for shard in part]
    failures = [f"{shard.path}: {problem}" for shard in shards if (problem := _shard_problem(folder, shard))]
    listed = {shard.path for shard in shards}
    present = {path for path in storage.files(folder) if path.endswith(".parquet")}
    rows, size = manifest.total("rows"), len(shards)
    return [
        CheckResult.from_failures("files", f"{size:,} shards, {rows:,} rows", failures),
        CheckResult.from_failures("no other shards", "all files are in the manifest", sorted(present - listed)),
        _tokenizer(manifest, tokenizer_uri),
    ]


def verify_tokenizer(uri: str, heldout: list[str], old: PreTrainedTokenizerFast | None, given: bool) -> list[CheckResult]:
    """Runs the checks of `tokenizers.verify` with words of the held-out text.

    Args:
        heldout: files of held-out documents.
        old: the source's tokenizer, if it is known.
        given: whether the user supplied the tokenizer.
    """
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for lang, text in corpus.read_texts(heldout):
        if len(texts[lang]) < _DOCUMENTS:
            texts[lang].append(text)
    return tokenizers.verify(load_tokenizer(uri), old, texts, given)


def _shard_problem(folder: str, shard: Shard) -> str:
    """What is wrong with a shard; empty if it is intact."""
    uri = storage.join(folder, shard.path)
    if not storage.exists(uri):
        return "missing"
    changed = fingerprints.sha256(uri) != shard.sha256
    try:
        table = format.read_groups(uri)
    except ScionError as error:
        return error.what
    if changed:
        return "changed bytes, outside of the row groups"
    if len(table) != shard.rows or ("n_tokens" in table.column_names and sum(table["n_tokens"].to_pylist()) != shard.tokens):
        return f"{len(table):,} rows where the manifest has {shard.rows:,}, or other token counts"
    return ""


def _tokenizer(manifest: Manifest, uri: str) -> CheckResult:
    try:
        is_same = fingerprint(load_tokenizer(uri)) == manifest.tokenizer
    except ScionError as error:
        return CheckResult.from_failures("tokenizer", "", [str(error)])
    return CheckResult.from_failures("tokenizer", "the one that encoded the rows", [] if is_same else ["it is another one"])
