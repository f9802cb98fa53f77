"""InfoNCE with in-batch and hard negatives (van den Oord et al. 2018, arXiv:1807.03748, equation 4).

With cosines s and temperature tau, for row i whose own document is d_i:

    l_i = -log( exp(s(q_i, d_i) / tau) / sum_j exp(s(q_i, d_j) / tau) )

Documents that have the text of d_i but are not d_i are left out of the sum: they are no negatives.
"""

import torch


def info_nce(
    queries: torch.Tensor,
    documents: torch.Tensor,
    own: torch.Tensor,
    keys: torch.Tensor,
    weights: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """The loss of each query, fp32 [B].

    Args:
        queries: float [B, d], unit rows.
        documents: float [D, d], unit rows; those of all ranks when negatives are gathered.
        own: int [B], which document belongs to each query.
        keys: int [D], equal for documents of equal text.
        weights: float [D], 0 for documents that only fill up.
        temperature: tau.
    """
    scores = (queries @ documents.T).float() / temperature
    mine = torch.arange(len(documents), device=own.device)[None] == own[:, None]
    same_text = keys[None] == keys[own][:, None]
    hidden = (same_text | (weights <= 0)[None]) & ~mine
    return torch.nn.functional.cross_entropy(scores.masked_fill(hidden, float("-inf")), own, reduction="none")
