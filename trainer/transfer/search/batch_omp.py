"""Batch-OMP: many vectors as sparse combinations of the same atoms.

Rubinstein, Zibulevsky and Elad, Technion CS-2008-08, 2008. Orthogonal matching pursuit takes the atom that correlates most
with what is left of x, k times, and solves for all taken atoms I at once. Given alpha = C x and G = C C^T it needs no vector
again: with the Cholesky factor L of G_II, which grows by a row a step, and P = L^-1 G_I,

    i = argmax |alpha_i|       d = sqrt(G_ii - |P_i|^2)       P_t = (G_i - P_i . P) / d
    y = alpha_i / d            alpha -= y P_t                 |r|^2 -= y^2

Ours differs: alpha follows from P by one subtraction a step where the paper solves for the coefficients each time; those are
solved for at the end, with a ridge that bounds them; an atom within a thousandth of a radian of the span of those taken is
passed over, since its coefficient would be noise; equal atoms count once. Where G is too large to be held, the rows that a
step needs are computed again, for all vectors of a block at once. (To let each vector choose among its 2,048 nearest atoms
is no way out: on MiniLM's embeddings, 16,000 atoms, k = 64, that left 31 % of a vector over instead of 25 %.)

The answer for a vector does not depend on the others: alpha and G are exact (see `exact.py`), the rest is done for each
vector by itself. For n atoms of width D a vector takes n k^2 operations, 8 ms for n = 4,000 and k = 64 on one core, and
2 n k D more with G computed again. Memory: 8 n^2 bytes for G, or 8 n D.
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

_GRAM_BLOCKS = 4
"""G is held when it takes no more than so many blocks; a matter of speed alone."""
_DEPENDENT = 1e-6
"""Squared sine of the angle to the span below which an atom counts as part of it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PursuitConfig:
    """Settings of the pursuit."""

    k: int = 64
    """Atoms of one combination at most."""
    normalise_atoms: bool = True
    """Whether the best atom is the one of the highest |cosine|; if not, of the highest |product|, which prefers long atoms."""
    ridge: float = 1e-6
    """Added to G's diagonal of ones. Coefficients of unit atoms stay within |x| / (2 sqrt(ridge))."""
    tolerance: float = 1e-5
    """A combination is done when the rest is shorter than this part of the vector."""

    def __post_init__(self) -> None:
        # Below 1e-6 comes what rounding leaves over, see `exact.py`.
        if self.k < 1 or self.ridge < 0 or not 1e-6 <= self.tolerance < 1:
            raise ConfigError(
                "omp needs k >= 1, ridge >= 0 and 1e-6 <= tolerance < 1, "
                f"got k={self.k}, ridge={self.ridge} and tolerance={self.tolerance}."
            )


