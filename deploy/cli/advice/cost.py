"""What a month of a task's answers costs, each by the model that gave it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.cli.advice.log import ModelUse
from shared.model.prices import PriceList


def cost_of_month(
    uses: Sequence[ModelUse], per_month: float, base_model: str, prices: PriceList, measured: float | None
) -> tuple[float | None, tuple[str, ...]]:
    """What `per_month` answers cost if they are given as in the log, and a sentence for each model without a price.

    One unknown price makes the whole unknown: None. `measured`: what an answer of the task's own models costs by the
    last evaluation. None: a replica is taken to answer one request at a time, which is the most that it costs.
    """
    costs = [
        measured if use.model is None and measured is not None else _answer(use, base_model, prices) for use in uses
    ]
    unpriced = tuple(cost for cost in costs if isinstance(cost, str))
    if unpriced or not uses:
        return None, unpriced
    answers = sum(use.answers for use in uses)
    total = sum(use.answers * float(cost) for use, cost in zip(uses, costs, strict=True))
    return total / answers * per_month, ()


def _answer(use: ModelUse, base_model: str, prices: PriceList) -> float | str:
    """What an answer costs, or a sentence why that is unknown. No default stands for an external model."""
    if use.model is not None and use.model not in prices.models:
        return f"The price list has no `{use.model}`: add it to the file that RATCHET_PRICES_FILE names."
    model = use.model or base_model
    if prices.serving(model).by_tokens:
        if use.prompt_tokens is None or use.answer_tokens is None:
            return f"`{model}` is priced by tokens, and the log has no counts of them."
    elif use.seconds is None:
        return f"`{model}` is priced by the time of its answers, and the log has none."
    return prices.model_answer(model, use.seconds or 0.0, use.prompt_tokens or 0.0, use.answer_tokens or 0.0).amount
