from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from schemas.base import MAX_EVENT_BYTES, Variant
from schemas.conversation import Part
from services.gateway.routing.arms import Primary, ServingFlags
from services.gateway.upstreams.upstream import UpstreamFailed
from tests.unit.gateway.conftest import chat_completion

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway


async def test_an_answer_is_logged_with_the_models_input_before_it_leaves(gateway: Gateway) -> None:
    response = await gateway.ask(user="ann@example.com")
    assert response.status_code == 200
    (event,) = gateway.log.predictions
    assert event.prediction_id == response.headers["x-ratchet-prediction-id"] == response.json()["id"]
    assert [(m.role, m.content) for m in event.messages] == [
        ("system", "Name the intent."), ("user", "I want my money back"),
    ]  # fmt: skip
    assert (event.answer, event.model, event.adapter, event.variant) == ("refund", "small", None, Variant.BASE)
    assert event.confidence.score == pytest.approx(math.exp(-0.3))
    assert (event.prompt_tokens, event.answer_tokens, event.finish_reason) == (20, 2, "stop")
    assert event.user_hash is not None
    assert "ann" not in event.user_hash
    assert gateway.ids.task_of(event.prediction_id) == "support"


async def test_a_classification_is_constrained_to_the_labels_whatever_the_client_sends(gateway: Gateway) -> None:
    await gateway.ask(temperature=1.5, max_tokens=1, stop=["r"], response_format={"type": "json_object"}, seed=7)
    (asked,) = gateway.upstream.asked
    assert asked["structured_outputs"] == {"choice": ["refund", "card_lost"]}
    assert (asked["temperature"], asked["max_tokens"], asked["logprobs"], asked["seed"]) == (0.0, 12, True, 7)
    assert not {"stop", "response_format", "user", "stream"} & asked.keys()


async def test_a_generation_keeps_the_clients_own_fields(gateway: Gateway) -> None:
    gateway.upstream.says("An old silent pond", [math.log(0.25), math.log(0.25)])
    response = await gateway.ask(model="haiku", temperature=0.7, max_tokens=30, stop=["\n\n"])
    (asked,) = gateway.upstream.asked
    assert (asked["temperature"], asked["max_tokens"], asked["stop"]) == (0.7, 30, ["\n\n"])
    assert "structured_outputs" not in asked
    assert float(response.headers["x-ratchet-confidence"]) == pytest.approx(0.25)
    await gateway.ask(model="haiku")
    assert gateway.upstream.asked[1]["max_tokens"] == 256


async def test_the_applications_own_system_prompt_replaces_the_tasks(gateway: Gateway) -> None:
    messages = [{"role": "developer", "content": "Mine."}, {"role": "user", "content": [
        {"type": "text", "text": "two"}, {"type": "text", "text": "parts"},
    ]}]  # fmt: skip
    assert (await gateway.ask(messages=messages)).status_code == 200
    assert gateway.upstream.asked[0]["messages"] == [{"role": "system", "content": "Mine."}, messages[1]]
    seen = [(message.role, message.content) for message in gateway.log.predictions[0].messages]
    assert seen == [("system", "Mine."), ("user", (Part(type="text", text="two"), Part(type="text", text="parts")))]


async def test_logprobs_reach_only_a_client_that_asked_for_them(gateway: Gateway) -> None:
    without = (await gateway.ask()).json()
    with_them = (await gateway.ask(logprobs=True, top_logprobs=3)).json()
    assert without["choices"][0]["logprobs"] is None
    assert len(with_them["choices"][0]["logprobs"]["content"]) == 2
    assert without["model"] == "support"


async def test_predictions_and_observation_of_a_request_are_one_append(gateway: Gateway) -> None:
    response = await gateway.ask()
    ((prediction, seen),) = gateway.log.appends
    (answer,) = prediction.answers
    assert answer.prediction_id == seen.prediction_id == response.headers["x-ratchet-prediction-id"]
    assert (seen.status, seen.confidence, seen.latency_ms) == (200, answer.confidence.score, prediction.latency_ms)


async def test_with_a_full_log_a_request_is_refused(gateway: Gateway) -> None:
    gateway.log.full = True
    response = await gateway.ask()
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.json()["error"] == {
        "message": "the spool is full. make room", "type": "server_error", "param": None, "code": "unavailable",
    }  # fmt: skip
    assert "x-ratchet-prediction-id" not in response.headers


