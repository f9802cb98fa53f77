"""Unpacks rows into one padded row per document, for models that cannot read several documents in a row."""

import torch

from data_pipeline.feed.target_batch import TargetBatch


def single_rows(batch: TargetBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and mask, int [D, W] each, for D documents of at most W tokens, and the places [M] of their targets.

    Places count in the flattened rows. Padding is on the right, masked, and repeats the first id of the batch.
    """
    is_token = batch.segments >= 0
    row = torch.arange(len(is_token), device=is_token.device)[:, None].expand_as(is_token)
    highest = int(batch.segments.max()) + 1
    document_keys = row * highest + batch.segments.clamp_min(0)
    distinct, document = torch.unique(document_keys[is_token], return_inverse=True)
    width = int(batch.positions[is_token].max()) + 1
    flat = torch.zeros_like(batch.input_ids)
    flat[is_token] = document * width + batch.positions[is_token]
    ids = batch.input_ids.new_full((len(distinct) * width,), int(batch.input_ids.flatten()[0]))
    mask = torch.zeros_like(ids)
    ids[flat[is_token]], mask[flat[is_token]] = batch.input_ids[is_token], 1
    return ids.view(-1, width), mask.view(-1, width), flat.flatten()[batch.places]
