"""Factorised embeddings: E = F P, with r numbers a token where there were D.

OFA, Liu et al., Findings of NAACL 2024 (arXiv:2311.08849), section 3. The truncated singular value decomposition of the
old matrix, E ~ U S V^T, is the nearest product of rank r. New tokens take their rows in the coordinates F, the primitives
P stay as they are:

    paper       F = U          P = S V^T            F_new = W F          V r + r D parameters for V D
    balanced    F = U S^1/2    P = S^1/2 V^T        |E - F P|^2 = sum of the squares of the dropped singular values

Ours differs: `balanced` is the default. U's entries are about 1/sqrt(V) and P carries all magnitude, so that one learning
rate cannot suit both; the product, and with it every mixture, is the same. Not centred, so that W stays linear. An output
matrix that is not the input matrix has factors of its own, of the same rank. `graft` applies a plan to F as it does to E;
what comes out is saved with its factors, which the reference's folders need a repository for, or multiplied out.

V and S are eigenvectors and eigenvalues of E^T E in fp64, which is D x D: 2 S D^2 operations for S rows, and 8 S r bytes.
S is then measured again as the lengths of E V, so that F P = E V V^T whatever rounding did to small eigenvalues. Each row
of P has its entry of largest size positive.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from data_pipeline.errors import ConfigError, ModelError
from trainer.models.factored_embeddings import TASKS, factored_class

Floats = NDArray[np.float64]
Split = Literal["balanced", "paper"]
_POWERS: dict[Split, float] = {"balanced": 0.5, "paper": 0.0}
"""The part of S that F takes."""
_BLOCK = 1 << 13


def factorise(rows: torch.Tensor, rank: int, split: Split = "balanced") -> tuple[torch.Tensor, torch.Tensor]:
    """F [S, rank] and P [rank, D], the nearest product to `rows` [S, D], in its type.

    Raises:
        ConfigError: the rank is not between 1 and the smaller side of the matrix.
    """
    if not 1 <= rank <= min(rows.shape):
        raise ConfigError(
            f"embeddings of {rows.shape[0]:,} x {rows.shape[1]:,} have no factors of rank {rank}.",
            "transfer.factorise.rank",
            f"Choose 1 to {min(rows.shape):,}.",
        )
    basis = _spectrum(rows)[1][:, :rank]
    basis = basis * np.sign(np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0))
    scores = np.concatenate([block @ basis for block in _wide(rows)])
    lengths = np.maximum(np.linalg.norm(scores, axis=0), np.finfo(np.float64).tiny)
    scores *= lengths ** (_POWERS[split] - 1)
    basis = basis * lengths ** (1 - _POWERS[split])
    return torch.from_numpy(scores).to(rows.dtype), torch.from_numpy(basis.T).to(rows.dtype).contiguous()


def rank_for_energy(rows: torch.Tensor, share: float) -> int:
    """The smallest rank whose product keeps `share` of the summed squares of `rows` [S, D].

    Raises:
        ConfigError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"factors cannot keep {share} of the energy.", "transfer.factorise", "Choose above 0 and at most 1.")
    kept = _spectrum(rows)[0].cumsum()
    return min(int((kept < share * kept[-1]).sum()) + 1, *rows.shape)


def rank_for_parameters(parameters: int, rows: int, width: int) -> int:
    """The largest rank with which the factors of a matrix [rows, width] have at most so many parameters.

    Raises:
        ConfigError: they are too few for rank 1.
    """
    if parameters < rows + width:
        raise ConfigError(
            f"{parameters:,} parameters are too few for {rows:,} x {width:,} embeddings.",
            "transfer.factorise",
            f"Allow at least {rows + width:,}.",
        )
    return min(parameters // (rows + width), rows, width)


def with_factors(model: PreTrainedModel, rank: int, split: Split = "balanced") -> PreTrainedModel:
    """`model` with factors for its input and output embeddings, which `graft` and `save_pretrained` take like any model.

    Raises:
        ConfigError: as `factorise`.
        ModelError: its embeddings are more than a matrix, or it has more than one vocabulary matrix on a side.
    """
    kinds = type(model.get_input_embeddings()), type(model.get_output_embeddings())
    if kinds != (torch.nn.Embedding, torch.nn.Linear) or model.config.is_encoder_decoder:
        raise ModelError(
            f"the embeddings of {type(model).__name__} cannot be factorised.", "transfer.factorise", "Leave it out."
        )
    settings, one = copy.deepcopy(model.config), type(model.config)
    settings.embedding_rank = rank
    settings.auto_map = {
        task: f"factored_embeddings.{factored_class(known[one]).__name__}" for task, known in TASKS.items() if one in known
    }
    state = model.state_dict()
    for name, (coordinates, primitives) in _of_both(model, lambda part: factorise(part.weight.detach(), rank, split)):
        state |= {f"{name}.weight": coordinates, f"{name}.projection": primitives}
    plain: Any = type(model)
    return _rebuilt(model, factored_class(plain), settings, state)


def without_factors(model: Any) -> PreTrainedModel:
    """A model with factors as a plain one of transformers: E = F P."""
    settings = copy.deepcopy(model.config)
    del settings.embedding_rank, settings.auto_map
    state = model.state_dict()
    for name, product in _of_both(model, lambda part: part.weight.detach() @ part.projection.detach()):
        state[f"{name}.weight"] = product
        del state[f"{name}.projection"]
    return _rebuilt(model, model.plain, settings, state)


def _spectrum(rows: torch.Tensor) -> tuple[Floats, Floats]:
    """The squared singular values [D] of `rows` [S, D] from large to small, and the right singular vectors [D, D]."""
    gram = sum((block.T @ block for block in _wide(rows)), np.zeros((rows.shape[1], rows.shape[1])))
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _wide(rows: torch.Tensor) -> Iterator[Floats]:
    """`rows` in fp64, block by block. In numpy, whose product of a matrix with itself takes half the operations."""
    for block in rows.split(_BLOCK):
        yield block.double().numpy()


def _of_both(model: PreTrainedModel, make: Callable[[Any], Any]) -> list[tuple[str, Any]]:
    """For both sides its name and what `make` makes of it: the same object where their matrices are the same."""
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    of_inputs = make(inputs)
    of_head = of_inputs if head.weight is inputs.weight else make(head)
    names = {module: name for name, module in model.named_modules()}
    return [(names[inputs], of_inputs), (names[head], of_head)]


def _rebuilt(model: PreTrainedModel, kind: type[PreTrainedModel], settings: Any, state: dict[str, Any]) -> PreTrainedModel:
    """`model` as another class. Weights that are in both are shared, not copied."""
    made: PreTrainedModel = kind.from_pretrained(None, config=settings, state_dict=state, dtype=model.dtype)
    if model.can_generate():
        made.generation_config = model.generation_config
    return made.train(model.training)
