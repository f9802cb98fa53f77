"""OMP: a new token starts as the sparse combination of shared tokens that rebuilds its row in a donor model.

Goddard and Fernandes Neto, 2025 (arXiv:2506.06607); in code as mergekit's tokensurgeon. With the donor's rows x_t of new and
c_s of shared tokens, and at most k weights a row that are not 0, found by orthogonal matching pursuit:

    w_t ~ argmin |x_t - sum_s w_ts c_s|         E_new[t] = sum_s w_ts E_old[s]

Ours differs: the next shared token is the one of highest cosine, not of highest product, which prefers long rows; equal rows
and a ridge cannot blow up the weights; one set of weights serves input and output embeddings, where the reference solves
once in each of the donor's two matrices. Weights may be negative and need not sum to one. Cost: see `batch_omp.py`.
"""

from dataclasses import dataclass

from trainer.transfer import donor
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.batch_omp import PursuitConfig, combinations


@dataclass(frozen=True, slots=True, kw_only=True)
class OmpConfig(PursuitConfig):
    """The donor, and the settings of the pursuit."""

    donor: str | None = None
    """A model with trained rows for the new tokens: a folder or a hub name."""


def place(problem: Problem, config: OmpConfig) -> Placement:
    """Sparse combinations of shared tokens for every new token that the donor has."""
    found = donor.load(problem, config.donor, "omp")
    return found.mixtures(
        *combinations(found.new_embeddings, found.shared_embeddings, config, problem.executor), Provenance.DONOR
    )
