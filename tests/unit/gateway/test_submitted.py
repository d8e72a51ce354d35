"""Predictions that applications write to Kafka themselves are logged as those sent by HTTP are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from schemas.catalog import HEADER_SENT_AT
from schemas.conversation import Media, Message, Part, ToolCall
from schemas.predictions import PredictionLogged, PredictionSubmitted
from schemas.tasks import TaskChanged
from services.gateway.domain import Identifiers, PredictionIds
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.external import ExternalPredictions
from services.gateway.shipper.submitted import SubmittedPredictions
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.identity import keyed_hash
from shared.kafka.delivery import Delivery, TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import Redactor
from shared.spool import Record
from tests.unit.gateway.conftest import HAIKU, Gateway
from tests.unit.gateway.redacting import set_up


class Kafka:
    """Redacts nothing and accepts everything."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    async def redact(self, records: Sequence[Record]) -> Sequence[Record]:
        return records

    async def publish_once(self, records: Sequence[Record]) -> list[Record]:
        self.records += records
        return []

    @property
    def logged(self) -> list[PredictionLogged]:
        return [PredictionLogged.model_validate_json(record.value) for record in self.records]


def submitted(table: LatestByKey[TaskChanged], kafka: Any) -> tuple[LatestByKey[TaskChanged], SubmittedPredictions]:
    """The consumer with the keys of the gateway of `conftest.py`."""
    tasks, external = table, ExternalPredictions(Identifiers(PredictionIds(b"k" * 32), b"s" * 32))
    return tasks, SubmittedPredictions(tasks, kafka, kafka, external, ShipperStatus())


def delivery(task: str = HAIKU.name, **fields: Any) -> Delivery[PredictionSubmitted]:
    defaults = {
        "task_revision": "current", "prediction_id": "p", "answer": "a", "messages": [{"role": "user", "content": "q"}]
    }  # fmt: skip
    event = PredictionSubmitted.model_validate({"task": task, **defaults, **fields})
    return Delivery(event, "predictions.submitted.v1", 0, 0, {})


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
async def handler(kafka: Kafka) -> SubmittedPredictions:
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    await table.put(HAIKU.name, TaskChanged(task=HAIKU.name, task_revision=HAIKU.revision, spec=HAIKU))
    tasks, handler = submitted(table, kafka)
    await tasks.read_to({})
    return handler


async def test_a_prediction_gets_the_newest_revision_also_while_the_tasks_are_being_read(kafka: Kafka) -> None:
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    tasks, handler = submitted(table, kafka)
    reading = asyncio.create_task(tasks.read_to({TopicPartition("tasks.changed.v1", 0): 2}))
    handling = asyncio.create_task(handler.on_submitted([delivery()]))
    newest = HAIKU.model_copy(update={"system_prompt": "Write a limerick."})
    for offset, version in enumerate((HAIKU, newest)):
        await asyncio.sleep(0.02)
        assert not handling.done()
        await table.put(version.name, TaskChanged(task=version.name, task_revision=version.revision, spec=version))
        await table.advance(0, offset + 1)
    await asyncio.gather(reading, handling)
    assert [event.task_revision for event in kafka.logged] == [newest.revision] != [HAIKU.revision]


async def test_a_prediction_of_an_unknown_task_can_never_be_logged(handler: SubmittedPredictions) -> None:
    with pytest.raises(InvalidMessage, match="unknown task 'new'"):
        await handler.on_submitted([delivery("new")])


