"""What a month of a task's answers costs, each by the model that gave it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.cli.advice.log import ModelUse
from shared.model.prices import PriceList


@dataclass(frozen=True)
class MonthCost:
    """`amount`: of all answers; None: unknown. `unpriced`: a sentence why, for each model that could not be priced.

    Where some could not: `priced` is what the others cost, None: there are no others; `unpriced_answers` how many have
    no price.
    """

    amount: float | None
    unpriced: tuple[str, ...] = ()
    priced: float | None = None
    unpriced_answers: float = 0.0


def cost_of_month(
    uses: Sequence[ModelUse], per_month: float, base_model: str, prices: PriceList, measured: float | None
) -> MonthCost:
    """Return what `per_month` answers cost if they are given as in the log. One unknown price makes all of it unknown,
    and leaves what the others cost.

    `measured`: what an answer of the task's own models costs by the last evaluation. None: a replica is taken to answer
    one request at a time, which is the most that it costs.
    """
    if not uses:
        return MonthCost(None)
    answers, total, unpriced, without = sum(use.answers for use in uses), 0.0, list[str](), 0
    for use in uses:
        own = measured if use.model is None else None
        cost = own if own is not None else _answer(use, base_model, prices)
        if isinstance(cost, str):
            unpriced.append(cost)
            without += use.answers
        else:
            total += cost * use.answers / answers * per_month
    if not unpriced:
        return MonthCost(total)
    priced = total if without < answers else None
    return MonthCost(None, tuple(unpriced), priced, without / answers * per_month)


def _answer(use: ModelUse, base_model: str, prices: PriceList) -> float | str:
    """Return what an answer costs, or a sentence why that is unknown. No default stands for an external model."""
    if use.model is not None and use.model not in prices.models:
        return f"The price list has no `{use.model}`: add it to the file that RATCHET_PRICES_FILE names."
    model = use.model or base_model
    if prices.serving(model).by_tokens:
        if use.prompt_tokens is None or use.answer_tokens is None:
            return f"`{model}` is priced by tokens, and the log has no counts of them."
    elif use.seconds is None:
        return f"`{model}` is priced by the time of its answers, and the log has none."
    return prices.model_answer(model, use.seconds or 0.0, use.prompt_tokens or 0.0, use.answer_tokens or 0.0).amount
