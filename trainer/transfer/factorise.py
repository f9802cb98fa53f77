"""Factorised embeddings: E = F P, with r numbers a token instead of D.

OFA, Liu et al., Findings of NAACL 2024 (arXiv:2311.08849), section 3. The truncated singular value decomposition of the
old matrix, E ~ U S V^T, is the nearest product of rank r. New tokens get rows in the coordinates F; the primitives P stay:

    paper       F = U          P = S V^T            F_new = W F          V r + r D parameters for V D
    balanced    F = U S^1/2    P = S^1/2 V^T        |E - F P|^2 = sum of the squares of the dropped singular values

Differences from the paper: `balanced` is the default. In the paper's split U's entries are about 1/sqrt(V) and P carries
all magnitude, so no learning rate suits both; the product, and so every mixture, is the same. E is not centred, so W stays
linear. An untied output matrix has its own factors, of the same rank. `graft` applies a plan to F as it does to E. The
result is saved with its factors (the reference's folders need its repository for that) or multiplied out.

V and S come from the eigendecomposition of E^T E [D, D] in fp64: 2 S D^2 operations for S rows, and 8 S r bytes. S is then
measured again as the lengths of E V, so F P = E V V^T whatever rounding did to small eigenvalues. The largest entry of each
row of P is positive.
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
"""The exponent of S in F; P takes the rest."""
BLOCK_ROWS = 1 << 13
"""Rows that are converted to fp64 at once."""


def factorise(rows: torch.Tensor, rank: int, split: Split = "balanced") -> tuple[torch.Tensor, torch.Tensor]:
    """F [S, rank] and P [rank, D], the nearest product to `rows` [S, D], in the same dtype.

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
    coordinates = np.concatenate([block @ basis for block in _fp64_blocks(rows)])
    lengths = np.maximum(np.linalg.norm(coordinates, axis=0), np.finfo(np.float64).tiny)
    coordinates *= lengths ** (_POWERS[split] - 1)
    basis = basis * lengths ** (1 - _POWERS[split])
    return torch.from_numpy(coordinates).to(rows.dtype), torch.from_numpy(basis.T).to(rows.dtype).contiguous()


def rank_for_energy(rows: torch.Tensor, share: float) -> int:
    """The smallest rank whose product keeps `share` of the energy, the sum of squares, of `rows` [S, D].

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"factors cannot keep {share} of the energy.", "transfer.factorise", "Choose above 0 and at most 1.")
    energy = _spectrum(rows)[0].cumsum()
    return min(int((energy < share * energy[-1]).sum()) + 1, *rows.shape)


def rank_for_parameters(parameters: int, rows: int, width: int) -> int:
    """The largest rank at which the factors of a matrix [rows, width] have at most `parameters` parameters.

    Raises:
        ConfigError: `parameters` is too small for rank 1.
    """
    if parameters < rows + width:
        raise ConfigError(
            f"{parameters:,} parameters are too few for {rows:,} x {width:,} embeddings.",
            "transfer.factorise",
            f"Allow at least {rows + width:,}.",
        )
    return min(parameters // (rows + width), rows, width)


def with_factors(model: PreTrainedModel, rank: int, split: Split = "balanced") -> PreTrainedModel:
    """The model with factorised input and output embeddings. `graft` and `save_pretrained` treat it like any other.

    Raises:
        ConfigError: as `factorise`.
        ModelError: the embeddings are more than a matrix, or the input or output side has several vocabulary matrices.
    """
    kinds = type(model.get_input_embeddings()), type(model.get_output_embeddings())
    if kinds != (torch.nn.Embedding, torch.nn.Linear) or model.config.is_encoder_decoder:
        raise ModelError(
            f"the embeddings of {type(model).__name__} cannot be factorised.", "transfer.factorise", "Remove this setting."
        )
    config, config_class = copy.deepcopy(model.config), type(model.config)
    config.embedding_rank = rank
    config.auto_map = {
        task: f"factored_embeddings.{factored_class(mapping[config_class]).__name__}"
        for task, mapping in TASKS.items()
        if config_class in mapping
    }
    state = model.state_dict()
    for name, (coordinates, primitives) in _for_both_sides(model, lambda part: factorise(part.weight.detach(), rank, split)):
        state |= {f"{name}.weight": coordinates, f"{name}.projection": primitives}
    plain: Any = type(model)
    return _as_class(model, factored_class(plain), config, state)


def without_factors(model: Any) -> PreTrainedModel:
    """Multiplies the factors out, E = F P: the model becomes a plain transformers model."""
    config = copy.deepcopy(model.config)
    del config.embedding_rank, config.auto_map
    state = model.state_dict()
    for name, product in _for_both_sides(model, lambda part: part.weight.detach() @ part.projection.detach()):
        state[f"{name}.weight"] = product
        del state[f"{name}.projection"]
    return _as_class(model, model.plain, config, state)


def _spectrum(rows: torch.Tensor) -> tuple[Floats, Floats]:
    """The squared singular values [D] of `rows` [S, D] in descending order, and the right singular vectors [D, D]."""
    gram = sum((block.T @ block for block in _fp64_blocks(rows)), np.zeros((rows.shape[1], rows.shape[1])))
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _fp64_blocks(rows: torch.Tensor) -> Iterator[Floats]:
    """`rows` in fp64, block by block. NumPy, because its product of a matrix with itself takes half the operations."""
    for block in rows.split(BLOCK_ROWS):
        yield block.double().numpy()


def _for_both_sides(model: PreTrainedModel, function: Callable[[Any], Any]) -> list[tuple[str, Any]]:
    """The name of the input and of the output module, each with the result of `make`; tied modules share one result."""
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    input_result = function(inputs)
    head_result = input_result if head.weight is inputs.weight else function(head)
    names = {module: name for name, module in model.named_modules()}
    return [(names[inputs], input_result), (names[head], head_result)]


def _as_class(model: PreTrainedModel, kind: type[PreTrainedModel], config: Any, state: dict[str, Any]) -> PreTrainedModel:
    """The model as another class. Weights that both classes have are shared, not copied."""
    rebuilt: PreTrainedModel = kind.from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    if model.can_generate():
        rebuilt.generation_config = model.generation_config
    return rebuilt.train(model.training)
