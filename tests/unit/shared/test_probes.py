"""A replica is proved by its answers to an adapter's probes: those of the adapter, and of the base as its own."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from schemas.adapters import Probe, Probes
from schemas.conversation import Message, Role
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.inference import InferenceClient
from shared.model.probes import TOLERANCE, disproof, distance, first_tokens, tolerance

PROMPT = (Message(role=Role.USER, content="refund"),)
ADAPTER = {"refund": -0.1, "login": -3.0, "delivery": -4.0}
BASE = {"The": -0.5, "I": -1.5, "refund": -2.5}


def probes_of(adapter: dict[str, float], rounding: float = 0.0, times: int = 1) -> Probes:
    probe = Probe(messages=PROMPT, adapter=adapter, base=BASE)
    return Probes(adapter="a1", base_model="base", probes=(probe,) * times, rounding=rounding)


PROBES = probes_of(ADAPTER, times=5)


def shifted(tokens: dict[str, float], nats: float) -> dict[str, float]:
    return {token: logprob + nats for token, logprob in tokens.items()}


def test_the_same_answers_are_no_distance_apart_and_unlisted_tokens_count_as_the_least_likely() -> None:
    assert distance(ADAPTER, dict(reversed(ADAPTER.items()))) == 0.0
    assert distance({"a": -1.0, "b": -2.0}, {"a": -1.0, "c": -4.0}) == pytest.approx((0 + 2 + 2) / 3)


def test_answers_within_the_tolerance_prove_an_adapter() -> None:
    near = TOLERANCE * 0.9
    assert disproof(PROBES, [shifted(ADAPTER, near)] * 5, [shifted(BASE, -near)] * 5) == ""


@pytest.mark.parametrize(
    ("adapter", "base", "reason"),
    [
        (BASE, BASE, "serves the base model under the adapter's name"),
        ({"other": -0.1, "thing": -9.0}, BASE, "serves neither the evaluated adapter nor the base model"),
        (shifted(ADAPTER, TOLERANCE * 1.1), BASE, "serves neither"),
        (ADAPTER, ADAPTER, "its base model is not the one that was evaluated"),
    ],
)
def test_one_wrong_answer_of_five_disproves_it(adapter: dict[str, float], base: dict[str, float], reason: str) -> None:
    assert reason in disproof(PROBES, [adapter] * 5, [base] * 5)
    if "neither" in reason or "base model is not" in reason:
        assert reason in disproof(PROBES, [ADAPTER] * 4 + [adapter], [BASE] * 4 + [base])


def test_a_base_in_the_place_of_a_weak_adapter_is_seen() -> None:
    weak = probes_of(shifted(BASE, 0.2))
    assert tolerance(weak) == pytest.approx(0.1)
    assert "serves the base model" in disproof(weak, [BASE], [BASE])
    assert disproof(weak, [shifted(BASE, 0.25)], [BASE]) == ""


def test_an_adapter_that_is_no_further_from_its_base_than_batches_round_is_said_to_be_too_like_it() -> None:
    weak = probes_of(shifted(BASE, 0.06), rounding=0.05)
    rounded = shifted(BASE, 0.11)
    assert "cannot be told apart" in disproof(weak, [rounded], [BASE])
    assert "base model is not the one" in disproof(weak, [rounded], [ADAPTER])
    assert "serves neither" in disproof(weak, [ADAPTER], [BASE])


def test_an_engine_that_rounds_much_is_allowed_what_it_was_seen_to_round() -> None:
    much = TOLERANCE * 0.8
    assert "serves neither" in disproof(PROBES, [shifted(ADAPTER, 1.5 * much)] * 5, [BASE] * 5)
    rounding = probes_of(ADAPTER, rounding=much, times=5)
    assert disproof(rounding, [shifted(ADAPTER, 1.5 * much)] * 5, [shifted(BASE, -1.5 * much)] * 5) == ""
    assert "serves neither" in disproof(rounding, [shifted(ADAPTER, 2.5 * much)] * 5, [BASE] * 5)
    assert "serves the base model" in disproof(rounding, [BASE] * 5, [BASE] * 5)


def client(answer: httpx.Response | Exception) -> InferenceClient:
    async def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    inference = InferenceClient(["http://engine"])
    inference._client = httpx.AsyncClient(transport=httpx.MockTransport(handle))
    return inference


def completion(**choice: Any) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": "re"}, "finish_reason": "length", **choice}]})


async def test_the_first_tokens_are_read_with_the_likeliest_of_two_of_the_same_text() -> None:
    listed = [
        {"token": "re", "logprob": -0.1},
        {"token": "\ufffd", "logprob": -3.0},
        {"token": "\ufffd", "logprob": -9},
    ]
    answer = completion(logprobs={"content": [{"token": "re", "logprob": -0.1, "top_logprobs": listed}]})
    assert await first_tokens(client(answer), "http://engine", "a1", [PROMPT]) == [{"re": -0.1, "\ufffd": -3.0}]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (completion(), InvalidMessage),
        (completion(logprobs={"content": [{"token": "re", "logprob": -0.1}]}), InvalidMessage),
        (httpx.Response(404, json={"error": {"message": "no such model"}}), InvalidMessage),
        (httpx.Response(500), DependencyUnavailable),
        (httpx.ConnectError("refused"), DependencyUnavailable),
    ],
)
async def test_an_engine_without_log_probabilities_or_the_model_proves_nothing(
    answer: httpx.Response | Exception, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await first_tokens(client(answer), "http://engine", "a1", [PROMPT])
