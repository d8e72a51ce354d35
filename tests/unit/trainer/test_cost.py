"""What a training will take and cost is said before it starts, and refused over the task's cap."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from schemas.task_settings import Method, TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.trainer.domain import TrainingRow
from services.trainer.plan import ModelShape, Plan
from services.trainer.recipe.resources import EFFICIENCY, check_cost, training_flops
from shared.errors import StepImpossible
from shared.model.prices import Price, PriceList, Serving

SHAPE = ModelShape(
    model_type="llama", layers=10, hidden=100, intermediate=200, heads=10, kv_heads=10, head_width=10, vocabulary=1_000,
    is_tied=True, is_quantised=False,
)  # fmt: skip
PLAN = Plan(learning_rate=1e-3, epochs=3, batch_size=2, accumulation=2, dropout=0.0, reason="")
ROWS = [TrainingRow(tokens=tuple(range(50)), start=45)] * 8
PRICES = PriceList(
    currency="USD",
    gpu_hour=Price(price=2.5, as_of=date(2026, 11, 26)),
    cpu_hour=Price(price=0.05, as_of=date(2026, 11, 1)),
    models={"default": Serving(gpus=1)},
)


def spec(cap: float | None = None) -> TaskSpec:
    return TaskSpec(
        name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("a", "b"),
        training=TrainingSettings(max_gpu_hours=cap),
    )  # fmt: skip


def flops(method: Method = Method.LORA, prefix: int = 0, recomputes: bool = False, epochs: float = 3) -> float:
    return training_flops(SHAPE, method, replace(PLAN, epochs=epochs), ROWS, prefix, recomputes)


def test_operations_are_four_a_parameter_and_token_and_six_where_all_weights_are_trained() -> None:
    blocks = 10 * (4 * 100 * 100 + 3 * 100 * 200)  # Parameters of the linear layers, which see every token.
    products = blocks * 8 * 50 + 1_000 * 100 * 8 * 5  # The head sees the tokens of answers alone.
    assert flops() == flops(Method.QLORA) == 3 * 4 * products
    assert flops(Method.FULL) == 3 * 6 * products
    assert flops(recomputes=True) == 3 * 6 * products, "the forward pass is done twice"
    assert flops(epochs=1) == 4 * products


def test_a_prompt_that_all_rows_share_is_counted_once_a_step() -> None:
    blocks, head = 10 * (4 * 100 * 100 + 3 * 100 * 200), 1_000 * 100 * 8 * 5
    assert flops(prefix=40) == 3 * 4 * (blocks * (8 * 10 + 2 * 40) + head), "two steps of four rows"


def test_hours_and_price_are_said_with_the_date_of_the_price() -> None:
    an_hour = 3_600 * EFFICIENCY * 1e12
    assert (
        check_cost(0.4 * an_hour, 1e12, 1, 16, PRICES, spec()) == "about 0.4 GPU-hours, 1.00 USD (prices of 2026-11-26)"
    )
    said = check_cost(2 * an_hour, 1e12, 0, 4, PRICES, spec())
    assert said == "about 2 hours on a CPU, 0.4 USD (prices of 2026-11-01)", "four cores for two hours"


def test_several_gpus_take_as_many_gpu_hours_as_one() -> None:
    an_hour = 3_600 * EFFICIENCY * 1e12
    assert check_cost(an_hour, 1e12, 8, 16, PRICES, spec()) == check_cost(an_hour, 1e12, 1, 16, PRICES, spec())


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_training_over_the_cap_is_refused_with_what_to_lower(gpus: int) -> None:
    two_hours = 2 * 3_600 * EFFICIENCY * 1e12
    assert check_cost(two_hours, 1e12, gpus, 1, PRICES, spec(cap=2.0))
    with pytest.raises(StepImpossible) as refused:
        check_cost(two_hours, 1e12, gpus, 1, PRICES, spec(cap=1.9))
    assert refused.value.reason.startswith("the training would take about 2 ")
    assert "training.max_gpu_hours is 1.9" in refused.value.reason
    assert "training.epochs of desk" in refused.value.way_out
