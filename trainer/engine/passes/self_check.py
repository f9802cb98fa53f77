"""Checks at the start of a training that gradients of several chunks become one: DeepSpeed may change how it counts them.

On some versions and stages a repeated backward pass silently loses all chunks but the last (sentence-transformers issue 3173).
"""

import copy
from importlib.metadata import version
from types import SimpleNamespace

import pyarrow as pa
import torch
import torch.distributed as dist

from data_pipeline.errors import TrainingError
from data_pipeline.pairs.batch import PairBatch
from trainer.config.train import TrainConfig
from trainer.deepspeed_bridge.gradient_probe import full_gradients, probe_engine
from trainer.engine.passes import Passes
from trainer.engine.step_clock import StepClock
from trainer.models.dual_encoder import DualEncoder

_TOKENS, _WIDTH, _PAIRS = 32, 16, 4
_TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""Relative to the largest entry of the gradient. A lost chunk costs more than half of it."""


class _Encoder(torch.nn.Module):
    """A table and a layer, with the signature of a transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = torch.nn.Embedding(_TOKENS, _WIDTH), torch.nn.Linear(_WIDTH, _WIDTH)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.layer(self.table(input_ids)))


def check_cached_gradient(config: TrainConfig, passes: Passes) -> None:
    """Compares the gradient that `passes` leaves in a small engine with plain autograd over all ranks; every rank calls it.

    Raises:
        TrainingError: they differ.
    """
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = DualEncoder(_Encoder(), "mean")  # type: ignore[arg-type]
    expected = _plain_gradient(copy.deepcopy(module).to(device), device)
    engine = probe_engine(module, config, _PAIRS)
    sums = torch.zeros(1, dtype=torch.float64, device=device)
    passes(engine, [_batch(chunk_tokens=4)], 1 / _PAIRS, sums, StepClock())
    gradients = full_gradients(engine)
    engine.destroy()
    scale = max(float(gradient.abs().max()) for gradient in expected)
    error = max(float((one - other).abs().max()) for one, other in zip(gradients, expected, strict=True)) / scale
    if error > _TOLERANCE[config.precision]:
        raise TrainingError(
            f"the gradient of a batch in several chunks is wrong by {error:.1%}.",
            f"ZeRO-{config.zero_stage}, DeepSpeed {version('deepspeed')}",
            "Set embed.reduce to the other value, or embed.chunk_tokens to a whole batch, and report it.",
        )


def _plain_gradient(module: DualEncoder, device: torch.device) -> list[torch.Tensor]:
    """The gradient of the mean loss over all ranks' pairs, by one backward pass."""
    (module(_batch(chunk_tokens=1 << 20).to(device)).sum() / _PAIRS).backward()
    gradients = []
    for weight in module.parameters():
        assert weight.grad is not None
        dist.all_reduce(weight.grad)
        gradients.append(weight.grad.cpu() / dist.get_world_size())
    return gradients


def _batch(chunk_tokens: int) -> PairBatch:
    """Pairs of two tokens a text, others on each rank."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    ids = torch.randint(_TOKENS, (2, _PAIRS, 2), generator=generator).tolist()
    first = dist.get_rank() * _PAIRS
    keys = list(range(first, first + _PAIRS))
    table = pa.table({"anchor": ids[0], "positive": ids[1], "anchor_key": keys, "positive_key": [-1 - key for key in keys]})
    empty = pa.array([[]] * _PAIRS, pa.list_(pa.list_(pa.int32())))
    table = table.append_column("negatives", empty).append_column(
        "negative_keys", pa.array([[]] * _PAIRS, pa.list_(pa.int64()))
    )
    return PairBatch(
        table.append_column("stream", pa.array([0] * _PAIRS)).append_column("weight", pa.array([1.0] * _PAIRS)), 0, chunk_tokens
    )
