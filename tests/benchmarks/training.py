"""Ways to train the same model on the same rows, with the seconds of each step: ours, as a user starts it, and the peers."""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data_pipeline.feed.rank_feed import OrderedRows, RankFeed
from data_pipeline.order.row_order import RowOrder
from data_pipeline.shards import manifest
from trainer.config.train import TrainConfig
from trainer.engine.setup import make_engine
from trainer.engine.step import optimizer_step, set_rates
from trainer.monitoring.step_outcome import StepOutcome
from trainer.tasks.language_modeling import LanguageModelTask

PROBABILITY, SEED, RATE = 0.15, 3, 1e-4


def ordered_rows(folder: str, config: TrainConfig) -> OrderedRows:
    shard_manifest = manifest.load(folder)
    order = RowOrder(
        streams=shard_manifest.order_streams(dict.fromkeys(shard_manifest.streams, 1.0)), batch=config.batch_size, seed=SEED
    )
    return OrderedRows(order=order, folder=folder, manifest=shard_manifest, micro_batch=config.micro_batch)


def task(folder: str, length: int) -> LanguageModelTask:
    return LanguageModelTask(model_uri=folder, length=length, probability=PROBABILITY, seed=SEED)


def ours(model: str, rows: str, output: str, config: TrainConfig, workers: int, cpus: float, gpu: bool) -> dict[str, Any]:
    """Trains with Ray Train, Ray Data and DeepSpeed, the log, the ledger and the first checkpoint, as `scion pretrain` does."""
    from cluster.capacity import has_gpus
    from cluster.session import ray_session
    from trainer.checkpoints.store import Store
    from trainer.engine.launch import fit
    from trainer.engine.train_run import TrainRun
    from trainer.monitoring import run_log

    training_rows = ordered_rows(rows, config)
    run = TrainRun(
        task=task(model, training_rows.manifest.length),
        config=config,
        rows=training_rows,
        heldout=None,
        row_groups={},
        uri=f"{output}/run",
        export_uri=f"{output}/run/model",
        store=Store(f"{output}/run/checkpoints", 3),
        identity="benchmark",
        threads=max(1, int(cpus)),
        progress=None,
    )
    with ray_session(workers=workers, worker_cpus=cpus, address=None):
        if gpu and not has_gpus():
            sys.exit("torch finds a GPU and Ray none: its workers would wait for ever")
        fit(run, workers=workers, worker_cpus=cpus, gpu=gpu)
    steps = run_log.steps(run_log.read(f"{run.uri}/log"))
    names = ("data_wait", "agree", "forward", "backward", "update", "memory")
    parts = {name: [step.get(name) for step in steps] for name in names}
    return {"seconds": [step["seconds"] for step in steps], "losses": [step["loss"] for step in steps], "parts": parts}


def plain(model: str, rows: str, config: TrainConfig) -> dict[str, Any]:
    """Our engine and forward by themselves under torchrun: no Ray, rows read in the process, nothing written."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    outcomes = steps(task(model, ordered_rows(rows, config).manifest.length), rows, config)
    seconds, losses, began = [], [], time.perf_counter()
    for outcome in outcomes:
        losses.append(outcome.loss)
        seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
    dist.destroy_process_group()
    return {"seconds": seconds, "losses": losses}


def steps(lm_task: LanguageModelTask, rows: str, config: TrainConfig) -> Iterator[StepOutcome]:
    """Makes an engine in the current process group; each item that is taken trains a step."""
    import torch.distributed as dist

    feed = RankFeed(rows=ordered_rows(rows, config), rank=dist.get_rank(), world=dist.get_world_size())
    collate, (micro, accumulation) = lm_task.collator(), feed.shape(0)
    engine = make_engine(lm_task.module(), config, micro, accumulation)
    engine.train()

    def step(number: int, table: pa.Table) -> StepOutcome:
        batches: list[Any] = [collate(table.slice(i * micro, micro)) for i in range(accumulation)]
        set_rates(engine, config, number)
        return optimizer_step(engine, batches, 1, 0, False)

    return itertools.starmap(step, enumerate(feed.read_local(0, config.steps)))


def hf_trainer(model: str, rows: str, output: str, config: TrainConfig, deepspeed: bool) -> dict[str, Any]:
    """Hugging Face's Trainer on rows that are in memory, masked by its own collator or shifted by its own loss."""
    import torch
    import transformers
    from datasets import Dataset

    from data_pipeline.shards.format import token_ids
    from trainer.models import loading

    feed = RankFeed(rows=ordered_rows(rows, config), rank=0, world=1)
    ids = [token_ids(table["input_ids"], feed.rows.manifest.length) for table in feed.read_local(0, config.steps)]
    data = Dataset.from_dict({"input_ids": [row for step in ids for row in step]})
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    gpu = torch.cuda.is_available()
    settings = transformers.TrainingArguments(
        output_dir=output,
        per_device_train_batch_size=config.micro_batch or config.batch_size,
        max_steps=config.steps,
        gradient_accumulation_steps=config.batch_size // (config.micro_batch or config.batch_size),
        learning_rate=RATE,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        lr_scheduler_type="linear",
        use_cpu=not gpu,
        bf16=config.precision == "bf16",
        save_strategy="no",
        report_to=[],
        logging_strategy="steps",
        logging_steps=1,
        disable_tqdm=True,
        seed=SEED,
        deepspeed=_zero1(config) if deepspeed else None,
    )
    clock = _clock(transformers.TrainerCallback, gpu)
    causal = loading.kind_of(model) == "causal"
    trainer = transformers.Trainer(
        loading.language_model(model, SEED),
        settings,
        train_dataset=data,
        callbacks=[clock],
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=not causal, mlm_probability=PROBABILITY),
    )
    trainer.train()
    return {"seconds": clock.seconds, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def _zero1(config: TrainConfig) -> dict[str, Any]:
    """The settings in the documentation of transformers."""
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"zero_optimization": {"stage": 1}, "bf16": {"enabled": config.precision == "bf16"}} | dict.fromkeys(auto, "auto")


def _clock(base: type, gpu: bool) -> Any:
    """A callback that records the seconds between the ends of steps."""
    import torch

    class Clock(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if gpu:
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds.append(now - self._began)
            self._began = now

    return Clock()


def peak() -> float:
    """Operations a second of a product of two large matrices on this device, in the precision of training."""
    import torch

    gpu = torch.cuda.is_available()
    size, device, dtype = (8192, "cuda", torch.bfloat16) if gpu else (2048, "cpu", torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        left @ right
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[10:])


def answer(command: list[str], **environment: str) -> dict[str, Any]:
    """Runs Python in a new process and returns its last line of JSON. If it fails, exits with its error."""
    process = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ | environment)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed: {process.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(next(line for line in process.stdout.splitlines()[::-1] if line.startswith("{")))
    return record


def threads(count: int) -> None:
    """Sets the same number of threads for every side, before torch is imported."""
    os.environ |= {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "TOKENIZERS_PARALLELISM": "false"}
