"""The steps of a user, on a tiny model of a family: transfer, verify, pretrain for two steps, embed, load."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from rich.console import Console
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, PreTrainedTokenizerFast

from data_pipeline.errors import ModelError, ScionError
from data_pipeline.pairs.shards import text_key
from data_pipeline.shards import format
from data_pipeline.shards.build import load_tokenizer
from data_pipeline.shards.framing import frame_of
from data_pipeline.shards.pack import concat_split
from data_pipeline.tokenizers import train
from data_pipeline.tokenizers.ragged import Ragged
from ray_jobs import verify
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge import environment
from trainer.deepspeed_bridge.trained_weights import trained_weights
from trainer.embedder import Embedder
from trainer.embedder_spec import EmbedderSpec
from trainer.engine import setup
from trainer.engine.step import optimizer_step, set_rates
from trainer.models import loading
from trainer.monitoring.step_outcome import StepOutcome
from trainer.tasks.contrastive import ContrastiveTask
from trainer.tasks.language_modeling import LanguageModelTask
from trainer.transfer.graft import graft
from trainer.transfer.methods import METHODS
from trainer.transfer.problem import Problem, assemble
from trainer.word_vectors.texts import Texts

LENGTH, STEPS, ROWS = 64, 2, 4
SAMPLE = ("Το αρχείο δεν βρέθηκε.", "Choose a file.", "Αποθήκευση ως")


@dataclass(slots=True)
class Row:
    """A line of the table: the outcome of each step for a family. `wrong` names a failure."""

    family: str
    tokenizer: str
    transfer: str = "–"
    forward: str = "–"
    difference: float | None = None
    pretrain: str = "–"
    embed: str = "–"
    loads: str = "–"
    wrong: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Documents in the new language, and pairs with the old one."""

    greek: list[str]
    pairs: list[dict[str, Any]]


def walk(row: Row, source: str, home: str, text: Text) -> Row:
    """Takes the model in folder `source` through all steps, each on the output of the one before, below `home`."""
    grafted, trained, embedder = (os.path.join(home, name) for name in ("grafted", "trained", "embedder"))
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("transfer", lambda: transfer(source, grafted, text)),
        ("pretrain", lambda: pretrain(row, grafted, trained, text)),
        ("embed", lambda: embed(trained if os.path.isdir(trained) else grafted, embedder, text)),
        ("loads", lambda: load(embedder)),
    )
    for name, step in steps:
        if name == "loads" and not os.path.isdir(embedder):
            continue
        try:
            setattr(row, name, step())
        except ModelError as error:
            setattr(row, name, f"refused: {error.what}")
            if "logits" in error.what or name == "transfer":
                row.forward = "refused"
            if name == "transfer":
                break
        except Exception as error:  # a crash is a cell of the table too
            setattr(row, name, "wrong")
            row.wrong = f"{name}: {type(error).__name__}: {error}"
            break
    return row


def transfer(source: str, output: str, text: Text) -> str:
    """`fvt` on a new vocabulary, and every check of `scion verify`."""
    old = train.load(source)
    english, positives = ([pair[side] for pair in text.pairs] for side in ("anchor", "positive"))
    new = train.train(old, [*text.greek, *english], train.TokenizerConfig(vocab_size=900))
    problem = Problem(old, new, Texts(corpus=lambda: iter(text.greek), anchors=english, positives=positives), seed=0)
    method = METHODS["fvt"]
    plan = assemble(problem, method.place(problem, method.config()), "fvt")
    model = loading.language_model(source, 0)
    graft(model, plan, new)
    model.save_pretrained(output)
    new.save_pretrained(output)
    plan.save(output)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere)
        try:
            verify.command([output, f"source_model={source}"], console)
        except ScionError as error:
            if "failed: forward." not in str(error):  # a forward that is refused is a row of the table by itself
                raise
    return "ok"


