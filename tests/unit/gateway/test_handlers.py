from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from schemas.base import Variant
from schemas.conversation import Message, ToolCall
from schemas.predictions import Usage
from shared.identity import keyed_hash

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

ELSEWHERE = {
    "task": "support", "messages": [{"role": "user", "content": "lost my card"}], "answer": "card_lost",
    "latency_ms": 12.5, "user": "ann", "confidence": 0.9,
}  # fmt: skip

CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"order": 7}'}}
DEEP: Any = [[]]
for _ in range(300):
    DEEP = [DEEP]


def ago(**duration: float) -> str:
    return (datetime.now(UTC) - timedelta(**duration)).isoformat()


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


async def test_the_same_feedback_of_two_users_is_two_events(gateway: Gateway) -> None:
    prediction_id = gateway.ids.new("support")
    for user in ("ann", "bob"):
        await _give(gateway, prediction_id=prediction_id, kind="thumbs", positive=False, user=user)
    first, second = gateway.log.events
    assert first.event_id != second.event_id


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
    assert [event.answers[0].prediction_id for event in gateway.log.events] == ids
    first = gateway.log.events[0]
    (answer,) = first.answers
    assert (first.variant, first.model, answer.text) == (Variant.EXTERNAL, "external", "card_lost")
    assert (first.call.api, [message.role for message in first.call.messages]) == ("external", ["system", "user"])
    assert (answer.confidence.score, answer.confidence.logprob, first.latency_ms) == (0.9, None, 12.5)
    assert (await _give(gateway, prediction_id=ids[0], kind="thumbs", positive=True)).status_code == 200


async def test_a_single_prediction_need_not_be_in_a_list(gateway: Gateway) -> None:
    response = await gateway.http.post("/v1/predictions", json=ELSEWHERE)
    assert len(response.json()["prediction_ids"]) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"task": "nope"}, 404), ({"task": None}, 400), ({"messages": []}, 400), ({"answer": None}, 400),
        ({"latency_ms": None}, 400), ({"latency_ms": -1}, 400), ({"latency_ms": True}, 400),
        ({"confidence": 1.1}, 400), ({"logprob": 0.5}, 400), ({"user": []}, 400), ({"session": 1}, 400),
        ({"tools": {}}, 400), ({"tools": ["x"]}, 400), ({"parameters": []}, 400), ({"tool_calls": [1]}, 400),
        ({"answer": 1}, 400), ({"reasoning": {}}, 400), ({"prompt_tokens": -1}, 400), ({"metadata": {"a": DEEP}}, 400),
        ({"occurred_at": "yesterday"}, 400), ({"occurred_at": "2026-11-23T03:00:00"}, 400), ({"occurred_at": 1}, 400),
        ({"occurred_at": ago(days=93)}, 400), ({"occurred_at": ago(hours=-2)}, 400),
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


async def test_a_conversation_with_tools_made_elsewhere_is_logged_whole(gateway: Gateway) -> None:
    asked = [
        {"role": "user", "content": "where is it?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "lost"}, {"role": "user", "content": "find it"},
    ]  # fmt: skip
    sent: dict[str, Any] = {
        **ELSEWHERE, "task": "haiku", "messages": asked, "answer": None, "tool_calls": [CALL], "reasoning": "again",
        "tools": [{"type": "function", "function": {"name": "find"}}], "tool_choice": "auto", "session": "s-1",
        "parameters": {"temperature": 0.5, "seed": 7}, "response_format": {"type": "json_object"},
        "prompt_tokens": 9, "answer_tokens": 3, "finish_reason": "tool_calls", "occurred_at": ago(days=91),
        "metadata": {"channel": "mail", "user_id": "bob"},
    }  # fmt: skip
    assert (await gateway.http.post("/v1/predictions", json=sent)).status_code == 200
    (event,) = gateway.log.events
    found = ToolCall(name="find", arguments='{"order": 7}', id="call_1")
    assert event.call.messages[1:] == (
        Message(role="user", content="where is it?"), Message(role="assistant", tool_calls=(found,)),
        Message(role="tool", content="lost", tool_call_id="call_1"), Message(role="user", content="find it"),
    )  # fmt: skip
    assert (event.call.tools, event.call.tool_choice) == (tuple(sent["tools"]), "auto")
    assert (event.call.parameters, event.call.response_format) == (sent["parameters"], sent["response_format"])
    (answer,) = event.answers
    assert (answer.text, answer.tool_calls, answer.reasoning) == ("", (found,), "again")
    assert (answer.finish_reason, answer.tokens) == ("tool_calls", 3)
    assert (event.usage, event.occurred_at.isoformat()) == (
        Usage(prompt_tokens=9, answer_tokens=3),
        sent["occurred_at"],
    )
    assert (event.user_hash, event.metadata) == (keyed_hash(b"s" * 32, "ann"), {"channel": "mail"})
    assert event.session_hash == keyed_hash(b"s" * 32, "session/s-1")
    assert event.call.is_whole and answer.is_whole


@pytest.mark.parametrize("depth", [70, 210, 400])
async def test_json_nested_deeper_than_readers_take_is_left_out_of_a_prediction_made_elsewhere_and_marked(
    gateway: Gateway, depth: int
) -> None:
    deep: Any = "x"
    for _ in range(depth):
        deep = [deep]
    fields = {"tools": [{"x": deep}], "tool_choice": deep, "response_format": {"x": deep}}
    sent = {**ELSEWHERE, **fields, "parameters": {"seed": 7, "stop": deep}}
    assert (await gateway.http.post("/v1/predictions", json=sent)).status_code == 200
    (event,) = gateway.log.events
    assert (event.call.tools, event.call.tool_choice, event.call.response_format) == ((), None, None)
    assert (event.call.parameters, event.call.truncated) == ({"seed": 7}, True)


async def test_the_user_of_a_prediction_made_elsewhere_may_be_in_its_metadata(gateway: Gateway) -> None:
    sent = {**ELSEWHERE, "user": None, "metadata": {"user_id": "ann", "session_id": "s-1"}}
    await gateway.http.post("/v1/predictions", json=sent)
    (event,) = gateway.log.events
    assert event.user_hash == keyed_hash(b"s" * 32, "ann")
    assert (event.session_hash, event.metadata) == (keyed_hash(b"s" * 32, "session/s-1"), {})


async def test_nul_is_left_out_of_a_prediction_made_elsewhere_and_marks_what_had_it(gateway: Gateway) -> None:
    in_answer = {**ELSEWHERE, "answer": "card\x00_lost"}
    in_call = {**ELSEWHERE, "messages": [{"role": "user", "content": "lost\x00 my card"}]}
    await gateway.http.post("/v1/predictions", json=[in_answer, in_call])
    first, second = gateway.log.events
    assert (first.answers[0].text, first.call.truncated, first.answers[0].truncated) == ("card_lost", False, True)
    assert (second.call.messages[-1].text, second.call.truncated) == ("lost my card", True)
    assert not second.answers[0].truncated


async def test_an_invalid_message_is_named_by_its_number_in_the_request(gateway: Gateway) -> None:
    sent = {**ELSEWHERE, "messages": [{"role": "user", "content": "x"}, {"role": None, "content": "x"}]}
    error = (await gateway.http.post("/v1/predictions", json=sent)).json()["error"]
    assert error["param"] == "messages.1.role"