async def test_a_prediction_that_kafka_did_not_take_is_not_acknowledged(
    handler: SubmittedPredictions, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def takes_the_first(records: Sequence[Record]) -> Sequence[Record]:
        return records[1:]

    monkeypatch.setattr(kafka, "publish_once", takes_the_first)
    with pytest.raises(DependencyUnavailable, match="1 of 2"):
        await handler.on_submitted([delivery(), delivery(prediction_id="q")])


async def test_the_same_own_id_by_http_and_by_kafka_is_one_prediction_and_feedback_reaches_it(
    gateway: Gateway, handler: SubmittedPredictions, kafka: Kafka
) -> None:
    own = {"task": HAIKU.name, "prediction_id": "maria@example.com/7", "user": "ann", "session": "s-1"}
    await handler.on_submitted([delivery(**own), delivery(**own)])
    sent = {**own, "messages": [{"role": "user", "content": "q"}], "answer": "a", "latency_ms": 1}
    (prediction_id,) = (await gateway.http.post("/v1/predictions", json=sent)).json()["prediction_ids"]
    events = [*kafka.logged, *gateway.log.events]
    assert len(events) == 3
    assert len({(event.event_id, event.request_id) for event in events}) == 1
    assert {event.answers[0].prediction_id for event in events} == {prediction_id}
    assert {event.user_hash for event in events} == {keyed_hash(b"s" * 32, "ann")}
    assert {event.session_hash for event in events} == {keyed_hash(b"s" * 32, "session/s-1")}
    assert "maria" not in str(kafka.records)
    given = {"prediction_id": f"{HAIKU.name}/maria@example.com/7", "kind": "thumbs", "positive": True}
    assert (await gateway.http.post("/v1/feedback", json=given)).json()["prediction_id"] == prediction_id


async def test_a_conversation_by_http_and_by_kafka_has_the_same_roles(
    gateway: Gateway, handler: SubmittedPredictions, kafka: Kafka
) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "q"}]
    await handler.on_submitted([delivery(messages=messages)])
    sent = {"task": HAIKU.name, "messages": messages, "answer": "a", "latency_ms": 1}
    await gateway.http.post("/v1/predictions", json=sent)
    (by_kafka,), (by_http,) = kafka.logged, gateway.log.events
    assert by_kafka.call == by_http.call
    assert [message.role for message in by_kafka.call.messages] == ["system", "user"]


async def test_parameters_of_an_answer_made_elsewhere_name_nobody_and_sign_in_nowhere(
    gateway: Gateway, handler: SubmittedPredictions, kafka: Kafka
) -> None:
    parameters = {
        "user": "ann", "metadata": {"user_id": "ann", "cart": 7}, "session_id": "s-1", "prompt_cache_key": "ann",
        "api_key": "hunter2", "extra_headers": {"Authorization": "Bearer abc"}, "stream": True, "model": "gpt",
        "vllm_xargs": {"session_id": "s-1", "other": 1}, "temperature": 0.5, "stop": ["\n"],
    }  # fmt: skip
    await handler.on_submitted([delivery(parameters=parameters)])
    sent = {"task": HAIKU.name, "messages": [{"role": "user", "content": "q"}], "answer": "a", "latency_ms": 1}
    await gateway.http.post("/v1/predictions", json=sent | {"parameters": parameters})
    for event in (*kafka.logged, *gateway.log.events):
        assert event.call.parameters == {"vllm_xargs": {"other": 1}, "temperature": 0.5, "stop": ["\n"]}
        assert event.user_hash == keyed_hash(b"s" * 32, "ann")
        assert event.session_hash == keyed_hash(b"s" * 32, "session/s-1")
        assert event.metadata == {}
        assert event.call.is_whole


