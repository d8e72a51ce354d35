"""What a month of answers costs: those of the task's own models, and those of external ones by their own prices."""

from __future__ import annotations

from datetime import date

import pytest

from deploy.cli.advice.cost import cost_of_month
from deploy.cli.advice.log import ModelUse
from shared.model.prices import Price, PriceList, Serving

TODAY = date(2026, 11, 26)
PRICES = PriceList(
    currency="USD",
    gpu_hour=Price(price=2.5, as_of=TODAY),
    cpu_hour=Price(price=0.05, as_of=TODAY),
    models={
        "default": Serving(gpus=1),
        "big": Serving(million_prompt_tokens=5.0, million_answer_tokens=15.0, as_of=TODAY),
    },
)
OWN = ModelUse(None, 50, 0.8, 100.0, 10.0)


def big(answers: int = 50, seconds: float | None = None, tokens: float | None = 1_500.0) -> ModelUse:
    return ModelUse("big", answers, seconds, tokens, None if tokens is None else 300.0)


def month(*uses: ModelUse, measured: float | None = None) -> tuple[float | None, tuple[str, ...]]:
    """The cost of 100,000 answers of a task whose base model is not in the list."""
    return cost_of_month(uses, 100_000.0, "base", PRICES, measured)


@pytest.mark.parametrize("seconds", [None, 0.8])
def test_an_external_model_costs_its_tokens_whatever_its_latency(seconds: float | None) -> None:
    assert month(big(seconds=seconds)) == (pytest.approx(1_200.0), ())


def test_own_models_cost_a_replica_s_time_or_what_the_last_evaluation_measured() -> None:
    assert month(OWN) == (pytest.approx(55.56, abs=0.01), ())
    assert month(OWN, measured=0.001) == (pytest.approx(100.0), ())


def test_each_share_of_the_answers_has_the_price_of_its_own_model() -> None:
    assert month(OWN, big(), measured=0.001) == (pytest.approx(50.0 + 600.0), ())


def test_an_external_model_that_is_not_in_the_list_is_named_and_the_others_cost_is_not_the_whole() -> None:
    found = month(OWN, big(49), ModelUse("other", 1, 0.8, 100.0, 10.0), measured=0.001)
    assert found == (None, ("The price list has no `other`: add it to the file that RATCHET_PRICES_FILE names.",))


def test_a_cost_is_unknown_without_the_tokens_or_the_time_that_it_is_reckoned_by() -> None:
    assert month(big(tokens=None)) == (None, ("`big` is priced by tokens, and the log has no counts of them.",))
    no_time = ModelUse(None, 50, None, 100.0, 10.0)
    assert month(no_time) == (None, ("`base` is priced by the time of its answers, and the log has none.",))
    assert month(no_time, measured=0.001) == (pytest.approx(100.0), ())
    assert month() == (None, ())
