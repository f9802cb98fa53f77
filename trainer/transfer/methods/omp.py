"""OMP: a new token starts as the sparse combination of shared tokens that reconstructs its row in a donor model.

Goddard and Fernandes Neto, 2025 (arXiv:2506.06607); their code is mergekit's tokensurgeon. With the donor's rows x_t of new
and c_s of shared tokens, and at most k nonzero weights a row, found by orthogonal matching pursuit:

    w_t ~ argmin |x_t - sum_s w_ts c_s|         E_new[t] = sum_s w_ts E_old[s]

Weights may be negative and need not sum to one. Cost: see `batch_omp.py`.

Differences from the paper: the next shared token is the one with the highest cosine, not the highest product, which prefers
long rows. Equal rows count once and a ridge bounds the weights. One set of weights serves input and output embeddings; the
reference solves once in each of the donor's two matrices.
"""

from dataclasses import dataclass

from trainer.transfer import donor
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.batch_omp import PursuitConfig, combinations


@dataclass(frozen=True, slots=True, kw_only=True)
class OmpConfig(PursuitConfig):
    """The donor and the settings of the pursuit."""

    donor: str | None = None
    """A model with trained embeddings for the new tokens: a folder or a hub name."""


def place(problem: Problem, config: OmpConfig) -> Placement:
    """Places every new token that the donor has, as a sparse combination of shared tokens."""
    loaded = donor.load(problem, config.donor, "omp")
    return loaded.mixtures(
        *combinations(loaded.new_embeddings, loaded.shared_embeddings, config, problem.executor), Provenance.DONOR
    )
