"""GradCache: a contrastive loss over a batch of any size in the memory of one chunk (Gao et al. 2021, arXiv:2101.06983).

1. Encode every chunk without a graph, noting the state of the random generators.
2. From the vectors of all chunks and all ranks: the losses, and the gradient of each vector.
3. Encode every chunk again, with the same dropout, and propagate the gradients of its vectors to the weights.

The gradient is that of the whole batch at once; the price is one more forward pass. A batch within one chunk's budget is
encoded once, with its graph.

Difference from the paper: it runs on ZeRO. Under ZeRO-1 and 2 a repeated `engine.backward` reduces each chunk as if it were a
step of its own, and the update silently has another gradient. `reduce="once"` collects the gradients of all chunks on the rank
and reduces them in one go: an unpartitioned gradient in memory, the least traffic. `reduce="per_chunk"` reduces chunk by chunk:
the gradient stays partitioned, and the traffic grows with the number of chunks. Ranks agree on the number of chunks, because
forward passes under ZeRO-3 are collective. Read from DeepSpeed 0.19.8, runtime/engine.py, `coalesce_grad_reduction`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist

from data_pipeline.pairs.batch import Chunk, PairBatch
from trainer.engine.passes.direct import direct
from trainer.engine.step_clock import StepClock


def cached(
    engine: Any,
    batches: list[Any],
    scale: float,
    sums: torch.Tensor,
    clock: StepClock,
    reduce: Literal["once", "per_chunk"] = "once",
) -> None:
    """See `Passes`. A step is one batch, since its pairs are each other's negatives."""
    (batch,) = batches
    batch, is_large = agree_on_chunks(batch.to(engine.device), engine.device)
    if not is_large:
        direct(engine, [batch], scale, sums, clock)
        return
    with clock.device("forward", engine.device):
        vectors, states = encode_without_graph(engine, batch.chunks)
        losses, gradients = loss_gradients(engine.module, vectors, batch, scale)
    sums.index_add_(0, batch.streams, losses.double())
    clock.lap("forward")
    _propagate(engine, batch.chunks, states, gradients, reduce)
    clock.lap("backward")


def agree_on_chunks(batch: PairBatch, device: torch.device) -> tuple[PairBatch, bool]:
    """The batch with as many chunks as the rank with the most, and whether some rank's batch is too large for one pass."""
    most = torch.tensor([len(batch.chunks), int(batch.size > batch.chunk_tokens)], device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    chunks, is_large = most.tolist()
    return batch.with_chunks(chunks), bool(is_large)


def encode_without_graph(engine: Any, chunks: list[Chunk]) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """The vectors of each chunk, and the states of the random generators before it."""
    vectors, states = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_states(engine.device))
            vectors.append(engine(chunk))
    return vectors, states


def loss_gradients(
    module: Any, vectors: list[torch.Tensor], batch: PairBatch, scale: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The losses of this rank's pairs, fp32 [B], and the gradient of each chunk's vectors; every rank calls it."""
    leaves = [part.detach().requires_grad_() for part in vectors]
    losses = module.objective(module.arrange(torch.cat(leaves), batch, module.objective.needs), batch)
    gradients = torch.autograd.grad(losses.sum() * scale, leaves)
    return losses.detach(), list(gradients)


def _propagate(
    engine: Any, chunks: list[Chunk], states: list[list[torch.Tensor]], gradients: list[torch.Tensor], reduce: str
) -> None:
    """Adds to the engine what the gradients of all vectors say about the weights."""
    after = _random_states(engine.device)
    coalesce = reduce == "once" and can_coalesce(engine)
    reduction: AbstractContextManager[Any] = engine.coalesce_grad_reduction() if coalesce else nullcontext()
    with reduction:
        for number, (chunk, state, gradient) in enumerate(zip(chunks, states, gradients, strict=True), 1):
            if not coalesce:
                engine.set_gradient_accumulation_boundary(number == len(chunks))
            _set_random_states(state, engine.device)
            vectors = engine(chunk)
            engine.backward((vectors * gradient).sum())
            if not coalesce and number < len(chunks):
                engine.step()
    _set_random_states(after, engine.device)


def can_coalesce(engine: Any) -> bool:
    """Whether DeepSpeed can reduce the gradients of several backward passes at once: on ZeRO-1 to 3, by its own optimizers."""
    return engine.zero_optimization_stage() > 0 and hasattr(engine.optimizer, "_coalesce_grad_reduction")


def _random_states(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_states(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
