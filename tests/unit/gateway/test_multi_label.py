"""A multi-label task's answers are asked as a list of its labels, and people's corrections of them are sets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from schemas.tasks import TaskChanged
from services.gateway.upstreams.external import without_vllm_fields
from tests.unit.gateway.conftest import Gateway, chat_completion, serving
from tests.unit.gateway.redacting import feedback, prediction, set_up
from tests.unit.shared.grading.tickets import LABELS, tickets, topics

TICKETS = tickets(base_model="small", max_labels_per_answer=3)
SCHEMA = {"type": "array", "items": {"type": "string", "enum": list(LABELS)}, "maxItems": 3}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
MESSAGES = [{"role": "user", "content": "It came late and broken"}]
ANSWER = topics("delivery", "damage")
RESPONSE = {
    "id": "r", "object": "response", "model": "small", "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": ANSWER, "annotations": []}]}],
}  # fmt: skip


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with serving(specs=(TICKETS,)) as gateway:
        yield gateway


async def ask(gateway: Gateway, path: str, **fields: Any) -> Any:
    response = await gateway.http.post(f"/v1/{path}", json={"model": "tickets", **fields})
    assert response.status_code == 200, response.text
    return gateway.upstream.asked[-1]


async def test_every_api_asks_for_a_list_of_the_labels_and_not_for_one_of_them(gateway: Gateway) -> None:
    gateway.upstream.answer = chat_completion(ANSWER, [-0.1])
    for path, fields in (("chat/completions", {}), ("messages", {"max_tokens": 50})):
        asked = await ask(gateway, path, messages=MESSAGES, **fields)
        assert asked["response_format"] == FORMAT
        assert "structured_outputs" not in asked
    asked = await ask(gateway, "chat/completions", messages=MESSAGES, response_format={"type": "text"})
    assert asked["response_format"] == FORMAT, "what is each API's default is no format of the client's own"
    gateway.upstream.answer = RESPONSE
    asked = await ask(gateway, "responses", input="It came late")
    assert asked["text"]["format"] == {"type": "json_schema", "name": "answer", "schema": SCHEMA}
    assert [event.constrained for event in gateway.log.predictions] == [False] * 4


async def test_the_confidence_of_each_label_is_in_the_event(gateway: Gateway) -> None:
    pieces = [('["', 0.0), ("delivery", -0.5), ('", "', 0.0), ("damage", -1.0), ('"]', 0.0)]
    answer = chat_completion(ANSWER, [])
    answer["choices"][0]["logprobs"]["content"] = [{"token": text, "logprob": value} for text, value in pieces]
    gateway.upstream.answer = answer
    await ask(gateway, "chat/completions", messages=MESSAGES)
    confidence = gateway.log.predictions[0].confidence
    assert confidence.score == pytest.approx(0.2231, abs=1e-4)
    assert confidence.fields == {"delivery": pytest.approx(0.6065, abs=1e-4), "damage": pytest.approx(0.3679, abs=1e-4)}


async def correct(gateway: Gateway, text: str, kind: str) -> Any:
    body = {"prediction_id": gateway.ids.new("tickets"), "kind": kind, "text": text}
    return await gateway.http.post("/v1/feedback", json=body)


@pytest.mark.parametrize("kind", ["label", "edited"])
async def test_one_label_of_a_user_is_a_set_of_one(gateway: Gateway, kind: str) -> None:
    assert (await correct(gateway, "refund", kind)).status_code == 200
    assert gateway.log.events[-1].text == topics("refund")


@pytest.mark.parametrize("kind", ["label", "edited"])
async def test_a_users_correction_is_a_set_and_is_logged_in_one_spelling(gateway: Gateway, kind: str) -> None:
    assert (await correct(gateway, '["refund","delivery","refund"]', kind)).status_code == 200
    assert gateway.log.events[-1].text == topics("delivery", "refund")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parcel", "expected a JSON list of labels"),
        (topics("parcel"), "'parcel' is not a label of the task"),
        (topics(*LABELS), "4 labels; an answer has at most 3"),
    ],
)
async def test_a_correction_that_is_no_set_of_labels_is_refused_with_the_reason(
    gateway: Gateway, text: str, said: str
) -> None:
    refused = await correct(gateway, text, "label")
    assert refused.status_code == 422
    assert said in refused.json()["error"]["message"]
    assert gateway.log.events == []


def test_an_external_api_which_has_no_schemas_of_lists_is_told_the_schema_in_the_prompt() -> None:
    body = {"model": "m", "messages": MESSAGES, "response_format": FORMAT}
    request = orjson.loads(without_vllm_fields(orjson.dumps(body)))
    instruction, *rest = request["messages"]
    assert instruction["role"] == "system"
    assert json.dumps(SCHEMA, separators=(",", ":")) in instruction["content"]
    assert rest == MESSAGES
    assert set(request) == {"model", "messages"}
    of_object = {**body, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}
    assert orjson.loads(without_vllm_fields(orjson.dumps(of_object))) == of_object


def test_an_external_api_is_told_the_schema_of_a_list_through_responses_and_completions_too() -> None:
    schema = json.dumps(SCHEMA, separators=(",", ":"))
    told = f"Answer with JSON that this JSON Schema describes and nothing else: {schema}"
    text = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}, "verbosity": "low"}
    request = orjson.loads(without_vllm_fields(orjson.dumps({"input": "Where?", "text": text})))
    assert request == {"input": "Where?", "instructions": told, "text": {"verbosity": "low"}}
    request = orjson.loads(without_vllm_fields(orjson.dumps({"prompt": "Where?", "response_format": FORMAT})))
    assert request == {"prompt": f"{told}\n\nWhere?"}
    of_object = {"input": "Where?", "text": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}
    assert orjson.loads(without_vllm_fields(orjson.dumps(of_object))) == of_object


async def test_labels_that_look_like_names_are_the_tasks_and_stay() -> None:
    setup = await set_up()
    spec = tickets(labels=["Maria", "refund"])
    await setup.tasks.put("tickets", TaskChanged(task="tickets", task_revision=spec.revision, spec=spec))
    answer = topics("Maria", "refund")
    event, given = await setup.redact(prediction(spec, "for Maria", answer), feedback(spec, answer))
    assert [event["answers"][0]["text"], given["text"]] == [answer, answer]
