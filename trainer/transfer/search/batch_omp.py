"""Batch-OMP: many vectors as sparse combinations of the same atoms.

Rubinstein, Zibulevsky and Elad, Technion CS-2008-08, 2008. Orthogonal matching pursuit selects the atom that correlates most
with the residual r of x, k times, each time solving for all selected atoms I. With alpha = C x and G = C C^T it does not need
the vectors again: with the Cholesky factor L of G_II, which grows by a row per step, and P = L^-1 G_I,

    i = argmax |alpha_i|       d = sqrt(G_ii - |P_i|^2)       P_t = (G_i - P_i . P) / d
    y = alpha_i / d            alpha -= y P_t                 |r|^2 -= y^2

Differences from the paper:

- alpha follows from P by one subtraction per step; the paper solves for the coefficients each time.
- The coefficients are solved for at the end, with a ridge that bounds them.
- An atom within a thousandth of a radian of the span of the selected atoms is skipped: its coefficient would be noise.
- Equal atoms count once.
- If G does not fit in memory, each step recomputes the rows of G that it needs, for all vectors of a block at once.
  Restricting each vector to its 2,048 nearest atoms was rejected: on MiniLM's embeddings (16,000 atoms, k = 64) the residual
  rose from 25 % to 31 %.

The result for a vector does not depend on the others: alpha and G are exact (see `exact.py`), and the rest is computed per
vector. For n atoms of width D a vector takes n k^2 operations (8 ms for n = 4,000 and k = 64 on one core), and 2 n k D more if
G is recomputed. Memory: 8 n^2 bytes for G, or 8 n D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import ConfigError
from trainer.executor import Executor, LocalExecutor, blocks
from trainer.transfer.search.exact import normalise_rows, products

if TYPE_CHECKING:
    import torch

GRAM_BLOCKS = 4
"""G is kept in memory if it takes at most this many blocks; affects only speed."""
_DEPENDENT = 1e-6
"""Squared sine of the angle to the span below which an atom counts as part of it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PursuitConfig:
    """Settings of the pursuit."""

    k: int = 64
    """Maximum number of atoms in a combination."""
    normalise_atoms: bool = True
    """Whether to select the atom with the highest |cosine|; if not, with the highest |product|, which prefers long atoms."""
    ridge: float = 1e-6
    """Added to G's diagonal of ones. Coefficients of unit atoms stay within |x| / (2 sqrt(ridge))."""
    tolerance: float = 1e-5
    """The pursuit stops when the residual is shorter than this share of the vector."""

    def __post_init__(self) -> None:
        # Rounding leaves residuals below 1e-6, see `exact.py`.
        if self.k < 1 or self.ridge < 0 or not 1e-6 <= self.tolerance < 1:
            raise ConfigError(
                "omp needs k >= 1, ridge >= 0 and 1e-6 <= tolerance < 1, "
                f"got k={self.k}, ridge={self.ridge} and tolerance={self.tolerance}."
            )