async def test_who_an_application_names_beside_the_parameters_comes_first(
    handler: SubmittedPredictions, kafka: Kafka
) -> None:
    await handler.on_submitted([delivery(user="ben", parameters={"user": "ann", "session_id": ["no", "name"]})])
    (event,) = kafka.logged
    assert (event.user_hash, event.session_hash) == (keyed_hash(b"s" * 32, "ben"), None)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("end_turn", "stop"), ("tool_use", "tool_calls"), ("max_tokens", "length"), ("MAX_TOKENS", "length"),
        ("STOP", "stop"), ("SAFETY", "content_filter"), ("refusal", "content_filter"), ("length", "length"),
        ("pause_turn", "other"),
    ],
)  # fmt: skip
async def test_other_providers_words_for_why_an_answer_ended_are_understood(
    gateway: Gateway, handler: SubmittedPredictions, kafka: Kafka, said: str, meant: str
) -> None:
    await handler.on_submitted([delivery(finish_reason=said)])
    sent = {"task": HAIKU.name, "messages": [{"role": "user", "content": "q"}], "answer": "a", "latency_ms": 1}
    await gateway.http.post("/v1/predictions", json=sent | {"finish_reason": said})
    assert [event.answers[0].finish_reason for event in (*kafka.logged, *gateway.log.events)] == [meant, meant]


async def test_a_part_that_an_event_does_not_have_makes_a_call_that_is_not_whole(
    handler: SubmittedPredictions, kafka: Kafka
) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    await handler.on_submitted([delivery(messages=[{"role": "user", "content": [picture]}])])
    (event,) = kafka.logged
    assert not event.call.is_whole


async def test_a_conversation_with_tools_is_logged_whole(handler: SubmittedPredictions, kafka: Kafka) -> None:
    call = {"name": "find", "arguments": '{"order": 7}', "id": "call_1"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "where?"}]}, {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "lost", "tool_call_id": "call_1"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "find"}}]
    await handler.on_submitted([
        delivery(
            messages=messages, tool_calls=[call], answer="", reasoning="again", tools=tools, tool_choice="auto",
            parameters={"seed": 7}, response_format={"type": "json_object"}, finish_reason="tool_calls", app="crm",
            metadata={"channel": "mail", "user_id": "ann"}, prompt_tokens=9, answer_tokens=3, model="m", adapter="a",
        )
    ])  # fmt: skip
    (event,) = kafka.logged
    found = ToolCall(name="find", arguments='{"order": 7}', id="call_1")
    assert event.call.messages == (
        Message(role="user", content=(Part(type="text", text="where?"),)),
        Message(role="assistant", tool_calls=(found,)), Message(role="tool", content="lost", tool_call_id="call_1"),
    )  # fmt: skip
    assert (event.call.api, event.call.tools, event.call.tool_choice) == ("external", tuple(tools), "auto")
    assert (event.call.parameters, event.call.response_format) == ({"seed": 7}, {"type": "json_object"})
    (answer,) = event.answers
    assert (answer.tool_calls, answer.reasoning, answer.finish_reason) == ((found,), "again", "tool_calls")
    assert (event.app, event.model, event.adapter, answer.tokens, event.usage.prompt_tokens) == ("crm", "m", "a", 3, 9)
    assert (event.user_hash, event.metadata) == (keyed_hash(b"s" * 32, "ann"), {"channel": "mail"})
    assert event.call.is_whole and answer.is_whole


async def test_json_nested_deeper_than_readers_take_is_left_out_and_marked(
    handler: SubmittedPredictions, kafka: Kafka
) -> None:
    deep: Any = "x"
    for _ in range(70):
        deep = [deep]
    await handler.on_submitted([delivery(tools=[{"x": deep}], parameters={"seed": 7, "stop": deep})])
    (event,) = kafka.logged
    assert (event.call.tools, event.call.parameters, event.call.truncated) == ((), {"seed": 7}, True)


async def test_what_is_too_long_for_an_event_is_logged_cut_and_marked(
    handler: SubmittedPredictions, kafka: Kafka
) -> None:
    await handler.on_submitted([delivery(messages=[{"role": "user", "content": "x" * 2_500_000}])])
    (event,) = kafka.logged
    assert event.call.truncated and not event.answers[0].truncated
    assert len(kafka.records[0].value) < 2 * 1024**2


