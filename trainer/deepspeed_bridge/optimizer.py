"""Which optimizer learns which weights: AdamW all of them, or Muon the matrices of the body.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982) steps along the nearest
orthogonal matrix of its momentum, which suits matrices that multiply vectors. Look-up tables, the head and vectors stay with
AdamW. Read from DeepSpeed 0.19.8, runtime/zero/muon.
"""

from typing import Any

import torch

from trainer.config.train import TrainConfig
from trainer.models.freezing import vocabulary_parameter_ids


def make_optimizer(module: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the weights that learn. Its rates are set before each step."""
    groups = parameter_groups(module, config)
    if config.muon_rate is None:
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        for weight in group["params"]:
            weight.use_muon = group["use_muon"]  # DeepSpeed reads it there
        group |= {} if group["use_muon"] else {"betas": config.betas, "eps": config.eps}  # AdamW's own, not Muon's
    settings = {"lr": config.learning_rate, "fused": True}
    return MuonWithAuxAdam(groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs=settings)


def parameter_groups(module: torch.nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups.

    Matrices decay, vectors do not. Weights with a row per token form groups marked `embedding`, so that they can learn alone at
    first (`TrainConfig.embedding_steps`). Muon's groups are marked `use_muon`.
    """
    rows = vocabulary_parameter_ids(module)
    tables = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    groups: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            dimensions = len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 has partitioned it already
            matrix, embedding = dimensions > 1, id(parameter) in rows
            muon = config.muon_rate is not None and dimensions == 2 and not embedding and id(parameter) not in tables
            groups.setdefault((matrix, embedding, muon), []).append(parameter)
    return [
        {"params": members, "weight_decay": config.weight_decay if matrix else 0.0, "embedding": embedding, "use_muon": muon}
        for (matrix, embedding, muon), members in sorted(groups.items(), reverse=True)
    ]