async def test_with_spool_full_answer_an_unrecorded_answer_is_marked(answering_when_full: Gateway) -> None:
    assert "x-ratchet-logged" not in (await answering_when_full.ask()).headers
    answering_when_full.log.full = True
    for _ in range(3):
        response = await answering_when_full.ask()
        assert (response.status_code, response.headers["x-ratchet-logged"]) == (200, "false")
        assert response.json()["choices"][0]["message"]["content"] == "refund"
    assert len(answering_when_full.log.predictions) == 1
    assert "ratchet_gateway_answers_unlogged_total 3.0" in (await answering_when_full.http.get("/metrics")).text


async def test_with_spool_full_answer_feedback_and_predictions_are_still_refused(answering_when_full: Gateway) -> None:
    answering_when_full.log.full = True
    elsewhere = {
        "task": "support", "messages": [{"role": "user", "content": "x"}], "answer": "refund", "latency_ms": 1,
    }  # fmt: skip
    feedback = {"prediction_id": answering_when_full.ids.new("support"), "kind": "thumbs", "positive": True}
    assert (await answering_when_full.http.post("/v1/predictions", json=elsewhere)).status_code == 503
    assert (await answering_when_full.http.post("/v1/feedback", json=feedback)).status_code == 503


@pytest.mark.parametrize("arguments", [json.loads("[" * 300 + "]" * 300), 10**400], ids=["nested", "a large number"])
async def test_an_answer_that_cannot_be_passed_on_is_the_model_servers_failure_not_the_clients(
    gateway: Gateway, arguments: Any
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    gateway.upstream.answer = json.dumps(chat_completion("", [-0.1], tool_calls=[call])).encode()
    response = await gateway.ask(model="haiku")
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_garbled")
    assert [event.status for event in gateway.log.observed] == [502]


async def test_a_full_log_does_not_change_the_upstreams_error(gateway: Gateway) -> None:
    gateway.log.full = True
    gateway.upstream.failure = UpstreamFailed(429, "slow down", "status_429")
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["message"]) == (429, "slow down")
    assert "ratchet_gateway_observations_dropped_total 1.0" in (await gateway.http.get("/metrics")).text


async def test_the_canary_answers_under_its_own_name(gateway: Gateway) -> None:
    gateway.flags.flags = ServingFlags(Primary("now", "before"), canary="next")
    response = await gateway.ask(user="u")
    assert gateway.upstream.asked[0]["model"] == "next"
    assert response.headers["x-ratchet-variant"] == "canary"
    assert response.headers["x-ratchet-adapter"] == "next"
    assert "x-ratchet-instead-of" not in response.headers
    (seen,) = gateway.log.observed
    assert (seen.variant, seen.adapter, seen.status) == (Variant.CANARY, "next", 200)


async def test_an_adapter_that_is_not_served_is_an_error_of_its_arm_and_another_arm_answers(gateway: Gateway) -> None:
    gateway.flags.flags = ServingFlags(Primary("now", "before"), canary="next")
    gateway.upstream.not_served = {"next", "now"}
    response = await gateway.ask()
    assert response.status_code == 200
    assert response.headers["x-ratchet-variant"] == "rollback"
    assert response.headers["x-ratchet-adapter"] == "before"
    assert response.headers["x-ratchet-instead-of"] == "canary"
    assert [(e.variant, e.adapter, e.status) for e in gateway.log.observed] == [
        (Variant.CANARY, "next", 404), (Variant.PRIMARY, "now", 404), (Variant.ROLLBACK, "before", 200),
    ]  # fmt: skip
    assert gateway.upstream.models == ["next", "now", "before"], "each arm's replica is chosen by its model"
    (event,) = gateway.log.predictions
    assert (event.variant, event.adapter) == (Variant.ROLLBACK, "before")
    assert len({e.event_id for e in gateway.log.observed}) == 3


async def test_a_base_model_that_no_replica_serves_is_not_an_unknown_task(gateway: Gateway) -> None:
    gateway.upstream.not_served = {"small"}
    response = await gateway.ask()
    assert response.status_code == 502
    assert "'small'" in response.json()["error"]["message"]


