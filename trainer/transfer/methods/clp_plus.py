"""CLP+: as in CLP, a new token starts as a mixture of shared tokens that are similar in a donor model, but of few of them.

Yamaguchi, Villavicencio and Aletras, 2024 (arXiv:2402.10712). With the donor's rows a of new tokens t and shared tokens s:

    w_t = sparsemax_s( cos(a_t, a_s) )         E_new[t] = sum_s w_ts E_old[s]

Differences from the paper: tokens are matched by canonical form, so the donor's tokenizer may differ from the new one. The
sparsemax is computed exactly from the highest cosines alone (see `neighbours.top_sparsemax`, also for the cost).
"""

from dataclasses import dataclass

from trainer.transfer import donor
from trainer.transfer.plan import Provenance
from trainer.transfer.problem import Placement, Problem
from trainer.transfer.search.exact import normalise_rows
from trainer.transfer.search.neighbours import top_sparsemax


@dataclass(frozen=True, slots=True, kw_only=True)
class ClpPlusConfig:
    """The donor."""

    donor: str | None = None
    """A model with trained embeddings for the new tokens: a folder or a hub name."""


def place(problem: Problem, config: ClpPlusConfig) -> Placement:
    """Places every new token that the donor has, as a sparse mixture of shared tokens."""
    loaded = donor.load(problem, config.donor, "clp_plus")
    new, _ = normalise_rows(loaded.new_embeddings)
    shared, _ = normalise_rows(loaded.shared_embeddings)
    return loaded.mixtures(*top_sparsemax(new, shared, problem.executor), Provenance.NEIGHBOURS)