async def test_nul_is_left_out_and_marks_what_had_it(handler: SubmittedPredictions, kafka: Kafka) -> None:
    await handler.on_submitted([delivery(answer="a\x00b", model="m\x00", reasoning="c\x00d")])
    (event,) = kafka.logged
    assert (event.answers[0].text, event.answers[0].reasoning, event.model) == ("ab", "cd", "m")
    assert (event.answers[0].truncated, event.call.truncated) == (True, False)
    assert b"\\u0000" not in kafka.records[0].value


@pytest.mark.parametrize(("days", "is_logged"), [(-93, False), (-91, True), (0.04, True), (0.05, False)])
async def test_a_prediction_out_of_time_is_a_dead_letter(
    handler: SubmittedPredictions, kafka: Kafka, days: float, is_logged: bool
) -> None:
    occurred_at = datetime.now(UTC) + timedelta(days=days)
    if is_logged:
        await handler.on_submitted([delivery(occurred_at=occurred_at)])
        assert kafka.logged[0].occurred_at == occurred_at if days < 0 else kafka.logged[0].occurred_at < occurred_at
    else:
        with pytest.raises(InvalidMessage, match="in the last 92 days"):
            await handler.on_submitted([delivery(occurred_at=occurred_at)])


async def test_a_producer_cannot_name_media_that_a_gateway_keeps(handler: SubmittedPredictions, kafka: Kafka) -> None:
    media = Media(kind="image", hash="a" * 24, key="media/haiku/2026-11-23/anonymous/" + "b" * 24)
    await handler.on_submitted(
        [delivery(messages=[Message(role="user", content=(Part(type="image_url", media=media),))])]
    )
    content = kafka.logged[0].call.messages[0].content
    assert isinstance(content, tuple) and content[0].media == media.model_copy(update={"key": None})


async def test_a_direct_producers_event_is_redacted_everywhere(kafka: Kafka) -> None:
    told = "call +1 415-555-0132"
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    tasks, external = setup.tasks, ExternalPredictions(Identifiers(PredictionIds(b"k" * 32), b"s" * 32))
    publisher: Any = kafka
    redacting = SubmittedPredictions(tasks, setup.redactor, publisher, external, ShipperStatus())
    await redacting.on_submitted([
        delivery(
            "plain", messages=[{"role": "user", "content": told, "name": told}], answer=told, model=told, app=told,
            tool_calls=[{"name": told, "arguments": orjson.dumps({told: told}).decode(), "id": told}],
            tools=[{told: told}], tool_choice=told, parameters={"stop": [told]}, metadata={told: told},
        )
    ])  # fmt: skip
    (event,) = kafka.logged
    assert "555-0132" not in event.model_dump_json()
    assert event.redactions == 15


async def test_an_event_without_a_time_is_of_when_it_was_sent_however_often_it_is_replayed(
    handler: SubmittedPredictions, kafka: Kafka
) -> None:
    """By the time of reading, a person who was forgotten meanwhile would have asked again."""
    sent = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    at = int(sent.timestamp() * 1000)
    own = sent + timedelta(hours=5)
    await handler.on_submitted([
        delivery()._replace(timestamp=at),
        delivery()._replace(timestamp=at + 10**8, headers={HEADER_SENT_AT: str(at)}),
        delivery(occurred_at=own.isoformat())._replace(timestamp=at),
        delivery()._replace(timestamp=0, headers={HEADER_SENT_AT: "9" * 30}),
    ])  # fmt: skip
    *dated, unknown = [event.occurred_at for event in kafka.logged]
    assert dated == [sent, sent, own]
    assert datetime.now(UTC) - unknown < timedelta(minutes=5)


async def test_what_is_dated_by_a_clock_that_is_ahead_is_of_now(handler: SubmittedPredictions, kafka: Kafka) -> None:
    """Else an erasure would leave what was asked up to an hour before it."""
    ahead = datetime.now(UTC) + timedelta(minutes=50)
    await handler.on_submitted([delivery(occurred_at=ahead.isoformat())])
    assert kafka.logged[0].occurred_at < ahead - timedelta(minutes=40)
