"""Accepted predictions reach Kafka, redacted, whatever process dies: real broker and processes, no model."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from schemas.base import Variant
from schemas.conversation import Message, Role, ToolCall
from schemas.predictions import FeedbackGiven, PredictionLogged, PredictionSubmitted, RequestObserved
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskKind, TaskSpec
from services.gateway.domain import unsigned_id
from shared.identity import keyed_hash, load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.dead_letters import read_dead_letters
from shared.settings import Settings
from tests.integration.gateway_clients import (
    PREDICTIONS,
    GatewayBackends,
    SpoolFiller,
    append_partial_record,
    ask,
    limited_file_size,
    send_requests,
)
from tests.integration.gateway_process import (
    GatewayProcess,
    OwnBroker,
    model_server,
    own_broker,
    process_exists,
    read_topic,
)
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

FEEDBACK, OBSERVATIONS = "feedback.given.v1", "requests.observed.v1"
INTRODUCTION = "I am Maria Gonzalez, write to maria.gonzalez@example.com or call +1 415-555-0132."
PERSONAL_DATA = ("Gonzalez", "maria.gonzalez@example.com", "415-555-0132")


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    with own_broker("spool") as broker:
        yield broker


@pytest.fixture(scope="module")
async def backends(broker: OwnBroker) -> AsyncIterator[GatewayBackends]:
    settings = await asyncio.to_thread(broker.start)
    suffix = uuid4().hex[:8]
    task = TaskSpec(name=f"spool-{suffix}", kind=TaskKind.GENERATION, system_prompt="Help Maria Gonzalez's customers.")
    raw = task.model_copy(update={"name": f"raw-{suffix}", "redaction": RedactionSettings(enabled=False)})
    async with model_server(lambda: "Dear Maria Gonzalez: it is on its way.") as vllm:
        backends = GatewayBackends(broker, settings, vllm, (task, raw))
        await backends.publish_tasks()
        yield backends


@pytest.fixture
async def redacting(backends: GatewayBackends) -> AsyncIterator[GatewayProcess]:
    """A gateway and a task whose texts are redacted.

    Its tests come first: a killed shipper would delay the consumer group of `predictions.submitted`.
    """
    await backends.publish_tasks(redacting=True)
    async with backends.gateway() as gateway:
        yield gateway
        await gateway.stop(signal.SIGTERM)
    await backends.publish_tasks()


async def test_personal_data_is_readable_neither_in_the_spool_nor_in_kafka(
    backends: GatewayBackends, redacting: GatewayProcess
) -> None:
    redacting.signal_shipper(signal.SIGSTOP)
    async with redacting.http() as http:
        response = await ask(http, backends.task, INTRODUCTION)
        prediction_id = response.headers["x-ratchet-prediction-id"]
        assert "Maria Gonzalez" in response.json()["choices"][0]["message"]["content"]
        correction = {"prediction_id": prediction_id, "kind": "edited", "text": f"Better: {INTRODUCTION}"}
        assert (await http.post("/v1/feedback", json=correction)).status_code == 200
        files = [path for path in redacting.settings.spool_folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) > 500
        assert [path for path in files for word in PERSONAL_DATA if word.encode() in path.read_bytes()] == []
        redacting.signal_shipper(signal.SIGCONT)
        (value,) = await backends.events(PREDICTIONS, {prediction_id})
        (feedback,) = await backends.events(FEEDBACK, {prediction_id})
        (observation,) = await backends.events(OBSERVATIONS, {prediction_id})
        event = PredictionLogged.model_validate_json(value)
        messages, (answer,) = event.call.messages, event.answers
        assert messages[0].content == "Help Maria Gonzalez's customers."  # The task's own prompt is not redacted.
        texts = [messages[1].text, answer.text, feedback.decode(), observation.decode()]
        assert [word for word in (*PERSONAL_DATA, "ann@example.com") for text in texts if word in text] == []
        assert event.redactions == 4
        assert FeedbackGiven.model_validate_json(feedback).redactions == 3
        assert messages[1].text.startswith("I am ")

        async def is_counted() -> bool:  # The shipper reports to the gateway once a second.
            metrics = (await http.get("/metrics")).text
            shipped = 'ratchet_gateway_shipped_total{topic="predictions.logged.v1"}' in metrics
            return shipped and "ratchet_gateway_redactions_total{" in metrics

        await until(is_counted)


async def test_a_direct_producers_prediction_is_redacted_and_is_the_one_that_came_by_http(
    backends: GatewayBackends, redacting: GatewayProcess
) -> None:
    own_id = f"maria.gonzalez@example.com/{uuid4().hex}"
    call = ToolCall(name="find_customer", arguments=json.dumps({"email": PERSONAL_DATA[1], "phone": PERSONAL_DATA[2]}))
    submitted = PredictionSubmitted(
        task=backends.task, task_revision="current", prediction_id=own_id, answer="Dear Maria Gonzalez",
        messages=(Message(role=Role.USER, content=INTRODUCTION), Message(role=Role.ASSISTANT, tool_calls=(call,))),
        user="customer-quill", latency_ms=3, metadata={"mail": PERSONAL_DATA[1]},
    )  # fmt: skip
    unknown_task = submitted.model_copy(update={"task": "no-such-task", "prediction_id": f"{own_id}-unknown-task"})
    await _submit(backends, submitted, submitted.model_copy(update={"event_id": uuid4()}), unknown_task)
    async with redacting.http() as http:
        sent = {"task": backends.task, "prediction_id": own_id, "messages": [{"role": "user", "content": INTRODUCTION}],
                "answer": "Dear Maria Gonzalez", "latency_ms": 3, "user": "customer-quill"}  # fmt: skip
        (prediction_id,) = (await http.post("/v1/predictions", json=sent)).json()["prediction_ids"]
        given = {"prediction_id": f"{backends.task}/{own_id}", "kind": "thumbs", "positive": True}
        assert (await http.post("/v1/feedback", json=given)).json()["prediction_id"] == prediction_id
    events: list[PredictionLogged] = []

    async def are_all_logged() -> bool:
        values = await backends.events(PREDICTIONS, {prediction_id})
        events[:] = map(PredictionLogged.model_validate_json, values)
        return len(events) == 3

    await until(are_all_logged)
    subjects = load_or_create_key(redacting.settings.secrets_folder, "subjects")
    assert len({(event.event_id, event.request_id, event.user_hash) for event in events}) == 1
    assert {event.answers[0].prediction_id for event in events} == {prediction_id}
    assert {(event.variant, event.user_hash) for event in events} == {
        (Variant.EXTERNAL, keyed_hash(subjects, "customer-quill"))
    }
    texts = [event.model_dump_json().replace("Help Maria Gonzalez's customers.", "") for event in events]
    # No hash and no time can have a word in it that is not of digits and the letters up to f.
    assert [word for text in texts for word in (*PERSONAL_DATA, "quill") if word in text] == []
    event = next(event for event in events if event.call.messages[1].tool_calls)
    assert (event.occurred_at, event.redactions) == (submitted.occurred_at, 7)
    assert event.task_revision != "current"
    arguments = json.loads(event.call.messages[1].tool_calls[0].arguments)
    assert "@" in arguments["email"] and len(arguments["phone"]) == len(PERSONAL_DATA[2])
    await _is_dead_lettered(redacting.settings, unknown_task.prediction_id)


async def _submit(backends: GatewayBackends, *events: PredictionSubmitted) -> None:
    broker = build_broker(backends.settings, "application")
    await broker.start()
    try:
        for event in events:
            body = event.model_dump_json().encode()
            await broker.publish(body, "predictions.submitted.v1", key=event.prediction_id.encode())
    finally:
        await broker.stop()


async def _is_dead_lettered(settings: Settings, key: str) -> None:
    """Wait for the dead letter, whose key and value are encrypted."""

    async def is_dead_lettered() -> bool:
        return key.encode() in [letter.key for letter in await read_dead_letters(settings, "gateway")]

    await until(is_dead_lettered)
    records = await read_topic(settings, "deadletters.gateway.v1")
    assert [word for word in PERSONAL_DATA for name, value in records if word.encode() in name + value] == []


async def test_a_killed_gateways_predictions_arrive_once_by_id_after_its_restart(
    backends: GatewayBackends,
) -> None:
    async with backends.gateway() as gateway:
        gateway.signal_shipper(signal.SIGSTOP)  # So that nothing is shipped before the kill.
        ids = await send_requests(gateway, backends.raw, 40)
        await gateway.stop(signal.SIGKILL)
        gateway.signal_shipper(signal.SIGKILL)
        assert len(gateway.spooled()) == 80  # A prediction and an observation each.
        assert not await backends.logged_requests() & set(map(unsigned_id, ids))
        slot = gateway.slot
        append_partial_record(gateway.settings.spool_folder)
        gateway.start()
        await gateway.until_ready()
        assert gateway.slot == slot
        assert len(await backends.wait_for_predictions(ids)) == 40
        assert {RequestObserved.model_validate_json(v).status for v in await backends.events(OBSERVATIONS, ids)} == {
            200
        }
        await until(lambda: gateway.spooled() == [])
        async with gateway.http() as http:
            await until(lambda: gateway.shipper_status()["incomplete_bytes"] == 30)
            assert "ratchet_gateway_spool_incomplete_bytes 30.0" in (await http.get("/metrics")).text


async def test_the_spool_of_a_dead_gateway_is_shipped_by_another_gateway_of_the_home(backends: GatewayBackends) -> None:
    async with backends.gateway() as dying, backends.gateway(dying.home) as other:
        assert dying.slot != other.slot  # Each worker has a spool of its own.
        dying.signal_shipper(signal.SIGSTOP)
        ids = await send_requests(dying, backends.raw, 16)
        dying.kill_with_shipper()
        assert len(await backends.wait_for_predictions(ids)) == 16
        await until(lambda: dying.spooled() == [])


async def test_a_stopping_gateway_ships_its_spool_first(backends: GatewayBackends) -> None:
    # A busy machine gives the shipper little.
    patient = {"RATCHET_GATEWAY_SHIPPER_STOP_SECONDS": str(PATIENCE_SECONDS)}
    async with backends.gateway(**patient) as gateway:
        ids = await send_requests(gateway, backends.raw, 40)
        pid = gateway.shipper_status()["pid"]
        await gateway.stop(signal.SIGTERM)
        assert not process_exists(pid)
        assert gateway.spooled() == []
        assert len(await backends.events(PREDICTIONS, ids)) == 40


async def test_a_full_spool_or_disk_refuses_requests_until_there_is_space(
    backends: GatewayBackends,
) -> None:
    async with backends.gateway(RATCHET_GATEWAY_SPOOL_MAX_BYTES=str(1024**2)) as gateway, gateway.http() as http:
        client = SpoolFiller(gateway, http, backends.raw)
        gateway.signal_shipper(signal.SIGSTOP)
        async with limited_file_size(gateway):
            refused = await client.ask_until_full()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert "could not be written" in refused.json()["error"]["message"]
            assert "could not be written" in await client.notes()
        spooled_before = len(client.spooled)
        refused = await client.ask_until_full()
        assert len(client.spooled) > spooled_before  # The disk has space again.
        assert refused.status_code == 503
        assert "its limit is reached" in refused.json()["error"]["message"]
        assert (await http.get("/readyz")).status_code in (200, 503)  # It is full only for events of that size.
        assert await client.count("spool_refusals") == 2
        assert (gateway.home / "gateway.log").read_text().count("event not recorded") >= 1
        gateway.signal_shipper(signal.SIGCONT)
        await client.ask_until_spooled()
        assert "event not recorded" not in await client.notes()
        assert len(await backends.wait_for_predictions(client.spooled)) >= 30


async def test_with_the_setting_answer_a_full_spool_or_disk_answers_and_reports_unlogged(
    backends: GatewayBackends,
) -> None:
    settings = {"RATCHET_GATEWAY_SPOOL_MAX_BYTES": str(1024**2), "RATCHET_GATEWAY_SPOOL_FULL": "answer"}
    async with backends.gateway(**settings) as gateway, gateway.http() as http:
        client = SpoolFiller(gateway, http, backends.raw)
        gateway.signal_shipper(signal.SIGSTOP)
        async with limited_file_size(gateway):
            assert (await client.ask_until_full()).status_code == 200
            assert "could not be written" in await client.notes()
        assert (await client.ask_until_full()).status_code == 200
        for _ in range(5):
            await client.ask()
        assert len(client.unlogged) == 7
        assert await client.count("answers_unlogged") == 7
        submitted = {"task": backends.raw, "messages": [{"role": "user", "content": "x" * 30_000}], "answer": "y",
                     "latency_ms": 1}  # fmt: skip
        assert (await http.post("/v1/predictions", json=submitted)).status_code == 503
        gateway.signal_shipper(signal.SIGCONT)
        await client.ask_until_spooled()
        await backends.wait_for_predictions(client.spooled)
        assert not await backends.logged_requests() & set(map(unsigned_id, client.unlogged))
