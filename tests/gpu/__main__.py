"""`make test-gpu`: the tests that need a GPU, in at most ten minutes.

    python -m tests.gpu [forwards] [compiled] [stages] [speed]

- forwards: the check before a training on each common family, in fp32 and bf16; losses and gradients of packed rows, through
  FlexAttention's forward and backward, against the model's own forward of each document alone;
- compiled: the same through one compiled graph;
- stages: a short run under each ZeRO stage, as `scion pretrain` starts it;
- speed: the tables of `tests.benchmarks.train_gpu`, a few steps of each side.

All of them if none is named. Needs torch, transformers, Ray and DeepSpeed, no pytest. Exit code 1 if something is wrong.
Without a GPU it says so and exits with 0; `trial` as the first word runs it on the CPU, to test the program itself. The
last line of stdout is one JSON object.
"""

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from data_pipeline.feed.target_batch import TargetBatch
from tests.benchmarks import made_up, train_gpu, training
from tests.families.configs import COMMON, FAMILIES, tiny
from trainer.config.train import TrainConfig
from trainer.models import forward_check
from trainer.models.forward_check import ForwardPath
from trainer.models.packed_lm import PackedLM

LENGTH, STEPS = 64, 6
device = "cuda"
COMPILED = ("bert", "modernbert", "llama", "gemma2", "gpt2")
_CLOSE = 1e-4
"""Largest difference of a loss or gradient in fp32, whose sums run in another order."""


def main(parts: list[str]) -> int:
    global device
    if parts[:1] == ["trial"]:
        device, parts = "cpu", parts[1:]
    unknown = set(parts) - set(PARTS)
    if unknown:
        print(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"test": "gpu", "skipped": "torch finds no CUDA device here"}))
        return 0
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    report: dict[str, Any] = {
        "test": "gpu",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu: a trial",
        "torch": torch.__version__,
    }
    wrong: list[str] = []
    for name in parts or PARTS:
        began = time.perf_counter()
        report[name] = PARTS[name](wrong)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(report | {"wrong": wrong}))
    return 1 if wrong else 0


def forwards(wrong: list[str]) -> dict[str, Any]:
    """By family: the path that the check chose in either precision, and the largest difference of a gradient in fp32."""
    results = {}
    for name in COMMON:
        _say(name)
        torch._dynamo.reset()
        try:
            results[name] = {str(kind)[6:]: _check_forward(name, kind) for kind in (torch.float32, torch.bfloat16)}
            results[name]["gradient"] = _apart(name, compiled=False)
        except Exception as error:  # one family must not hide the others
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            continue
        if results[name]["gradient"] > _CLOSE:
            wrong.append(f"{name}: gradients of packed rows differ by {results[name]['gradient']:.2g}")
        expected = "own rows" if FAMILIES[name].way[0] is None else "packed"
        if any(results[name][kind]["rows"] != expected for kind in ("float32", "bfloat16")):
            wrong.append(f"{name}: {results[name]}, {expected} expected")
    return results


def compiled(wrong: list[str]) -> dict[str, float]:
    """By family, the largest difference of a gradient of the compiled graph."""
    results = {}
    for name in COMPILED:
        _say(f"{name} compiled")
        torch._dynamo.reset()
        try:
            results[name] = _apart(name, compiled=True)
        except Exception as error:
            wrong.append(f"{name} compiled: {type(error).__name__}: {str(error)[:300]}")
            continue
        if results[name] > _CLOSE:
            wrong.append(f"{name}: gradients of the compiled graph differ by {results[name]:.2g}")
    return results


def stages(wrong: list[str]) -> dict[str, list[float]]:
    """The losses of a short bf16 run under each ZeRO stage."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="scion-gpu-") as folder:
        shape = train_gpu.shapes(gpu=False)["gpt2"]
        made_up.model(f"{folder}/model", shape.config("gpt2", "ours", gpu=False))
        made_up.rows(f"{folder}/rows", {"xx": 64}, shape.length, 512, seed=1)
        for stage in (1, 2, 3):
            _say(f"ZeRO-{stage}")
            config = TrainConfig(
                steps=STEPS, batch_size=8, zero_stage=stage, precision="bf16", learning_rate=1e-3, checkpoint_steps=None
            )
            arguments = (f"{folder}/model", f"{folder}/rows", f"{folder}/{stage}", config)
            results[str(stage)] = training.ours(*arguments, workers=1, cpus=1, gpu=device == "cuda")["losses"]
    for stage, losses in results.items():
        if max(abs(one - other) for one, other in zip(losses, results["1"], strict=True)) > 0.05:
            wrong.append(f"ZeRO-{stage} has other losses than ZeRO-1: {losses}, {results['1']}")
    return results


def speed(wrong: list[str]) -> None:
    """Runs the benchmark, which prints its own tables and line of JSON."""
    train_gpu.main(["--steps", "20", "--repeats", "1"])


def _say(what: str) -> None:
    """Prints a line of progress, which shows how far a run came that was cut off."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _check_forward(name: str, precision: torch.dtype) -> dict[str, Any]:
    module, began = _module(name, precision), time.perf_counter()
    check = module.check(LENGTH)
    return {
        "rows": "own rows" if check.path.kernel is None else "packed",
        "kernel": check.path.kernel,
        "head": check.path.head,
        "difference": check.difference,
        "bound": check.tolerance,
        "seconds": round(time.perf_counter() - began, 2),
        "reasons": check.reasons,
    }


def _apart(name: str, compiled: bool) -> float:
    """The largest difference of losses and gradients between packed rows and the model's own forward of each document."""
    module = _module(name, torch.float32)
    module.check(LENGTH)
    batch = forward_check.check_batch(module, LENGTH).to(device)
    if compiled:
        module.compile_graph()
    ours = module(batch), _gradients(module, module(batch))
    way = module.path
    module.use_path(ForwardPath(kernel=None, head="whole"))
    theirs = _alone(module, batch), _gradients(module, _alone(module, batch))
    module.use_path(way)
    apart = [(ours[0] - theirs[0]).abs().max(), *((a - b).abs().max() for a, b in zip(ours[1], theirs[1], strict=True))]
    return float(torch.stack(apart).max())


def _alone(module: PackedLM, batch: TargetBatch) -> torch.Tensor:
    logits = torch.cat(list(forward_check.logits_per_document(module, batch, "whole")))
    return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")


def _gradients(module: PackedLM, losses: torch.Tensor) -> list[torch.Tensor]:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(losses.sum() / len(losses), weights, allow_unused=True)
    return [torch.zeros_like(weight) if one is None else one for one, weight in zip(gradients, weights, strict=True)]


def _module(name: str, precision: torch.dtype) -> PackedLM:
    model = tiny(name).to(device)
    for weight in model.parameters():
        weight.data = weight.data.to(precision)
    return PackedLM(model, FAMILIES[name].causal)


PARTS: dict[str, Callable[[list[str]], Any]] = {"forwards": forwards, "compiled": compiled, "stages": stages, "speed": speed}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
