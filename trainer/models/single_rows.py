"""Packed rows taken apart: a row of its own for each document, padded, for models that cannot read several in one row."""

import torch

from data_pipeline.feed.targets import TargetBatch


def single_rows(batch: TargetBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and mask, int [D, W] each, of D documents of at most W tokens, and the places [M] of the batch's targets in
    the flattened rows. Padding stands on the right and repeats the first id, behind the mask."""
    real = batch.segments >= 0
    row = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    highest = int(batch.segments.max()) + 1
    names = row * highest + batch.segments.clamp_min(0)
    used, document = torch.unique(names[real], return_inverse=True)
    width = int(batch.positions[real].max()) + 1
    flat = torch.zeros_like(batch.input_ids)
    flat[real] = document * width + batch.positions[real]
    ids = batch.input_ids.new_full((len(used) * width,), int(batch.input_ids.flatten()[0]))
    mask = torch.zeros_like(ids)
    ids[flat[real]], mask[flat[real]] = batch.input_ids[real], 1
    return ids.view(-1, width), mask.view(-1, width), flat.flatten()[batch.places]
