from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from schemas.base import Variant

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

ELSEWHERE = {
    "task": "support", "messages": [{"role": "user", "content": "lost my card"}], "answer": "card_lost",
    "latency_ms": 12.5, "user": "ann", "confidence": 0.9,
}  # fmt: skip


async def _give(gateway: Gateway, **fields: Any) -> Any:
    return await gateway.http.post("/v1/feedback", json=fields)


async def test_the_same_feedback_twice_is_the_same_event(gateway: Gateway) -> None:
    prediction_id = gateway.ids.new("support")
    for _ in range(2):
        response = await _give(gateway, prediction_id=prediction_id, kind="thumbs", positive=False, user="ann")
        assert response.status_code == 200
    first, second = gateway.log.events
    assert first.event_id == second.event_id
    assert (first.kind, first.positive, first.text, first.task) == ("thumbs", False, None, "support")
    await _give(gateway, prediction_id=prediction_id, kind="thumbs", positive=True, user="ann")
    assert gateway.log.events[2].event_id != first.event_id


async def test_feedback_with_a_label_carries_it(gateway: Gateway) -> None:
    prediction_id = gateway.ids.new("support")
    assert (await _give(gateway, prediction_id=prediction_id, kind="label", text="refund")).status_code == 200
    assert gateway.log.events[0].text == "refund"


@pytest.mark.parametrize(
    ("task", "fields", "status"),
    [
        ("support", {"kind": "label", "text": "no such label"}, 422),
        ("support", {"kind": "edited", "text": "no such label"}, 422),
        ("haiku", {"kind": "label", "text": "x"}, 422),
        ("haiku", {"kind": "edited", "text": "  "}, 400),
        ("haiku", {"kind": "edited"}, 400),
        ("haiku", {"kind": "thumbs"}, 400),
        ("haiku", {"kind": "thumbs", "positive": 1}, 400),
        ("haiku", {"kind": "stars"}, 400),
        ("unknown-task", {"kind": "thumbs", "positive": True}, 404),
    ],
)
async def test_bad_feedback_is_refused(gateway: Gateway, task: str, fields: dict[str, Any], status: int) -> None:
    response = await _give(gateway, prediction_id=gateway.ids.new(task), **fields)
    assert response.status_code == status
    assert gateway.log.events == []


@pytest.mark.parametrize("invented", ["", "support", "support." + "0" * 32 + "." + "0" * 12, "é.é.é"])
async def test_feedback_on_a_prediction_that_does_not_exist_is_not_found(gateway: Gateway, invented: str) -> None:
    response = await _give(gateway, prediction_id=invented, kind="thumbs", positive=True)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "prediction_not_found"


async def test_feedback_is_refused_while_the_event_log_is_full(gateway: Gateway) -> None:
    gateway.log.full = True
    response = await _give(gateway, prediction_id=gateway.ids.new("haiku"), kind="accepted", positive=True)
    assert response.status_code == 503


async def test_predictions_made_elsewhere_are_logged_and_get_ids_in_order(gateway: Gateway) -> None:
    response = await gateway.http.post("/v1/predictions", json=[ELSEWHERE, {**ELSEWHERE, "answer": "refund"}])
    ids = response.json()["prediction_ids"]
    assert [event.prediction_id for event in gateway.log.events] == ids
    first = gateway.log.events[0]
    assert (first.variant, first.model, first.answer) == (Variant.EXTERNAL, "external", "card_lost")
    assert [message.role for message in first.messages] == ["system", "user"]
    assert (first.confidence.score, first.confidence.logprob, first.latency_ms) == (0.9, None, 12.5)
    assert (await _give(gateway, prediction_id=ids[0], kind="thumbs", positive=True)).status_code == 200


async def test_a_single_prediction_need_not_be_in_a_list(gateway: Gateway) -> None:
    response = await gateway.http.post("/v1/predictions", json=ELSEWHERE)
    assert len(response.json()["prediction_ids"]) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"task": "nope"}, 404), ({"task": None}, 400), ({"messages": []}, 400), ({"answer": None}, 400),
        ({"latency_ms": None}, 400), ({"latency_ms": -1}, 400), ({"latency_ms": True}, 400),
        ({"confidence": 1.1}, 400), ({"logprob": 0.5}, 400), ({"user": []}, 400),
    ],
)  # fmt: skip
async def test_an_invalid_prediction_refuses_its_list_and_is_named(
    gateway: Gateway, change: dict[str, Any], status: int
) -> None:
    response = await gateway.http.post("/v1/predictions", json=[ELSEWHERE, {**ELSEWHERE, **change}])
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith("prediction 1: ")
    assert gateway.log.events == []


@pytest.mark.parametrize("items", [[], [ELSEWHERE["messages"]], [1], [{}] * 101])
async def test_a_list_of_the_wrong_size_or_kind_is_refused(gateway: Gateway, items: list[Any]) -> None:
    assert (await gateway.http.post("/v1/predictions", json=items)).status_code == 400


async def test_a_prediction_with_an_own_id_is_idempotent(gateway: Gateway) -> None:
    named = {**ELSEWHERE, "prediction_id": "order-7/answer 3"}
    first, second = [(await gateway.http.post("/v1/predictions", json=named)).json() for _ in range(2)]
    assert first == second
    assert len({event.event_id for event in gateway.log.events}) == 1
    response = await _give(gateway, prediction_id="support/order-7/answer 3", kind="thumbs", positive=True)
    assert response.json()["prediction_id"] == first["prediction_ids"][0]
    too_long = await gateway.http.post("/v1/predictions", json={**ELSEWHERE, "prediction_id": "x" * 501})
    assert too_long.status_code == 400
