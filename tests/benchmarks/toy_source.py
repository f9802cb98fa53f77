"""A GPT-2-shaped source to compare methods on, since no package ships a causal model: `python -m tests.benchmarks.toy_source`.

Splits the sample by file into two halves, so that the text of the new language is no translation of what the source has
read: English of one half, and text and pairs of the other. Beside them stands GPT-2's shape with random weights and a
byte-level tokenizer. `scion` itself pretrains it, from scratch, and the result is a toy: it has read 1 MB of software help.

    python -m tests.benchmarks.toy_source runs/toy
    scion transfer ray_jobs/conf/demo.yaml $(cat runs/toy/english.args)
    scion pretrain ray_jobs/conf/demo.yaml $(cat runs/toy/english.args)
    scion compare ray_jobs/conf/demo.yaml $(cat runs/toy/compare.args) compare.methods=[random,fvt,focus]
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data_pipeline.keyed_random import key
from tests.conftest import SAMPLE, byte_level

VOCABULARY, LENGTH = 6_016, 128
SHAPE = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": LENGTH}


def main(folder: Path) -> None:
    """Writes the halves, the model and the settings of both jobs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs, text = pq.read_table(SAMPLE / "pairs.parquet").to_pylist(), pq.read_table(SAMPLE / "text.parquet").to_pylist()
    english = english_documents([pair for pair in pairs if first_half(pair["id"])])
    write(folder / "english.parquet", english)
    write(folder / "text.parquet", [document for document in text if not first_half(document["id"])])
    write(folder / "pairs.parquet", [pair for pair in pairs if not first_half(pair["id"])])
    tokenizer = byte_level([document["text"] for document in english], VOCABULARY)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=2, **SHAPE))
    model.save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    for name, settings in arguments(folder).items():
        (folder / f"{name}.args").write_text("\n".join(settings) + "\n")


def arguments(folder: Path) -> dict[str, list[str]]:
    """Settings beyond the demo's."""
    paths = {name: f"{folder / name}.parquet" for name in ("english", "text", "pairs")}
    shared = [f"pairs={paths['pairs']}", f"shard.length={LENGTH}"]
    schedule = ["pretrain.train.steps=800", "pretrain.train.learning_rate=1e-3", "pretrain.train.warmup_steps=50"]
    pretraining = [f"text={paths['english']}", "test_text=null", f"source_model={folder / 'gpt2'}", "method=scratch"]
    size = f"shard.tokenizer.vocab_size={VOCABULARY}"
    return {
        "english": [*pretraining, size, *schedule, *shared, f"output={folder / 'english'}"],
        "compare": [
            f"text={paths['text']}",
            f"source_model={folder / 'english' / 'pretrain'}",
            size,
            *shared,
            f"output={folder / 'compare'}",
        ],
    }


def first_half(identity: str) -> bool:
    """Whether the file of a paragraph or document is one that the source reads."""
    return key("toy source", identity.partition("#")[0]) % 2 == 0


def english_documents(pairs: list[dict]) -> list[dict]:
    """The English sides of the pairs, put together by file."""
    files: dict[str, list[str]] = {}
    for pair in pairs:
        files.setdefault(pair["id"].partition("#")[0], []).append(pair["anchor"])
    return [{"id": name, "lang": "en", "text": "\n".join(lines)} for name, lines in files.items()]


def write(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
