"""An extraction's answers are asked by its schema, measured field by field, and stay JSON when they are redacted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.gateway.conftest import ORDERS, Gateway, chat_completion, serving
from tests.unit.gateway.redacting import feedback, prediction, set_up

FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ORDERS.output_schema}}
TEXT_FORMAT = {"type": "json_schema", "name": "answer", "schema": ORDERS.output_schema}
ANSWER = '{"customer": "Ann", "phone": 7}'


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with serving(specs=(ORDERS,)) as gateway:
        yield gateway


async def ask(gateway: Gateway, path: str, **fields: Any) -> Any:
    response = await gateway.http.post(f"/v1/{path}", json={"model": "orders", **fields})
    assert response.status_code == 200, response.text
    return gateway.upstream.asked[-1]


MESSAGES = [{"role": "user", "content": "Ann wants seven"}]
COMPLETION = {
    "id": "c", "created": 1, "model": "small", "object": "text_completion",
    "choices": [{"index": 0, "text": ANSWER, "finish_reason": "stop", "logprobs": None}],
}  # fmt: skip
RESPONSE = {
    "id": "r", "object": "response", "model": "small", "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": ANSWER, "annotations": []}]}],
}  # fmt: skip


async def test_every_api_asks_for_an_answer_by_the_schema_and_logs_that_it_did(gateway: Gateway) -> None:
    gateway.upstream.answer = chat_completion(ANSWER, [-0.1])
    assert (await ask(gateway, "chat/completions", messages=MESSAGES))["response_format"] == FORMAT
    await ask(gateway, "messages", messages=MESSAGES, max_tokens=50)
    assert gateway.upstream.asked[-1]["response_format"] == FORMAT
    gateway.upstream.answer = COMPLETION
    assert (await ask(gateway, "completions", prompt="Ann wants seven"))["response_format"] == FORMAT
    gateway.upstream.answer = RESPONSE
    asked = await ask(gateway, "responses", input="Ann wants seven", text={"verbosity": "low"})
    assert asked["text"] == {"verbosity": "low", "format": TEXT_FORMAT}
    logged = [event.response_format for event in gateway.log.predictions]
    assert logged == [FORMAT, FORMAT, FORMAT, {"verbosity": "low", "format": TEXT_FORMAT}]


@pytest.mark.parametrize(
    "own",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a+"}}],
    ids=["format", "vLLM's"],
)
async def test_a_format_that_the_client_asks_for_stays(gateway: Gateway, own: dict[str, Any]) -> None:
    gateway.upstream.answer = chat_completion(ANSWER, [-0.1])
    asked = await ask(gateway, "chat/completions", messages=MESSAGES, **own)
    assert {name: asked.get(name) for name in ("response_format", "structured_outputs")} == {
        "response_format": None, "structured_outputs": None, **own,
    }  # fmt: skip


async def test_the_apis_default_format_is_none_of_the_clients_own(gateway: Gateway) -> None:
    gateway.upstream.answer = chat_completion(ANSWER, [-0.1])
    asked = await ask(gateway, "chat/completions", messages=MESSAGES, response_format={"type": "text"})
    assert asked["response_format"] == FORMAT
    gateway.upstream.answer = RESPONSE
    asked = await ask(gateway, "responses", input="x", text={"format": {"type": "text"}, "verbosity": "low"})
    assert asked["text"] == {"format": TEXT_FORMAT, "verbosity": "low"}
    assert gateway.log.predictions[0].response_format == FORMAT


async def test_a_responses_request_keeps_its_own_format(gateway: Gateway) -> None:
    gateway.upstream.answer = RESPONSE
    own = {"format": {"type": "json_object"}}
    assert (await ask(gateway, "responses", input="x", text=own))["text"] == own
    asked = await ask(gateway, "responses", input="x", structured_outputs={"regex": "a+"})
    assert "text" not in asked


async def test_the_confidence_of_each_field_is_in_the_event(gateway: Gateway) -> None:
    pieces = [('{"customer": ', 0.0), ('"Ann"', -1.0), (', "phone": ', 0.0), ("7", -0.5), ("}", 0.0)]
    answer = chat_completion(ANSWER, [])
    answer["choices"][0]["logprobs"]["content"] = [{"token": text, "logprob": value} for text, value in pieces]
    gateway.upstream.answer = answer
    await ask(gateway, "chat/completions", messages=MESSAGES)
    confidence = gateway.log.predictions[0].confidence
    assert confidence.fields == {"customer": pytest.approx(0.3679, abs=1e-4), "phone": pytest.approx(0.6065, abs=1e-4)}
    assert confidence.score == confidence.fields["customer"]


async def _edit(gateway: Gateway, text: str, kind: str = "edited") -> Any:
    body = {"prediction_id": gateway.ids.new("orders"), "kind": kind, "text": text}
    return await gateway.http.post("/v1/feedback", json=body)


async def test_a_users_correction_must_be_json_by_the_schema_and_the_error_says_where_it_is_not(
    gateway: Gateway,
) -> None:
    assert (await _edit(gateway, ANSWER)).status_code == 200
    refused = await _edit(gateway, '{"phone": "seven"}')
    assert refused.status_code == 422
    assert 'phone: "seven" is not of type "integer"' in refused.json()["error"]["message"]
    assert "no JSON" in (await _edit(gateway, "seven")).json()["error"]["message"]
    assert (await _edit(gateway, ANSWER, kind="label")).status_code == 422
    assert len(gateway.log.events) == 1


async def test_a_redacted_answer_is_still_json_by_the_schema() -> None:
    setup = await set_up()
    answer = '{\n "customer": "Maria \\"the\\" Silva", "status": "Maria paid", "phone": 7}'
    event, given = await setup.redact(prediction(ORDERS, "for Maria", answer), feedback(ORDERS, answer))
    for text in (event["answers"][0]["text"], given["text"]):
        assert json.loads(text) == {"customer": 'Paula "the" Silva', "status": "Maria paid", "phone": 7}
        assert text.startswith("{\n ")


async def test_of_a_confidence_s_names_only_the_task_s_fields_are_not_redacted() -> None:
    setup = await set_up()
    logged = prediction(ORDERS, "x", ANSWER)
    answer = logged.answers[0].model_copy(
        update={
            "confidence": logged.answers[0].confidence.model_copy(
                update={"fields": {"customer": 0.5, "for Maria": 0.25}}
            )
        }
    )
    (event,) = await setup.redact(logged.model_copy(update={"answers": (answer,)}))
    assert event["answers"][0]["confidence"]["fields"] == {"customer": 0.5, "for Paula": 0.25}
