from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.model.prices import SHIPPED, read_prices

OWN = """
currency: EUR
gpu_hour: {price: 3.6, as_of: 2026-10-02}
cpu_hour: {price: 0.036, as_of: 2026-09-01}
models:
  default: {gpus: 2, cpus: 10}
  bought: {million_prompt_tokens: 0.5, million_answer_tokens: 2.0, as_of: 2026-08-01}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text)
    return path


def test_the_shipped_prices_are_dated_and_serve_every_model() -> None:
    prices = read_prices(None)
    cost = prices.model_answer("any model", seconds=3_600.0, prompt_tokens=1.0, answer_tokens=1.0)
    assert (cost.amount, cost.as_of) == (prices.gpu_hour.price, prices.gpu_hour.as_of)
    assert prices.model_answer("SmolLM2-135M-Instruct", 3_600.0, 0, 0).amount == 2 * prices.cpu_hour.price


def test_a_replica_costs_its_gpus_and_cores_and_the_oldest_price_dates_it(tmp_path: Path) -> None:
    cost = read_prices(written(tmp_path, OWN)).model_answer("own", 1.0, 1_000.0, 1_000.0)
    assert cost.amount == pytest.approx(2 * 0.001 + 10 * 0.00001)
    assert cost.as_of == date(2026, 9, 1)


def test_a_bought_model_costs_its_tokens_and_no_time(tmp_path: Path) -> None:
    cost = read_prices(written(tmp_path, OWN)).model_answer("bought", 3_600.0, 1_000_000.0, 100_000.0)
    assert (cost.amount, cost.as_of) == (pytest.approx(0.7), date(2026, 8, 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("currency: [", "cannot be read"),
        (OWN.replace("3.6", "-1"), "gpu_hour.price"),
        (OWN.replace("default", "fallback"), "needs a `default`"),
        (OWN.replace(", as_of: 2026-08-01", ""), "models.bought"),
        (OWN.replace("gpus: 2, cpus: 10", "gpus: 0"), "say how it is served"),
        (OWN.replace("gpus: 2", "gpu: 2"), "models.default.gpu"),
        (OWN.replace("as_of: 2026-10-02", "as_of: today"), "gpu_hour.as_of"),
        ("", "not valid"),
    ],
)
def test_a_wrong_price_list_is_named_with_a_complete_example(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as error:
        read_prices(path)
    assert said in error.value.reason and str(path) in error.value.reason
    assert "RATCHET_PRICES_FILE" in error.value.way_out and str(SHIPPED) in error.value.way_out


def test_a_price_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml cannot be read"):
        read_prices(tmp_path / "nowhere.yaml")
