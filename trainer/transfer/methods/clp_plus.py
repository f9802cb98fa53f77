"""CLP+: as CLP, a new token starts as a mixture of shared tokens that are like it in a donor model, but of few.

Yamaguchi, Villavicencio and Aletras, 2024 (arXiv:2402.10712). With the donor's rows a of new tokens t and shared tokens s:

    w_t = sparsemax_s( cos(a_t, a_s) )         E_new[t] = sum_s w_ts E_old[s]

Ours differs: tokens are matched by canonical form, so that the donor's tokenizer need not be the new one; the sparsemax is
computed exactly from the highest cosines alone (see `kernels.top_sparsemax`, also for the cost).
"""

from dataclasses import dataclass

from trainer.transfer import donor
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.exact import normalise_rows
from trainer.transfer.search.neighbours import top_sparsemax


@dataclass(frozen=True, slots=True, kw_only=True)
class ClpPlusConfig:
    """Which model says what is alike."""

    donor: str | None = None
    """A model with trained rows for the new tokens: a folder or a hub name."""


def place(problem: Problem, config: ClpPlusConfig) -> Placement:
    """Sparse mixtures of shared tokens for every new token that the donor has."""
    found = donor.load(problem, config.donor, "clp_plus")
    new, _ = normalise_rows(found.new_embeddings)
    shared, _ = normalise_rows(found.shared_embeddings)
    return found.mixtures(*top_sparsemax(new, shared, problem.executor), Provenance.NEIGHBOURS)
