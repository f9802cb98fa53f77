"""Random rows and models of any size, for benchmarks of speed."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shards import format, manifest
from data_pipeline.shards.pack import PackedRows

SHARD_ROWS = 16_384
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def rows(folder: str, languages: dict[str, int], length: int, vocabulary: int, seed: int) -> manifest.Manifest:
    """Writes shards with so many rows per language, one document each, and their manifest. Small ids are more frequent, so
    that zstd can compress them."""
    rng, streams = np.random.default_rng(seed), dict[str, tuple[manifest.Shard, ...]]()
    for name, total in languages.items():
        shards = list[manifest.Shard]()
        for start in range(0, total, SHARD_ROWS):
            count = min(SHARD_ROWS, total - start)
            ids = len(SPECIAL) + ((vocabulary - len(SPECIAL)) * rng.random((count, length), np.float32) ** 3).astype(np.uint32)
            starts, full = list(np.zeros((count, 1), np.int32)), np.full(count, length, np.int32)
            packed_rows = PackedRows(ids=ids, n_tokens=full, doc_starts=starts, cut_documents=0)
            path, tokens = f"{name}/part-{len(shards):05d}.parquet", count * length
            sha256 = format.write(os.path.join(folder, path), format.text_rows(packed_rows, vocabulary))
            size = {"rows": count, "documents": count, "tokens": tokens, "text_tokens": tokens, "text_bytes": 4 * tokens}
            shards.append(manifest.Shard(path=path, sha256=sha256, padding=0, cut=0, **size))
        streams[name] = tuple(shards)
    saved_manifest = manifest.Manifest(length=length, vocab_size=vocabulary, tokenizer="none", streams=streams)
    saved_manifest.save(folder)
    return saved_manifest


def model(folder: str, config: Any) -> None:
    """Saves a language model of `config` with random weights, and a tokenizer with its ids."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"w{number}" for number in range(config.vocab_size - len(SPECIAL)))]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if config.model_type in ("gpt2", "llama") else AutoModelForMaskedLM
    Path(folder).mkdir(parents=True, exist_ok=True)
    kind.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(folder)
