"""What a training over several GPUs needs."""

from __future__ import annotations

from typing import Any


def fsdp_arguments(gpus: int) -> dict[str, Any]:
    """Return the part of `TrainingArguments` that divides weights, gradients and optimizer among GPUs; for one: none.

    Each block of the model is a unit, gathered while it computes (FSDP 2).
    """
    if gpus < 2:
        return {}
    return {"fsdp": True, "fsdp_config": {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
