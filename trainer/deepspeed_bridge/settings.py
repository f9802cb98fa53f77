"""From Scion's settings to DeepSpeed's: the only place that writes its JSON. Read from DeepSpeed 0.19.8, runtime/config.py."""

from typing import Any

from trainer.config.train import TrainConfig

_MANY = 8
"""Micro-batches from which on their gradients are summed in fp32."""


def deepspeed_settings(config: TrainConfig, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """The settings of `deepspeed.initialize`. Clipping is always named: DeepSpeed's default is 1.0, not off."""
    # Many small gradients that are summed in bf16 vanish beside their sum.
    exact = config.precision == "bf16" and accumulation >= _MANY
    # For ZeRO-1 with such sums DeepSpeed has an optimizer of its own, which skips no step for a loss that is not finite.
    stage = 2 if exact and config.zero_stage == 1 else config.zero_stage
    zero: dict[str, Any] = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    if config.hpz > 1:
        zero["zero_hpz_partition_size"] = config.hpz
    if config.offload is not None:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        # The scan for overflow launches six kernels a parameter; our own guard reads loss and norm instead.
        "bf16": {"enabled": config.precision == "bf16", "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32" if exact else None},
        "gradient_clipping": config.clip,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