def pretrain(row: Row, model: str, output: str, text: Text) -> str:
    """Two steps on packed rows."""
    task = LanguageModelTask(model_uri=model, length=LENGTH, probability=0.15, seed=0)
    task.check()
    table = pack_texts(load_tokenizer(model), text.greek)
    outcomes = _train(task, lambda step: task.collator()(table.slice(step * ROWS, ROWS)), output, row)
    return f"loss {outcomes[0].loss:.2f}, {outcomes[1].loss:.2f}"


def embed(model: str, output: str, text: Text) -> str:
    """Two steps on pairs."""
    task = ContrastiveTask(model_uri=model, spec=EmbedderSpec(pooling="mean", max_length=LENGTH))
    table = tokenized_pairs(load_tokenizer(model), text.pairs[: STEPS * ROWS])
    outcomes = _train(task, lambda step: task.collator()(table.slice(step * ROWS, ROWS)), output, None)
    return f"loss {outcomes[0].loss:.2f}, {outcomes[1].loss:.2f}"


def load(folder: str) -> str:
    """Checks that the three ways to load an embedder give the same vectors."""
    ours = Embedder.load(folder).encode(SAMPLE)
    theirs = SentenceTransformer(folder, device="cpu").encode(list(SAMPLE))
    difference = float(np.abs(ours - theirs).max())
    assert difference < 1e-5, f"sentence-transformers gives other vectors, by {difference:.1g}"
    assert ours.shape[1] == Embedder.load(folder).dimensions[0], "its width is not what it says"
    AutoModel.from_pretrained(folder)
    return f"{difference:.0e}"


def pack_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> pa.Table:
    """Rows as the feed gives them."""
    frame = frame_of(tokenizer)
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    rows = concat_split(Ragged.of([[*frame.prefix, *one, *frame.suffix] for one in ids]), LENGTH, frame.pad)
    table = format.text_rows(rows, len(tokenizer))
    return _with_tags(table)


def tokenized_pairs(tokenizer: PreTrainedTokenizerFast, pairs: list[dict[str, Any]]) -> pa.Table:
    """Pairs as the feed gives them."""
    columns: dict[str, Any] = {}
    for side in ("anchor", "positive"):
        texts = [pair[side] for pair in pairs]
        columns[side] = tokenizer(texts, truncation=True, max_length=LENGTH).input_ids
        columns[f"{side}_key"] = pa.array([text_key(text) for text in texts], pa.int64())
    return _with_tags(pa.table(columns | {"negatives": [[] for _ in pairs], "negative_keys": [[] for _ in pairs]}))


def _with_tags(table: pa.Table) -> pa.Table:
    count = len(table)
    tags = {"step": [0] * count, "stream": [0] * count, "epoch": [0] * count, "row": range(count), "weight": [1.0] * count}
    for name, values in tags.items():
        table = table.append_column(name, pa.array(list(values)))
    return table


def _train(task: Any, batch_of: Callable[[int], Any], output: str, row: Row | None) -> list[StepOutcome]:
    config = TrainConfig(steps=STEPS, batch_size=ROWS, warmup_steps=1, learning_rate=1e-3)
    module = task.module()
    check = setup.check_forward(module, config, task.length)
    if row is not None:
        row.difference = check.difference
        lean = {"tapped": "lean", "gathered": "own head", "whole": "own"}[check.path.head]
        row.forward = f"unpacked, {lean}" if check.path.kernel is None else f"{lean} ({check.path.kernel})"
    engine = setup.make_engine(module, config, ROWS, 1)
    engine.train()
    outcomes = []
    for step in range(STEPS):
        torch.manual_seed(step)
        set_rates(engine, config, step)
        outcomes.append(optimizer_step(engine, [batch_of(step)], 1, 0, False))
    for outcome in outcomes:
        assert outcome.is_applied and np.isfinite(outcome.loss), f"a loss of {outcome.loss}"  # noqa: PT018
    with trained_weights(engine, config, output) as weights:
        task.export(weights, output)
    engine.destroy()
    return outcomes


def one_process() -> None:
    """Makes a process group of this process alone, as Ray Train makes one of its workers."""
    if not dist.is_initialized():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed reads them
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    environment.prepare_environment()


def as_facts(rows: list[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
