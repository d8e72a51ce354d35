"""Which spans become which predictions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from schemas.base import Message, Variant
from schemas.tasks import TaskChanged
from services.gateway.auth.grants import Grant
from services.gateway.observability.metrics import Metrics
from services.gateway.tasks.served import ServedTask
from services.gateway.telemetry.genai import is_content, is_generation, user_of
from services.gateway.telemetry.predictions import events_of
from services.gateway.telemetry.spans import Span, SpanEvent
from shared.http import HttpError
from shared.identity import keyed_hash
from tests.unit.gateway.otlp_senders import (
    ASKED,
    CHAT,
    RECORDED,
    SPAN,
    SPECS,
    START,
    TRACE,
    WHOLE,
    Receiver,
    receiver,
    recorded,
    span,
    traces,
)

FAILED = Status(code=Status.STATUS_CODE_ERROR, message="no")
WITH_MESSAGES = sorted(name for name in RECORDED if "without" not in name)


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Receiver]:
    async with receiver(tmp_path / "waiting") as it:
        yield it


def _said(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role.value, message.content) for message in messages]


async def test_a_chat_span_is_a_prediction_and_an_observation(one: Receiver) -> None:
    told = await one.accepted(traces(span({**WHOLE, "enduser.id": "ann"})))
    assert (told.rejected_spans, told.error_message) == (0, "")
    (prediction,) = one.log.predictions
    assert _said(prediction.messages) == [("user", "where is my parcel?")]
    assert (prediction.answer, prediction.model, prediction.adapter) == ("delivery", "gpt-4o-2024", None)
    assert (prediction.prompt_tokens, prediction.answer_tokens, prediction.finish_reason) == (5, 2, "stop")
    assert (prediction.variant, prediction.latency_ms) == (Variant.EXTERNAL, 250.0)
    assert prediction.user_hash == keyed_hash(b"s" * 32, "ann")
    assert prediction.occurred_at == datetime.fromtimestamp(START / 1e9, UTC) + timedelta(milliseconds=250)
    (observed,) = one.log.observed
    assert (observed.prediction_id, observed.status) == (prediction.prediction_id, 200)
    assert {record.headers for record in one.log.records} == {(("traceparent", f"00-{TRACE}-{SPAN}-01".encode()),)}
    assert one.counted("logged") == 1


async def test_the_same_span_again_is_the_same_fact(one: Receiver) -> None:
    for _ in range(2):
        await one.accepted(traces(span(WHOLE)))
    await one.accepted(traces(span(WHOLE, span_id=b"another!")))
    first, second, other = one.log.predictions
    assert (first.event_id, first.prediction_id) == (second.event_id, second.prediction_id)
    assert first.prediction_id != other.prediction_id
    assert len({event.event_id for event in one.log.observed}) == 2


async def test_the_id_of_a_span_is_ours_and_can_be_named_by_the_application(one: Receiver) -> None:
    await one.accepted(traces(span(WHOLE)))
    (prediction,) = one.log.predictions
    assert one.ids.task_of(prediction.prediction_id) == "support"
    assert one.ids.resolve(f"support/{TRACE}-{SPAN}") == prediction.prediction_id
    assert one.ids.resolve(f"haiku/{TRACE}-{SPAN}") != prediction.prediction_id


@pytest.mark.parametrize("name", WITH_MESSAGES)
async def test_what_real_instrumentations_send_has_question_answer_and_tokens(one: Receiver, name: str) -> None:
    for path, body in recorded(name):
        response = await one.http.post(path, content=body, headers={"content-type": "application/x-protobuf"})
        assert response.status_code == 200
    plain, streamed = one.log.predictions
    assert plain.answer == streamed.answer == "delivery"
    assert _said(plain.messages) == [("system", "be short"), ("user", "where is my parcel?")]
    assert _said(streamed.messages) == [("user", "where is my parcel?")]
    assert {(p.prompt_tokens, p.answer_tokens, p.model) for p in one.log.predictions} == {(5, 2, "gpt-4o-2024")}
    assert plain.finish_reason == "stop"
    assert 0 < plain.latency_ms < 10_000


TOOLS = [
    {"role": "system", "parts": [{"type": "text", "content": "help"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "find", "arguments": {"id": 7}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": {"state": "lost"}}]},
]
CALL = '[{"name":"find","arguments":"{\\"id\\":7}"}]'
OLD = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, Any]]], list[tuple[str, str]]]] = {
    "instructions beside the messages": (
        {**WHOLE, "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "be kind"}])}, [],
        [("system", "be kind"), ("user", "where is my parcel?")],
    ),
    "structured values in place of JSON": (
        {**WHOLE, "gen_ai.input.messages": ASKED}, [], [("user", "where is my parcel?")],
    ),
    "calls of tools and pictures": (
        {**WHOLE, "gen_ai.input.messages": [*TOOLS, {"role": "user", "parts": [
            {"type": "blob", "modality": "image", "content": "aGk="}, {"type": "text", "content": "and?"}]}]}, [],
        [("system", "help"), ("assistant", CALL), ("user", '{"tool_call_id":"1","content":"{\\"state\\":\\"lost\\"}"}'),
         ("user", "[blob]\nand?")],
    ),
    "details as an event of the span": (
        CHAT, [("gen_ai.client.inference.operation.details",
                {name: WHOLE[name] for name in ("gen_ai.input.messages", "gen_ai.output.messages")})],
        [("user", "where is my parcel?")],
    ),
    "one event a message": (
        OLD, [("gen_ai.system.message", {"content": "be short"}), ("gen_ai.user.message", {"content": "hm?"}),
              ("gen_ai.choice", {"index": 1, "message": '{"content": "no"}'}),
              ("gen_ai.choice", {"index": 0, "message": '{"role": "assistant", "content": "delivery"}'})],
        [("system", "be short"), ("user", "hm?")],
    ),
    "prompt and completion as events": (
        OLD, [("gen_ai.content.prompt", {"gen_ai.prompt": '[{"role": "human", "content": "hm?"}]'}),
              ("gen_ai.content.completion", {"gen_ai.completion": '[{"role": "ai", "content": "delivery"}]'})],
        [("user", "hm?")],
    ),
    "numbered attributes": (
        {**OLD, "gen_ai.prompt.1.content": "hm?", "gen_ai.prompt.1.role": "user", "gen_ai.prompt.0.role": "system",
         "gen_ai.prompt.0.content": "be short", "gen_ai.completion.0.content": "delivery"}, [],
        [("system", "be short"), ("user", "hm?")],
    ),
    "numbered attributes with parts": (
        {"openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user",
         "llm.input_messages.0.message.contents.0.message_content.text": "hm",
         "llm.input_messages.0.message.contents.1.message_content.text": "?",
         "llm.output_messages.0.message.content": "delivery"}, [],
        [("user", "hm\n?")],
    ),
    "text that only looks like JSON": (
        OLD, [("gen_ai.content.prompt", {"gen_ai.prompt": '{"order": 7}'}),
              ("gen_ai.content.completion", {"gen_ai.completion": "delivery"})],
        [("user", '{"order": 7}')],
    ),
    "thoughts are not said": (
        {**WHOLE, "gen_ai.output.messages": [{"role": "assistant", "parts": [
            {"type": "reasoning", "content": "well"}, {"type": "text", "content": "delivery"}]}]}, [],
        [("user", "where is my parcel?")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_messages_are_found_in_every_convention(one: Receiver, case: str) -> None:
    values, events, said = CASES[case]
    await one.accepted(traces(span(values, events)))
    (prediction,) = one.log.predictions
    assert (_said(prediction.messages), prediction.answer) == (said, "delivery")


NUMBERED = {**OLD, "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "hm?"}
CALLING: list[tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]] = [
    ({**WHOLE, "gen_ai.output.messages": TOOLS[1:2]}, []),
    ({**NUMBERED, "gen_ai.completion.0.tool_calls.0.name": "find",
      "gen_ai.completion.0.tool_calls.0.arguments": '{"id":7}'}, []),
    (OLD, [("gen_ai.user.message", {"content": "hm?"}), ("gen_ai.choice", {"message": {"tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"id":7}'}}]}})]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "events"), CALLING)
async def test_an_answer_that_calls_tools_is_their_calls(
    one: Receiver, values: dict[str, Any], events: list[tuple[str, dict[str, Any]]]
) -> None:
    await one.accepted(traces(span(values, events)))
    assert one.log.predictions[0].answer == CALL


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({}, 500), ({"error.type": "openai.RateLimitError"}, 429), ({"error.type": "BadRequestError"}, 400),
        ({"error.type": "503"}, 503), ({"http.response.status_code": 404}, 404), ({"error.type": "9" * 9}, 500),
    ],
)  # fmt: skip
async def test_a_failed_call_is_observed_and_is_no_prediction(
    one: Receiver, values: dict[str, Any], status: int
) -> None:
    await one.accepted(traces(span({**WHOLE, **values}, status=FAILED)))
    assert one.log.predictions == []
    (observed,) = one.log.observed
    assert (observed.status, observed.variant, observed.task) == (status, Variant.EXTERNAL, "support")


@pytest.mark.parametrize(
    ("service", "resource", "values", "task"),
    [
        ("support", {}, {}, "support"),
        ("shop", {"ratchet__task": "haiku"}, {}, "haiku"),
        ("shop", {"ratchet__task": "haiku"}, {"ratchet.task": "support"}, "support"),
        ("legacy-app", {}, {}, "haiku"),
        ("shop", {}, {"gen_ai.response.model": "own-model"}, "haiku"),
    ],
)
async def test_a_spans_task_is_its_own_its_resources_the_settings_or_the_services_name(
    one: Receiver, service: str, resource: dict[str, str], values: dict[str, Any], task: str
) -> None:
    await one.accepted(traces(span({**WHOLE, **values}), service=service, **resource))
    assert [prediction.task for prediction in one.log.predictions] == [task]


async def test_spans_without_a_task_are_rejected_with_the_way_out_and_the_rest_is_taken(one: Receiver) -> None:
    lost = span(WHOLE, span_id=b"another!")
    request = traces(span({**WHOLE, "ratchet.task": "support"}), lost, service="shop")
    told = await one.accepted(request)
    assert told.rejected_spans == 1
    assert "'shop'" in told.error_message and "Known tasks: haiku, support" in told.error_message
    assert "OTEL_RESOURCE_ATTRIBUTES=ratchet.task=<task>" in told.error_message
    assert len(one.log.predictions) == 1
    assert one.counted("rejected") == 1


async def test_a_key_of_other_tasks_logs_nothing(one: Receiver) -> None:
    one.keys.allowed = Grant("shop", frozenset({"haiku"}))
    told = await one.accepted(traces(span(WHOLE)))
    assert told.rejected_spans == 1
    assert "not for the task 'support'" in told.error_message
    assert one.log.records == []


@pytest.mark.parametrize(
    "values",
    [
        {"http.request.method": "GET"},
        {**WHOLE, "gen_ai.operation.name": "embeddings"},
        {**WHOLE, "gen_ai.operation.name": "invoke_agent"},
        {**WHOLE, "gen_ai.operation.name": "execute_tool"},
    ],
)
async def test_other_spans_are_none_of_our_business(one: Receiver, values: dict[str, Any]) -> None:
    told = await one.accepted(traces(span(values), service="nowhere"))
    assert (told.rejected_spans, told.error_message, one.log.records) == (0, "", [])


async def test_an_answer_that_came_through_the_gateway_is_not_logged_again(one: Receiver) -> None:
    await one.accepted(traces(span({**WHOLE, "gen_ai.response.id": one.ids.new("support")})))
    assert one.log.records == []
    assert one.counted("known") == 1


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"gen_ai.input.messages": '[{"role": "user", "parts": [{"typ'}, "cut short"),
        ({"gen_ai.input.messages": [{"role": "wizard", "content": "x"}]}, "'wizard'"),
        ({"gen_ai.input.messages": [{"role": "user", "content": "x" * 32_001}]}, "32001 characters"),
        ({"gen_ai.input.messages": [{"role": "user", "content": "x"}] * 65}, "at most 64"),
        ({"gen_ai.input.messages": [{"role": "user", "content": "a\x00b"}]}, "NUL"),
        ({"gen_ai.input.messages": [{"role": "user", "content": 7}]}, "must be text"),
        ({"gen_ai.output.messages": [{"role": "assistant", "content": [7]}]}, "without a `type`"),
    ],
)
async def test_messages_that_no_event_can_carry_reject_their_span(
    one: Receiver, values: dict[str, Any], why: str
) -> None:
    told = await one.accepted(traces(span({**WHOLE, **values}), span(WHOLE, span_id=b"another!")))
    assert told.rejected_spans == 1
    assert why in told.error_message
    assert len(one.log.predictions) == 1


async def test_odd_fields_do_not_stop_a_span(one: Receiver) -> None:
    odd = {
        "gen_ai.usage.input_tokens": "many", "gen_ai.usage.output_tokens": -1, "gen_ai.response.finish_reasons": "",
        "gen_ai.response.model": 7, "gen_ai.request.model": "", "enduser.id": "", "gen_ai.response.id": 3,
        "gen_ai.output.messages": [{"role": "assistant", "content": "x\x00" * 20_000}],
    }  # fmt: skip
    future = int(datetime.now(UTC).timestamp() * 1e9) + 10**15
    await one.accepted(traces(span({**WHOLE, **odd}, start_time_unix_nano=0, end_time_unix_nano=future)))
    (prediction,) = one.log.predictions
    assert (prediction.prompt_tokens, prediction.answer_tokens, prediction.finish_reason) == (0, 0, None)
    assert (prediction.model, prediction.user_hash, prediction.answer) == ("external", None, "x" * 20_000)
    assert (prediction.latency_ms, prediction.occurred_at <= datetime.now(UTC)) == (0.0, True)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["chat", "user", "text", "tool_call", '[{"role": "user", "content": "x"}]', '[{"role"', "²"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "parts", "type", "tool_calls", "function", "name", "message", "index"]),
        inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
NAMES = st.sampled_from([
    *CHAT, "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions", "gen_ai.prompt.0.content",
    "gen_ai.prompt.²", "gen_ai.completion.0.content", "gen_ai.completion.0.tool_calls.0.name", "error.type",
    "openinference.span.kind", "http.response.status_code", "enduser.id", "gen_ai.prompt", "gen_ai.completion",
    "content", "message", "index", "llm.input_messages.0.message.contents.0.message_content.text",
])  # fmt: skip
EVENT_NAMES = st.sampled_from([
    "gen_ai.user.message", "gen_ai.choice", "gen_ai.content.prompt", "gen_ai.content.completion",
    "gen_ai.client.inference.operation.details",
])  # fmt: skip
VALUES = st.dictionaries(NAMES, ANYTHING, max_size=6)


@settings(max_examples=400, deadline=None)
@given(VALUES, st.lists(st.tuples(EVENT_NAMES, VALUES), max_size=4), st.booleans())
def test_whatever_is_in_a_span_it_is_events_or_says_why_not(
    values: dict[str, Any], events: list[tuple[str, dict[str, Any]]], failed: bool
) -> None:
    said = tuple(SpanEvent(name, data) for name, data in events)
    assert {is_content(one) for one in said} <= {True, False}
    one = Span(TRACE, SPAN, START, START + 1, failed, values, {}, said)
    assert is_generation(values) in (True, False)
    task = ServedTask(TaskChanged(task="haiku", task_revision="r", spec=SPECS[1]), Metrics())
    with contextlib.suppress(ValueError, HttpError):
        for event in events_of(one, task, "p", user_of(values)) or ():
            assert type(event).model_validate_json(event.model_dump_json()) == event