@pytest.mark.parametrize("status", [400, 429, 500, 503, 504])
async def test_an_upstream_error_passes_with_its_status_and_is_observed(gateway: Gateway, status: int) -> None:
    gateway.upstream.failure = UpstreamFailed(status, "too long a prompt", f"status_{status}")
    response = await gateway.ask()
    assert response.status_code == status
    assert response.json()["error"]["message"] == "too long a prompt"
    assert [event.status for event in gateway.log.observed] == [status]
    assert gateway.log.predictions == []


@pytest.mark.parametrize(
    "answer",
    [
        None, {}, {"choices": []}, {"choices": [{"message": "text"}]}, "pong", b"pong", {"choices": [7, 8]},
        {"choices": [{"index": 0, "message": {}}, {"index": 1, "message": {}}]},
    ],
)  # fmt: skip
async def test_a_malformed_upstream_answer_is_a_502(gateway: Gateway, answer: object) -> None:
    gateway.upstream.answer = answer
    response = await gateway.ask()
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_garbled"


async def test_an_answer_that_no_client_can_get_is_a_502_and_no_prediction(gateway: Gateway) -> None:
    gateway.upstream.answer["choices"][0]["logprobs"]["content"] = ["ref", "und"]
    response = await gateway.ask(logprobs=True)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_garbled")
    assert gateway.log.events == []
    assert [event.status for event in gateway.log.observed] == [502]


async def test_tokens_whose_alternatives_are_null_have_none(gateway: Gateway) -> None:
    choice = gateway.upstream.answer["choices"][0]
    choice["logprobs"]["content"][0]["top_logprobs"] = None
    response = await gateway.ask(logprobs=True, top_logprobs=1)
    assert response.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    choice |= {"text": "refund", "logprobs": {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": None}}
    response = await gateway.http.post("/v1/completions", json={"model": "support", "prompt": "x", "logprobs": 1})
    assert response.json()["choices"][0]["logprobs"]["top_logprobs"] is None


async def test_an_answer_too_long_for_an_event_is_logged_truncated(gateway: Gateway) -> None:
    gateway.upstream.says("a" + "b" * (2 * MAX_EVENT_BYTES) + "c", [])
    response = await gateway.ask(model="haiku")
    assert len(response.json()["choices"][0]["message"]["content"]) == 2 * MAX_EVENT_BYTES + 2
    (logged,) = gateway.log.predictions
    assert logged.truncated
    assert (logged.answer[:3], logged.answer[-3:]) == ("abb", "bbc")
    assert "characters left out" in logged.answer
    assert "x-ratchet-confidence" not in response.headers


async def test_a_nul_is_left_out_of_the_event_and_marked(gateway: Gateway) -> None:
    gateway.upstream.says("a\x00b", [])
    await gateway.ask("c\x00d", model="haiku")
    assert gateway.upstream.asked[0]["messages"][1]["content"] == "c\x00d"
    (event,) = gateway.log.events
    assert (event.call.messages[1].content, event.call.truncated) == ("cd", True)
    assert (event.answers[0].text, event.answers[0].truncated) == ("ab", True)


async def test_requests_are_counted_by_route_and_status(gateway: Gateway) -> None:
    await gateway.ask()
    await gateway.ask(model="nope")
    await gateway.http.get("/made/up/path")
    text = (await gateway.http.get("/metrics")).text
    assert 'ratchet_gateway_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'ratchet_gateway_requests_total{route="/v1/chat/completions",status="404"} 1.0' in text
    assert 'ratchet_gateway_answers_total{task="support",variant="base"} 1.0' in text
    assert "made" not in text


async def test_unusual_numbers_and_names_from_an_upstream_are_accepted(gateway: Gateway) -> None:
    gateway.upstream.answer["usage"] = {"prompt_tokens": "many", "completion_tokens": [1]}
    gateway.upstream.answer["choices"][0]["finish_reason"] = 7
    gateway.upstream.answer["choices"][0]["message"] = {"content": None, "refusal": 5}
    assert (await gateway.ask()).status_code == 200
    (event,) = gateway.log.predictions
    assert (event.answer, event.finish_reason, event.prompt_tokens, event.answer_tokens) == ("", "other", 0, 2)
