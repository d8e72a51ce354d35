"""What a training will take, said before it starts: operations → hours → price. Pure.

Attention's own products are left out: of rows of 2,048 tokens a third with a model of 135 million parameters, a
twentieth with one of 8 billion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from schemas.task_settings import Method
from schemas.tasks import TaskSpec
from services.trainer.domain import TrainingRow
from services.trainer.plan import ModelShape, Plan
from shared.errors import StepImpossible
from shared.model.prices import PriceList, money

EFFICIENCY = 0.5
"""Which share of the speed of one large product of matrices a training reaches."""


def training_flops(
    shape: ModelShape,
    method: Method,
    plan: Plan,
    rows: Sequence[TrainingRow],
    prefix: int = 0,
    recomputes: bool = False,
) -> float:
    """Floating-point operations of a training.

    prefix: tokens of a prompt that all rows share and each step computes once. recomputes: whether the forward pass is
    done again for the gradient (gradient checkpointing). Weights that are frozen need no gradient of their own.
    """
    steps = math.ceil(len(rows) / plan.step_rows)
    tokens = sum(len(row.tokens) - prefix for row in rows) + prefix * steps
    answers = sum(row.answer_tokens for row in rows)  # Of these alone the head computes logits.
    products = shape.layers * shape.layer_parameters * tokens + shape.vocabulary * shape.hidden * answers
    return plan.epochs * products * (4 + 2 * (method is Method.FULL) + 2 * recomputes)


def check_cost(flops: float, speed: float, gpus: int, cores: int, prices: PriceList, spec: TaskSpec) -> str:
    """Return what a training takes and costs, for people. `speed`: measured, of one GPU, or, without GPUs, of `cores`.

    Raises StepImpossible if that is more GPU-hours, or hours on a CPU, than the task allows.
    """
    hours = flops / (EFFICIENCY * speed) / 3_600  # Of one GPU: more of them take as many GPU-hours.
    price = prices.gpu_hour if gpus else prices.cpu_hour
    amount = money(hours * (1 if gpus else cores) * price.price, prices.currency)
    unit = "GPU-hours" if gpus else "hours on a CPU"
    said = f"about {hours:.2g} {unit}, {amount} (prices of {price.as_of})"
    limit = spec.training.max_gpu_hours
    if limit is not None and hours > limit:
        raise StepImpossible(
            f"the training would take {said}; training.max_gpu_hours is {limit:g}",
            f"Lower training.epochs of {spec.name}, name a smaller base model, or raise training.max_gpu_hours.",
        )
    return said