def combinations(
    vectors: torch.Tensor, atoms: torch.Tensor, config: PursuitConfig, spread: Executor | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Coefficients with which at most k atoms add up to each vector, or nearly.

    Args:
        vectors: float32 [b, D].
        atoms: float32 [n, D], not all of them zero.

    Returns:
        [b, k] indices of atoms in the order in which they were taken, and [b, k] weights, 0 behind the last.
    """
    spread = spread or LocalExecutor()
    kept = _distinct(atoms)
    targets, lengths = normalise_rows(vectors)
    basis, norms = normalise_rows(atoms[kept])
    scale = np.ones(len(kept)) if config.normalise_atoms else norms
    gram = products(basis, basis) if 8 * len(kept) ** 2 <= _GRAM_BLOCKS * spread.block_bytes else None
    parts = blocks(targets, 8 * len(kept) * (config.k + 3), spread.block_bytes, spread.tasks)
    # Outside of matrix products an operation takes some 30 times as long.
    each = 30.0 * config.k**2 + (4.0 * config.k * basis.shape[1] if gram is None else 0.0)
    found = list(spread(_block, parts, basis, scale, gram, config, operations=len(targets) * len(kept) * each))
    index = np.concatenate([np.empty((0, config.k), np.int64), *[index for index, _ in found]])
    weights = np.concatenate([np.empty((0, config.k)), *[weights for _, weights in found]])
    return kept[index], (weights * lengths[:, None] / norms[index]).astype(np.float32)


def _distinct(atoms: torch.Tensor) -> NDArray[np.int64]:
    """The first of each set of equal atoms; none of zeros."""
    first: dict[bytes, int] = {}
    for number, atom in enumerate(atoms.numpy()):
        if atom.any():
            first.setdefault(atom.tobytes(), number)
    return np.fromiter(first.values(), np.int64)


def _block(
    targets: torch.Tensor, basis: torch.Tensor, scale: Floats, gram: Floats | None, config: PursuitConfig
) -> tuple[NDArray[np.int64], Floats]:
    """Indices and coefficients of unit atoms for each target, [b, k]. All take their first atom, then their second, ..."""
    wide, alphas = basis.double().numpy(), products(targets, basis)
    squares, energies = (wide * wide).sum(axis=1), (targets.double() ** 2).sum(dim=1).tolist()
    pursuits = [_Pursuit(alpha.copy(), squares.copy(), left, config) for alpha, left in zip(alphas, energies, strict=True)]
    going = [(pursuit, pursuit.best(scale)) for pursuit in pursuits]
    while going := [(pursuit, atom) for pursuit, atom in going if atom is not None]:
        atoms = [atom for _, atom in going]
        rows = wide[atoms] @ wide.T if gram is None else gram[atoms]
        for (pursuit, atom), row in zip(going, rows, strict=True):
            pursuit.take(atom, row)
        going = [(pursuit, pursuit.best(scale)) for pursuit, _ in going]
    index, weights = np.zeros((len(targets), config.k), np.int64), np.zeros((len(targets), config.k))
    for row, pursuit in enumerate(pursuits):
        part = row, slice(len(pursuit.taken))
        index[part], weights[part] = pursuit.taken, pursuit.coefficients(alphas[row], config.ridge)
    return index, weights


class _Pursuit:
    """One vector's way through n atoms."""

    def __init__(self, alpha: Floats, squares: Floats, energy: float, config: PursuitConfig) -> None:
        self.taken: list[int] = []
        self.alpha = alpha
        """[n], products of what is left of the vector with the atoms."""
        self.outside = squares
        """[n], squared distances of the atoms from the span of those taken."""
        self.left = energy
        """What is left of the vector, squared."""
        self.enough = config.tolerance**2 * energy
        self.factor = np.empty((min(config.k, len(alpha)), len(alpha)))
        """P"""

    def best(self, scale: Floats) -> int | None:
        """The atom to take next, None when it is enough."""
        score = np.where(self.outside > _DEPENDENT, np.abs(self.alpha), 0.0) * scale
        atom = int(score.argmax())
        wanted = len(self.taken) < len(self.factor) and self.left > self.enough and score[atom] > 0
        return atom if wanted else None

    def take(self, atom: int, gram: Floats) -> None:
        """One atom more, whose products with all atoms are `gram` [n]."""
        before, row = self.factor[: len(self.taken)], self.factor[len(self.taken)]
        distance = np.sqrt(self.outside[atom])
        # einsum, not a BLAS product: that rounds differently with another number of threads
        np.einsum("t,tn->n", before[:, atom], before, out=row)
        row[:] = (gram - row) / distance
        share = self.alpha[atom] / distance
        self.alpha -= share * row
        self.left -= share * share
        self.outside -= row * row
        self.outside[atom] = 0.0  # never twice
        self.taken.append(atom)

    def coefficients(self, products: Floats, ridge: float) -> Floats:
        """The ridge regression of the vector on the atoms taken [t], given its products with all atoms [n]."""
        lower = self.factor[: len(self.taken), self.taken]  # L transposed
        gram = np.einsum("ti,tj->ij", lower, lower) + ridge * np.eye(len(lower))
        return np.asarray(np.linalg.solve(gram, products[self.taken]), np.float64)
