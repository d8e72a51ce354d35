"""Refuses a training that memory does not suffice for, before the base model is loaded: by the rows that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from schemas.task_settings import Method
from services.trainer.devices import available_memory
from services.trainer.domain import TrainingRequest, TrainingRow
from services.trainer.memory import Device, MemoryEstimate, PassSize, check_memory, estimate
from services.trainer.plan import ModelShape, Plan
from services.trainer.recipe import methods
from services.trainer.recipe.packing import divide, shared_prompt


def check_memory_for(request: TrainingRequest, shape: ModelShape, plan: Plan, rows: Sequence[TrainingRow]) -> None:
    """Raise StepImpossible if the training takes more than is free now, beside what this process has already."""
    needed = replace(memory_needed(request, shape, plan, rows), libraries=0)
    free = available_memory()
    if methods.on_gpu():  # The model is spread over all that this process sees.
        free = sum(torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count()))
    check_memory(needed, free, request.spec)


def memory_needed(
    request: TrainingRequest, shape: ModelShape, plan: Plan, rows: Sequence[TrainingRow]
) -> MemoryEstimate:
    """The estimate for the longest pass of the longest rows that may meet in a step."""
    prefix = 0 if methods.has_flash_attention() else shared_prompt(rows)
    longest = sorted(rows, key=lambda row: len(row.tokens))[-plan.step_rows :]
    batch = 1 if request.settings.method is Method.FUSION else plan.batch_size  # Fusion measures losses alone.
    passes = divide(longest, prefix, batch * request.settings.max_length)
    size = max((PassSize.of_rows(chosen, prefix) for chosen in passes), key=lambda size: size.tokens)
    device = Device(methods.on_gpu(), methods.compute_dtype() is torch.bfloat16)
    return estimate(shape, request.settings, plan.dropout, size, device)
