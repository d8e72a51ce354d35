"""Fusion: published adapters of one base model merged into one, without a step of training.

PEFT's `add_weighted_adapter` merges them with each of a few weightings, and the one with the lowest loss on rows of the
task is taken. The result is a plain LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import cast_adapter_dtype

from services.trainer.domain import TrainingRequest, TrainingRow
from services.trainer.recipe.engine import Packing, Report, score_rows

_MERGED = "default"  # PEFT saves the adapter of this name into the folder itself.
_DENSITY = 0.5  # The share of an adapter's weights that ties and dare_linear keep.
_HEAVY, _SUMMED = 0.7, 0.8

Weights = tuple[float, ...]


def weightings(count: int) -> list[Weights]:
    """The weights to try: equal ones, those with one heavy adapter, and sums, which keep all of each adapter."""
    light = (1.0 - _HEAVY) / (count - 1)
    one_heavy = [tuple(_HEAVY if place == heavy else light for place in range(count)) for heavy in range(count)]
    return [(1.0 / count,) * count, *one_heavy, (1.0,) * count, (_SUMMED,) * count]


def fuse(
    base: Any, request: TrainingRequest, rows: Sequence[TrainingRow], attention: str, report: Report
) -> tuple[PeftModel, Weights, float]:
    """Merge the adapters in `request.fused`; returns the model with the merged adapter alone, the weights that were
    chosen, in the order of the task's adapters, and the loss with them, the mean per answer token in nats.

    `rows`: by whose loss the weights are chosen. `attention`: as of `Packing`.
    """
    parts = [f"part_{number}" for number in range(len(request.fused))]
    model = PeftModel.from_pretrained(base, str(request.fused[0]), adapter_name=parts[0])
    for name, folder in zip(parts[1:], request.fused[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    for config in model.peft_config.values():
        config.use_rslora = False  # What is merged has the parts' scales in it: the merged one's own must be 1.
    packing = Packing(rows, request.settings.max_length, attention)
    losses: dict[Weights, float] = {}
    tried = weightings(len(parts))
    for number, weights in enumerate(tried, start=1):
        _merge(model, parts, weights, request)
        loss = sum(score_rows(model, rows, packing, model.device)[0]) / sum(row.answer_tokens for row in rows)
        losses[weights] = loss
        report(number, len(tried), f"{number} of {len(tried)} weightings, loss {loss:.3f}", validation_loss=loss)
        model.delete_adapter(_MERGED)
    chosen = min(losses, key=losses.__getitem__)
    _merge(model, parts, chosen, request)
    for name in parts:
        model.delete_adapter(name)
    return model, chosen, losses[chosen]


def _merge(model: PeftModel, parts: list[str], weights: Weights, request: TrainingRequest) -> None:
    combination = str(request.settings.fusion.combination)
    torch.manual_seed(request.settings.seed)  # dare_linear drops weights by chance.
    model.add_weighted_adapter(parts, list(weights), _MERGED, combination, density=_DENSITY, svd_full_matrices=False)
    cast_adapter_dtype(model.base_model, _MERGED)  # `cat` makes one of the base model's data type.
    model.set_adapter(_MERGED)