def combinations(
    vectors: torch.Tensor, atoms: torch.Tensor, config: PursuitConfig, executor: Executor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Approximates each vector by a combination of at most k atoms.

    Args:
        vectors: float32 [b, D].
        atoms: float32 [n, D], not all of them zero.

    Returns:
        [b, k] indices of atoms in the order of selection, and [b, k] weights, 0 after the last.
    """
    executor = executor or LocalExecutor()
    distinct = _distinct(atoms)
    targets, lengths = normalise_rows(vectors)
    basis, norms = normalise_rows(atoms[distinct])
    scale = np.ones(len(distinct)) if config.normalise_atoms else norms
    gram = products(basis, basis) if 8 * len(distinct) ** 2 <= GRAM_BLOCKS * executor.block_bytes else None
    parts = blocks(targets, 8 * len(distinct) * (config.k + 3), executor.block_bytes, executor.tasks)
    # Operations outside of matrix products take about 30 times as long.
    operations_per_atom = 30.0 * config.k**2 + (4.0 * config.k * basis.shape[1] if gram is None else 0.0)
    results = list(
        executor(_block, parts, basis, scale, gram, config, operations=len(targets) * len(distinct) * operations_per_atom)
    )
    index = np.concatenate([np.empty((0, config.k), np.int64), *[index for index, _ in results]])
    weights = np.concatenate([np.empty((0, config.k)), *[weights for _, weights in results]])
    return distinct[index], (weights * lengths[:, None] / norms[index]).astype(np.float32)


def _distinct(atoms: torch.Tensor) -> NDArray[np.int64]:
    """The indices of distinct nonzero atoms: the first of each set of equal ones."""
    first: dict[bytes, int] = {}
    for number, atom in enumerate(atoms.numpy()):
        if atom.any():
            first.setdefault(atom.tobytes(), number)
    return np.fromiter(first.values(), np.int64)


def _block(
    targets: torch.Tensor, basis: torch.Tensor, scale: Floats, gram: Floats | None, config: PursuitConfig
) -> tuple[NDArray[np.int64], Floats]:
    """Indices and coefficients of unit atoms for each target, [b, k]. All targets select an atom in each step."""
    wide_basis, alphas = basis.double().numpy(), products(targets, basis)
    squares, energies = (wide_basis * wide_basis).sum(axis=1), (targets.double() ** 2).sum(dim=1).tolist()
    pursuits = [_Pursuit(alpha.copy(), squares.copy(), energy, config) for alpha, energy in zip(alphas, energies, strict=True)]
    active = [(pursuit, pursuit.best(scale)) for pursuit in pursuits]
    while active := [(pursuit, atom) for pursuit, atom in active if atom is not None]:
        atoms = [atom for _, atom in active]
        rows = wide_basis[atoms] @ wide_basis.T if gram is None else gram[atoms]
        for (pursuit, atom), row in zip(active, rows, strict=True):
            pursuit.select(atom, row)
        active = [(pursuit, pursuit.best(scale)) for pursuit, _ in active]
    index, weights = np.zeros((len(targets), config.k), np.int64), np.zeros((len(targets), config.k))
    for row, pursuit in enumerate(pursuits):
        entries = row, slice(len(pursuit.selected))
        index[entries], weights[entries] = pursuit.selected, pursuit.coefficients(alphas[row], config.ridge)
    return index, weights


class _Pursuit:
    """The pursuit of one vector over n atoms."""

    def __init__(self, alpha: Floats, squares: Floats, energy: float, config: PursuitConfig) -> None:
        self.selected: list[int] = []
        self.alpha = alpha
        """[n], products of the residual with the atoms."""
        self.outside = squares
        """[n], squared distances of the atoms from the span of the selected ones."""
        self.residual = energy
        """Squared length of the residual."""
        self.stop_below = config.tolerance**2 * energy
        self.factor = np.empty((min(config.k, len(alpha)), len(alpha)))
        """P"""

    def best(self, scale: Floats) -> int | None:
        """The next atom to select; None if the pursuit is done."""
        scores = np.where(self.outside > _DEPENDENT, np.abs(self.alpha), 0.0) * scale
        atom = int(scores.argmax())
        goes_on = len(self.selected) < len(self.factor) and self.residual > self.stop_below and scores[atom] > 0
        return atom if goes_on else None

    def select(self, atom: int, gram: Floats) -> None:
        """Selects an atom, whose products with all atoms are `gram` [n]."""
        previous, row = self.factor[: len(self.selected)], self.factor[len(self.selected)]
        distance = np.sqrt(self.outside[atom])
        # einsum: a BLAS product rounds differently with another number of threads
        np.einsum("t,tn->n", previous[:, atom], previous, out=row)
        row[:] = (gram - row) / distance
        step = self.alpha[atom] / distance
        self.alpha -= step * row
        self.residual -= step * step
        self.outside -= row * row
        self.outside[atom] = 0.0  # never select it twice
        self.selected.append(atom)

    def coefficients(self, products: Floats, ridge: float) -> Floats:
        """The ridge regression of the vector on the selected atoms [t], given its products with all atoms [n]."""
        lower = self.factor[: len(self.selected), self.selected]  # L transposed
        gram = np.einsum("ti,tj->ij", lower, lower) + ridge * np.eye(len(lower))
        return np.asarray(np.linalg.solve(gram, products[self.selected]), np.float64)
