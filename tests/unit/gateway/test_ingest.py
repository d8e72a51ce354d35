"""Spans and the predictions they become."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from schemas.base import MAX_EVENT_BYTES, Variant
from schemas.catalog import topic_named
from schemas.conversation import Message, Part, ToolCall
from schemas.predictions import PredictionLogged, Usage
from schemas.tasks import TaskChanged
from services.gateway.auth.grants import Grant
from services.gateway.domain import Identifiers, PredictionIds
from services.gateway.observability.metrics import Metrics
from services.gateway.recording.external import ExternalPredictions
from services.gateway.tasks.served import ServedTask
from services.gateway.telemetry.genai import is_generation
from services.gateway.telemetry.predictions import records_of_span
from services.gateway.telemetry.spans import Span
from shared.http import HttpError
from shared.identity import keyed_hash
from shared.spool import Record
from tests.unit.gateway.otlp_senders import (
    ASKED,
    CHAT,
    CHAT_WITH_MESSAGES,
    NOW,
    RECORDED,
    SPAN,
    SPECS,
    START,
    TRACE,
    Receiver,
    receiver,
    recorded,
    span,
    traces,
)

FAILED = Status(code=Status.STATUS_CODE_ERROR, message="no")
WITH_MESSAGES = sorted(name for name in RECORDED if "without" not in name)


@pytest.fixture
async def gateway() -> AsyncIterator[Receiver]:
    async with receiver() as receiving:
        yield receiving


def _texts(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


async def test_a_chat_span_is_a_prediction_and_an_observation(gateway: Receiver) -> None:
    result = await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, "enduser.id": "ann"})))
    assert (result.rejected_spans, result.error_message) == (0, "")
    (prediction,) = gateway.log.predictions
    assert _texts(prediction.call.messages) == [("user", "where is my parcel?")]
    (answer,) = prediction.answers
    assert (answer.text, prediction.model, prediction.adapter) == ("delivery", "gpt-4o-2024", None)
    assert (prediction.usage, answer.tokens, answer.finish_reason) == (
        Usage(prompt_tokens=5, answer_tokens=2),
        2,
        "stop",
    )
    assert (prediction.variant, prediction.latency_ms) == (Variant.EXTERNAL, 250.0)
    assert prediction.user_hash == keyed_hash(b"s" * 32, "ann")
    assert prediction.occurred_at == datetime.fromtimestamp(START / 1e9, UTC) + timedelta(milliseconds=250)
    (observed,) = gateway.log.observed
    assert (observed.prediction_id, observed.status) == (answer.prediction_id, 200)
    assert {record.headers for record in gateway.log.records} == {(("traceparent", f"00-{TRACE}-{SPAN}-01".encode()),)}
    assert gateway.counted("logged") == 1


async def test_a_repeated_span_has_the_same_event_ids(gateway: Receiver) -> None:
    for _ in range(2):
        await gateway.accepted(traces(span(CHAT_WITH_MESSAGES)))
    await gateway.accepted(traces(span(CHAT_WITH_MESSAGES, span_id=b"another!")))
    first, second, other = gateway.log.predictions
    assert (first.event_id, first.request_id, first.answers) == (second.event_id, second.request_id, second.answers)
    assert (first.event_id, first.request_id) != (other.event_id, other.request_id)
    assert len({event.event_id for event in gateway.log.observed}) == 2


async def test_a_spans_prediction_id_is_signed_and_the_application_can_refer_to_it(gateway: Receiver) -> None:
    await gateway.accepted(traces(span(CHAT_WITH_MESSAGES)))
    prediction_id = gateway.log.predictions[0].answers[0].prediction_id
    assert gateway.ids.task_of(prediction_id) == "support"
    assert gateway.ids.resolve(f"support/{TRACE}-{SPAN}") == prediction_id
    assert gateway.ids.resolve(f"haiku/{TRACE}-{SPAN}") != prediction_id


@pytest.mark.parametrize("name", WITH_MESSAGES)
async def test_what_real_instrumentations_send_has_question_answer_and_tokens(gateway: Receiver, name: str) -> None:
    for path, body in recorded(name):
        response = await gateway.http.post(path, content=body, headers={"content-type": "application/x-protobuf"})
        assert response.status_code == 200
    plain, streamed = gateway.log.predictions
    assert gateway.log.answers == ["delivery", "delivery"]
    assert _texts(plain.call.messages) == [("system", "be short"), ("user", "where is my parcel?")]
    assert _texts(streamed.call.messages) == [("user", "where is my parcel?")]
    counted = {(p.usage.prompt_tokens, p.usage.answer_tokens, p.model) for p in gateway.log.predictions}
    assert counted == {(5, 2, "gpt-4o-2024")}
    assert plain.answers[0].finish_reason == "stop"
    assert 0 < plain.latency_ms < 10_000


async def test_spans_without_messages_are_rejected_with_the_setting_that_puts_them_there(gateway: Receiver) -> None:
    for path, body in recorded("openai-v2 2.4b0, without messages"):
        response = await gateway.http.post(path, content=body, headers={"content-type": "application/x-protobuf"})
        assert b"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only" in response.content
    assert (gateway.log.records, gateway.counted("rejected"), gateway.counted("logged")) == ([], 2, 0)


TOOLS = [
    {"role": "system", "parts": [{"type": "text", "content": "help"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "find", "arguments": {"id": 7}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": {"state": "lost"}}]},
]
CALL = '[{"name":"find","arguments":"{\\"id\\":7}"}]'
OLD = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "instructions beside the messages": (
        {**CHAT_WITH_MESSAGES, "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "be kind"}])},
        [("system", "be kind"), ("user", "where is my parcel?")],
    ),
    "structured values in place of JSON": (
        {**CHAT_WITH_MESSAGES, "gen_ai.input.messages": ASKED}, [("user", "where is my parcel?")],
    ),
    "calls of tools and pictures": (
        {**CHAT_WITH_MESSAGES, "gen_ai.input.messages": [*TOOLS, {"role": "user", "parts": [
            {"type": "blob", "modality": "image", "content": "aGk="}, {"type": "text", "content": "and?"}]}]},
        [("system", "help"), ("assistant", CALL), ("tool", '{"state":"lost"}'),
         ("user", "[image]\nand?")],
    ),
    "numbered attributes": (
        {**OLD, "gen_ai.prompt.1.content": "hm?", "gen_ai.prompt.1.role": "user", "gen_ai.prompt.0.role": "system",
         "gen_ai.prompt.0.content": "be short", "gen_ai.completion.0.content": "delivery"},
        [("system", "be short"), ("user", "hm?")],
    ),
    "numbered attributes with parts": (
        {"openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user",
         "llm.input_messages.0.message.contents.0.message_content.text": "hm",
         "llm.input_messages.0.message.contents.1.message_content.text": "?",
         "llm.output_messages.0.message.content": "delivery"},
        [("user", "hm\n?")],
    ),
    "text that only looks like JSON": (
        {**OLD, "gen_ai.prompt.0.content": '{"order": 7}', "gen_ai.completion.0.content": "delivery"},
        [("user", '{"order": 7}')],
    ),
    "thoughts are not expected": (
        {**CHAT_WITH_MESSAGES, "gen_ai.output.messages": [{"role": "assistant", "parts": [
            {"type": "reasoning", "content": "well"}, {"type": "text", "content": "delivery"}]}]},
        [("user", "where is my parcel?")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_messages_are_found_in_every_convention(gateway: Receiver, case: str) -> None:
    values, expected = CASES[case]
    await gateway.accepted(traces(span(values)))
    (prediction,) = gateway.log.predictions
    assert (_texts(prediction.call.messages), prediction.answers[0].plain) == (expected, "delivery")


NUMBERED = {**OLD, "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "hm?"}
CALLING: list[dict[str, Any]] = [
    {**CHAT_WITH_MESSAGES, "gen_ai.output.messages": TOOLS[1:2]},
    {**NUMBERED, "gen_ai.completion.0.tool_calls.0.name": "find",
     "gen_ai.completion.0.tool_calls.0.arguments": '{"id":7}'},
]  # fmt: skip


@pytest.mark.parametrize("values", CALLING)
async def test_an_answer_that_calls_tools_is_logged_as_its_calls(gateway: Receiver, values: dict[str, Any]) -> None:
    await gateway.accepted(traces(span(values)))
    assert gateway.log.answers == [CALL]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({}, 500), ({"error.type": "openai.RateLimitError"}, 429), ({"error.type": "BadRequestError"}, 400),
        ({"error.type": "503"}, 503), ({"http.response.status_code": 404}, 404), ({"error.type": "9" * 9}, 500),
    ],
)  # fmt: skip
async def test_a_failed_call_is_observed_and_not_a_prediction(
    gateway: Receiver, values: dict[str, Any], status: int
) -> None:
    await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, **values}, status=FAILED)))
    assert gateway.log.predictions == []
    (observed,) = gateway.log.observed
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
async def test_a_spans_task_comes_from_itself_its_resource_the_settings_or_the_service_name(
    gateway: Receiver, service: str, resource: dict[str, str], values: dict[str, Any], task: str
) -> None:
    await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, **values}), service=service, **resource))
    assert [prediction.task for prediction in gateway.log.predictions] == [task]


async def test_spans_without_a_task_are_rejected_with_the_way_out_and_the_rest_is_logged(gateway: Receiver) -> None:
    lost = span(CHAT_WITH_MESSAGES, span_id=b"another!")
    request = traces(span({**CHAT_WITH_MESSAGES, "ratchet.task": "support"}), lost, service="shop")
    result = await gateway.accepted(request)
    assert result.rejected_spans == 1
    assert "'shop'" in result.error_message and "Known tasks: haiku, support" in result.error_message
    assert "OTEL_RESOURCE_ATTRIBUTES=ratchet.task=<task>" in result.error_message
    assert len(gateway.log.predictions) == 1
    assert gateway.counted("rejected") == 1


async def test_a_key_of_other_tasks_logs_nothing(gateway: Receiver) -> None:
    gateway.keys.allowed = Grant("shop", frozenset({"haiku"}))
    result = await gateway.accepted(traces(span(CHAT_WITH_MESSAGES)))
    assert result.rejected_spans == 1
    assert "not for the task 'support'" in result.error_message
    assert gateway.log.records == []


@pytest.mark.parametrize(
    "values",
    [
        {"http.request.method": "GET"},
        {**CHAT_WITH_MESSAGES, "gen_ai.operation.name": "embeddings"},
        {**CHAT_WITH_MESSAGES, "gen_ai.operation.name": "invoke_agent"},
        {**CHAT_WITH_MESSAGES, "gen_ai.operation.name": "execute_tool"},
    ],
)
async def test_other_spans_are_ignored(gateway: Receiver, values: dict[str, Any]) -> None:
    result = await gateway.accepted(traces(span(values), service="nowhere"))
    assert (result.rejected_spans, result.error_message, gateway.log.records) == (0, "", [])


async def test_an_answer_of_the_gateway_itself_is_not_logged_again(gateway: Receiver) -> None:
    await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, "gen_ai.response.id": gateway.ids.new("support")})))
    assert gateway.log.records == []
    assert gateway.counted("known") == 1


@pytest.mark.parametrize("model", ["support", "openai/support"])
async def test_a_call_that_failed_through_the_gateway_is_not_observed_again(gateway: Receiver, model: str) -> None:
    failed = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "error.type": "InternalServerError"}
    await gateway.accepted(traces(span(failed, status=FAILED)))
    assert gateway.log.records == []
    assert gateway.counted("known") == 1


async def test_an_answer_of_the_gateway_is_not_logged_again_where_its_span_has_no_id(gateway: Receiver) -> None:
    values = {
        "openinference.span.kind": "LLM", "llm.model_name": "support",
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "Where is my parcel?",
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "delivery",
    }  # fmt: skip
    await gateway.accepted(traces(span(values)))
    langchain = {**CHAT_WITH_MESSAGES, "gen_ai.response.id": "run--0c1f", "gen_ai.response.model": "support"}
    await gateway.accepted(traces(span(langchain)))
    assert gateway.log.records == []
    await gateway.accepted(traces(span({**values, "llm.model_name": "gpt-4o"})))
    assert len(gateway.log.predictions) == 1


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"gen_ai.input.messages": '[{"role": "user", "parts": [{"typ'}, "cut short"),
        ({"gen_ai.input.messages": [{"role": 7, "content": "x"}]}, "it must be a role"),
        ({"gen_ai.input.messages": [{"role": "user", "content": 7}]}, "must be text"),
        ({"gen_ai.input.messages": [{"role": "user", "content": [7]}]}, "neither a text nor an object"),
    ],
)
async def test_a_span_with_messages_that_an_event_cannot_carry_is_rejected(
    gateway: Receiver, values: dict[str, Any], why: str
) -> None:
    result = await gateway.accepted(
        traces(span({**CHAT_WITH_MESSAGES, **values}), span(CHAT_WITH_MESSAGES, span_id=b"another!"))
    )
    assert result.rejected_spans == 1
    assert why in result.error_message
    assert len(gateway.log.predictions) == 1


async def test_invalid_optional_fields_are_ignored(gateway: Receiver) -> None:
    odd = {
        "gen_ai.usage.input_tokens": "many", "gen_ai.usage.output_tokens": -1, "gen_ai.response.finish_reasons": "",
        "gen_ai.response.model": 7, "gen_ai.request.model": "", "enduser.id": "", "gen_ai.response.id": 3,
        "gen_ai.output.messages": [{"role": "assistant", "content": "x\x00" * 20_000}],
    }  # fmt: skip
    await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, **odd}, start_time_unix_nano=0, end_time_unix_nano=0)))
    (prediction,) = gateway.log.predictions
    (answer,) = prediction.answers
    assert (prediction.usage, answer.tokens, answer.finish_reason) == (Usage(), 0, None)
    assert (prediction.model, prediction.user_hash, answer.text) == ("external", None, "x" * 20_000)
    assert (answer.truncated, prediction.call.truncated) == (True, False)
    assert (prediction.latency_ms, prediction.occurred_at) == (0.0, NOW)


@pytest.mark.parametrize(("days", "is_logged"), [(-93, False), (-91, True), (0.04, True), (0.05, False)])
@pytest.mark.parametrize("failed", [False, True])
async def test_a_span_out_of_time_is_rejected_and_one_that_is_nearly_so_is_logged(
    gateway: Receiver, days: float, is_logged: bool, failed: bool
) -> None:
    ended = int((NOW + timedelta(days=days)).timestamp()) * 10**9
    status = FAILED if failed else None
    result = await gateway.accepted(traces(span(CHAT_WITH_MESSAGES, end_time_unix_nano=ended, status=status)))
    assert result.rejected_spans == (0 if is_logged else 1)
    assert ("in the last 92 days" in result.error_message) is not is_logged
    assert bool(gateway.log.records) is is_logged


@pytest.mark.parametrize("status", [None, FAILED])
async def test_a_span_dated_by_a_clock_that_is_ahead_is_of_now_in_each_of_its_events(
    gateway: Receiver, status: Status | None
) -> None:
    """Else an erasure would leave the observation of what was asked up to an hour before it."""
    ended = int((NOW + timedelta(minutes=50)).timestamp()) * 10**9
    await gateway.accepted(traces(span(CHAT_WITH_MESSAGES, end_time_unix_nano=ended, status=status)))
    events = [*gateway.log.predictions, *gateway.log.observed]
    assert [event.occurred_at for event in events] == [NOW] * (2 if status is None else 1)


async def test_an_agents_conversation_keeps_its_structure(gateway: Receiver) -> None:
    """Two calls at once with their results in one message, thoughts, tools, parameters, and two answers."""
    calls = [{"type": "tool_call", "id": f"call_{n}", "name": "find", "arguments": {"id": n}} for n in (1, 2)]
    results = [{"type": "tool_call_response", "id": f"call_{n}", "response": f"lost {n}"} for n in (1, 2)]
    thought = {"type": "reasoning", "content": "Find both."}
    tools = [{"type": "function", "name": "find", "description": "Finds.", "parameters": {"type": "object"}}]
    values = {
        **CHAT,
        "gen_ai.input.messages": json.dumps([
            *ASKED, {"role": "assistant", "parts": [thought, *calls]}, {"role": "tool", "parts": results},
        ]),
        "gen_ai.output.messages": json.dumps([
            {"role": "assistant", "parts": [thought, {"type": "text", "content": "lost"}], "finish_reason": "stop"},
            {"role": "assistant", "parts": calls[:1], "finish_reason": "tool_call"},
        ]),
        "gen_ai.tool.definitions": json.dumps(tools), "gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ["END"], "gen_ai.request.choice.count": 2, "gen_ai.conversation.id": "c-1",
        "gen_ai.usage.cache_read.input_tokens": 3, "enduser.id": "ann",
    }  # fmt: skip
    gateway.keys.allowed = Grant("shop", None)
    await gateway.accepted(traces(span(values)))
    (prediction,) = gateway.log.predictions
    found = [ToolCall(name="find", arguments=f'{{"id":{n}}}', id=f"call_{n}") for n in (1, 2)]
    assert prediction.call.messages[1:] == (
        Message(role="assistant", reasoning="Find both.", tool_calls=found),
        Message(role="tool", content="lost 1", tool_call_id="call_1"),
        Message(role="tool", content="lost 2", tool_call_id="call_2"),
    )
    function = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
    assert prediction.call.tools == ({"type": "function", "function": function},)
    assert prediction.call.parameters == {"temperature": 0.5, "seed": 7, "stop": ["END"], "n": 2}
    first, second = prediction.answers
    assert (first.text, first.reasoning, first.finish_reason) == ("lost", "Find both.", "stop")
    assert (second.tool_calls, second.finish_reason) == ((found[0],), "tool_calls")
    assert gateway.ids.resolve(f"support/{TRACE}-{SPAN}-1") == second.prediction_id
    assert (prediction.usage.cached_tokens, prediction.app) == (3, "shop")
    assert prediction.session_hash == keyed_hash(b"s" * 32, "session/c-1")
    assert prediction.call.is_whole


async def test_numbered_attributes_keep_tool_calls_results_tools_and_pictures(gateway: Receiver) -> None:
    prefix = "llm.input_messages."
    values = {
        "openinference.span.kind": "LLM", "llm.output_messages.0.message.content": "delivery",
        f"{prefix}0.message.role": "user",
        f"{prefix}0.message.contents.0.message_content.type": "text",
        f"{prefix}0.message.contents.0.message_content.text": "where?",
        f"{prefix}0.message.contents.1.message_content.type": "image",
        f"{prefix}0.message.contents.1.message_content.image.image.url": "https://example.com/a.png",
        f"{prefix}1.message.role": "assistant",
        f"{prefix}1.message.tool_calls.0.tool_call.id": "call_1",
        f"{prefix}1.message.tool_calls.0.tool_call.function.name": "find",
        f"{prefix}1.message.tool_calls.0.tool_call.function.arguments": '{"id":7}',
        f"{prefix}2.message.role": "tool", f"{prefix}2.message.content": "lost",
        f"{prefix}2.message.tool_call_id": "call_1",
        "llm.tools.0.tool.json_schema": '{"type": "function", "function": {"name": "find"}}',
        "llm.invocation_parameters": '{"temperature": 0.1, "tool_choice": "auto", "user": "ann", "model": "m"}',
    }  # fmt: skip
    await gateway.accepted(traces(span(values)))
    (prediction,) = gateway.log.predictions
    asked, called, result = prediction.call.messages
    assert isinstance(asked.content, tuple) and asked.content[0] == Part(type="text", text="where?")
    assert asked.content[1].media is not None and asked.content[1].media.kind == "image"
    assert called.tool_calls == (ToolCall(name="find", arguments='{"id":7}', id="call_1"),)
    assert (result.role, result.content, result.tool_call_id) == ("tool", "lost", "call_1")
    assert prediction.call.tools == ({"type": "function", "function": {"name": "find"}},)
    assert (prediction.call.parameters, prediction.call.tool_choice) == ({"temperature": 0.1}, "auto")


async def test_parameters_of_a_span_nested_deeper_than_readers_take_are_left_out_and_marked(gateway: Receiver) -> None:
    deep = "[" * 210 + "]" * 210
    given = f'{{"seed": 7, "logit_bias": {deep}, "tools": [{{"x": {deep}}}], "tool_choice": {deep}}}'
    await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, "llm.invocation_parameters": given})))
    (prediction,) = gateway.log.predictions
    call = prediction.call
    assert (call.tools, call.tool_choice, call.parameters["seed"], call.truncated) == ((), None, 7, True)
    assert "logit_bias" not in call.parameters


@pytest.mark.parametrize(
    "part",
    [
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "aGk="},
        {"type": "uri", "modality": "audio", "uri": "https://example.com/a.mp3"},
        {"type": "file", "modality": "image", "file_id": "file-1"}, {"type": "blob", "content": "aGk="},
    ],
)  # fmt: skip
async def test_media_of_a_span_are_logged_by_reference(gateway: Receiver, part: dict[str, Any]) -> None:
    values = {**CHAT_WITH_MESSAGES, "gen_ai.input.messages": [{"role": "user", "parts": [part]}]}
    await gateway.accepted(traces(span(values)))
    (prediction,) = gateway.log.predictions
    content = prediction.call.messages[0].content
    assert isinstance(content, tuple) and content[0].media is not None and len(content[0].media.hash) == 24
    assert "aGk=" not in prediction.model_dump_json()
    assert not prediction.call.is_whole


async def test_a_long_conversation_of_a_span_is_logged_cut_and_marked(gateway: Receiver) -> None:
    messages = [{"role": "user", "content": "x" * 400}] * 70
    await gateway.accepted(traces(span({**CHAT_WITH_MESSAGES, "gen_ai.input.messages": messages})))
    assert len(gateway.log.predictions[0].call.messages) == 70
    tested = Span(TRACE, SPAN, START, START + 1, False, {
        **CHAT_WITH_MESSAGES, "gen_ai.input.messages": [{"role": "user", "content": "x" * 3_000_000}]}, {})  # fmt: skip
    records = records_of_span(tested, served("support"), external())
    assert records is not None
    record = records[0]
    prediction = PredictionLogged.model_validate_json(record.value)
    assert prediction.call.truncated and len(record.value) < MAX_EVENT_BYTES


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
VALUES = st.dictionaries(NAMES, ANYTHING, max_size=6)


@settings(max_examples=120)
@given(VALUES, st.booleans())
def test_any_span_is_converted_or_rejected_with_a_reason(values: dict[str, Any], failed: bool) -> None:
    tested = Span(TRACE, SPAN, START, START + 1, failed, values, {})
    assert is_generation(values) in (True, False)
    records: Sequence[Record] = ()
    with contextlib.suppress(ValueError, HttpError):
        records = records_of_span(tested, served("haiku"), external()) or ()
    for record in records:
        topic_named(record.topic).event.model_validate_json(record.value)


def served(name: str) -> ServedTask:
    (spec,) = (spec for spec in SPECS if spec.name == name)
    return ServedTask(TaskChanged(task=name, task_revision="r", spec=spec), Metrics())


def external() -> ExternalPredictions:
    return ExternalPredictions(Identifiers(PredictionIds(b"k" * 32), b"s" * 32), now=lambda: NOW)
