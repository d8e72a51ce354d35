"""What a gateway has accepted reaches Kafka, redacted, whatever dies; a real broker, real processes, no model."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from schemas.base import Message, Role, Variant
from schemas.predictions import FeedbackGiven, PredictionLogged, PredictionSubmitted, RequestObserved
from schemas.tasks import RedactionSettings, TaskKind, TaskSpec
from shared.identity import event_id, keyed_hash, load_or_create_key
from shared.kafka.broker import build_broker
from tests.integration.gateway_clients import (
    PREDICTIONS,
    Filling,
    Place,
    accepted,
    ask,
    full_disk,
    load,
    oldest_seconds,
    tear_the_end,
)
from tests.integration.gateway_process import (
    GatewayProcess,
    OwnBroker,
    lives,
    model_server,
    own_broker,
    read_raw,
    until,
)

pytestmark = pytest.mark.stack

FEEDBACK, OBSERVATIONS = "feedback.given.v1", "requests.observed.v1"
WHO = "I am Maria Gonzalez, write to maria.gonzalez@example.com or call +1 415-555-0132."
PERSONAL = ("Gonzalez", "maria.gonzalez@example.com", "415-555-0132")


@pytest.fixture(scope="module")
def broker() -> Iterator[OwnBroker]:
    with own_broker("spool") as one:
        yield one


@pytest.fixture(scope="module")
async def place(broker: OwnBroker) -> AsyncIterator[Place]:
    settings = await asyncio.to_thread(broker.start)
    mark = uuid4().hex[:8]
    task = TaskSpec(name=f"spool-{mark}", kind=TaskKind.GENERATION, system_prompt="Help Maria Gonzalez's customers.")
    raw = task.model_copy(update={"name": f"raw-{mark}", "redaction": RedactionSettings(enabled=False)})
    async with model_server(lambda: f"Dear Maria Gonzalez: {uuid4().hex}") as vllm:
        one = Place(broker, settings, vllm, (task, raw))
        await one.announce()
        yield one


@pytest.fixture
async def redacting(place: Place) -> AsyncIterator[GatewayProcess]:
    """A gateway and a task whose texts are redacted. These tests come first: no shipper that was killed holds up
    the consumer group of `predictions.submitted` yet."""
    await place.announce(redacting=True)
    async with place.gateway() as gateway:
        yield gateway
        await gateway.end(signal.SIGTERM)
    await place.announce()


async def test_personal_data_is_readable_neither_in_the_spool_nor_in_kafka(
    place: Place, redacting: GatewayProcess
) -> None:
    redacting.shipper(signal.SIGSTOP)
    async with redacting.http() as http:
        response = await ask(http, place.task, WHO)
        prediction_id = response.headers["x-ratchet-prediction-id"]
        assert "Maria Gonzalez" in response.json()["choices"][0]["message"]["content"]
        correction = {"prediction_id": prediction_id, "kind": "edited", "text": f"Better: {WHO}"}
        assert (await http.post("/v1/feedback", json=correction)).status_code == 200
        files = [path for path in redacting.settings.spool_folder.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) > 500
        assert [path for path in files for word in PERSONAL if word.encode() in path.read_bytes()] == []
        redacting.shipper(signal.SIGCONT)
        (value,) = await place.events(PREDICTIONS, {prediction_id})
        (given,) = await place.events(FEEDBACK, {prediction_id})
        (seen,) = await place.events(OBSERVATIONS, {prediction_id})
        event = PredictionLogged.model_validate_json(value)
        assert event.messages[0].content == "Help Maria Gonzalez's customers."  # The task's own words are kept.
        rest = [event.messages[1].content, event.answer, given.decode(), seen.decode()]
        assert [word for word in (*PERSONAL, "ann@example.com") for text in rest if word in text] == []
        assert event.redactions == 4
        assert FeedbackGiven.model_validate_json(given).redactions == 3
        assert event.messages[1].content.startswith("I am ")

        async def counted() -> bool:  # The shipper tells the gateway once a second.
            metrics = (await http.get("/metrics")).text
            shipped = 'ratchet_gateway_shipped_total{topic="predictions.logged.v1"}' in metrics
            return shipped and "ratchet_gateway_redactions_total{" in metrics

        await until(counted)


async def test_a_direct_producers_answer_arrives_redacted_and_twice_sent_is_one_event(
    place: Place, redacting: GatewayProcess
) -> None:
    prediction_id = f"order-service-{uuid4().hex}"
    submitted = PredictionSubmitted(
        task=place.task, task_revision="current", prediction_id=prediction_id, answer="Dear Maria Gonzalez",
        messages=(Message(role=Role.USER, content=WHO),), user="customer-4711", latency_ms=3,
    )  # fmt: skip
    nowhere = submitted.model_copy(update={"task": "no-such-task", "prediction_id": f"{prediction_id}-nowhere"})
    broker = build_broker(place.settings, "application")
    await broker.start()
    try:
        for event in (submitted, submitted.model_copy(update={"event_id": uuid4()}), nowhere):
            body = event.model_dump_json().encode()
            await broker.publish(body, "predictions.submitted.v1", key=event.prediction_id.encode())
    finally:
        await broker.stop()
    events: list[PredictionLogged] = []

    async def both_there() -> bool:
        values = await place.events(PREDICTIONS, {prediction_id})
        events[:] = map(PredictionLogged.model_validate_json, values)
        return len(events) == 2

    await until(both_there)
    event = events[0]
    assert {one.event_id for one in events} == {event_id("predictions.logged", place.task, prediction_id)}
    assert (event.variant, event.prediction_id, event.redactions) == (Variant.EXTERNAL, prediction_id, 4)
    assert event.occurred_at == submitted.occurred_at
    assert event.task_revision != "current"
    assert event.user_hash == keyed_hash(
        load_or_create_key(redacting.settings.secrets_folder, "subjects"), "customer-4711"
    )
    assert [word for word in (*PERSONAL, "4711") if word in event.model_dump_json()] == []
    letters: list[bytes] = []

    async def buried() -> bool:
        found = await read_raw(place.settings, "deadletters.gateway.v1")
        letters[:] = [value for key, value in found if key == nowhere.prediction_id.encode()]
        return bool(letters)

    await until(buried)
    assert [word for word in PERSONAL if word.encode() in letters[0]] == []


async def test_what_a_killed_gateway_had_accepted_arrives_once_by_id_when_the_next_one_starts(place: Place) -> None:
    async with place.gateway() as gateway:
        gateway.shipper(signal.SIGSTOP)  # So that nothing is shipped before the kill.
        ids = await accepted(gateway, place.raw, 40)
        await gateway.end(signal.SIGKILL)
        gateway.shipper(signal.SIGKILL)
        assert len(gateway.waiting()) == 80  # A prediction and an observation each.
        assert not {key.decode() for key, _ in await read_raw(place.settings, PREDICTIONS)} & ids
        left = gateway.slot
        tear_the_end(gateway.settings.spool_folder)
        gateway.start()
        await gateway.until_ready()
        assert gateway.slot == left
        assert len(await place.arrived(ids)) == 40
        assert {RequestObserved.model_validate_json(v).status for v in await place.events(OBSERVATIONS, ids)} == {200}
        await until(lambda: gateway.waiting() == [])
        async with gateway.http() as http:
            await until(lambda: gateway.status()["torn_bytes"] == 30)
            assert "ratchet_gateway_spool_torn_bytes 30.0" in (await http.get("/metrics")).text


async def test_under_load_kills_of_gateway_and_shipper_lose_nothing_that_was_answered(place: Place) -> None:
    ids: set[str] = set()
    async with place.gateway() as gateway, load(gateway, place.raw, ids):
        await asyncio.sleep(0.5)
        killed = gateway.shipper(signal.SIGKILL)
        await until(lambda: gateway.status().get("pid") != killed)
        before, orphan = len(ids), gateway.status()["pid"]
        await gateway.end(signal.SIGKILL)
        gateway.start()
        await gateway.until_ready()
        await until(lambda: not lives(orphan))
        await until(lambda: len(ids) > before + 10)
        await place.arrived(set(ids))


async def test_the_spool_of_a_gateway_that_died_is_shipped_by_the_one_beside_it(place: Place) -> None:
    async with place.gateway() as dying, place.gateway(dying.home) as other:
        assert dying.slot != other.slot  # Each worker has a spool of its own.
        dying.shipper(signal.SIGSTOP)
        ids = await accepted(dying, place.raw, 16)
        dying.kill_all()
        assert len(await place.arrived(ids)) == 16
        await until(lambda: dying.waiting() == [])


async def test_a_gateway_that_is_stopped_ships_what_it_holds_first(place: Place) -> None:
    async with place.gateway() as gateway:
        ids = await accepted(gateway, place.raw, 40)
        pid = gateway.status()["pid"]
        await gateway.end(signal.SIGTERM)
        assert not lives(pid)
        assert gateway.waiting() == []
        assert len(await place.events(PREDICTIONS, ids, 1.0)) == 40


async def test_while_the_broker_is_away_the_gateway_goes_on_and_everything_arrives_afterwards(place: Place) -> None:
    settings = {"RATCHET_GATEWAY_SHIPPER_LATE_SECONDS": "1", "RATCHET_GATEWAY_SHIPPER_STOP_SECONDS": "1"}
    async with place.gateway(**settings) as gateway, gateway.http() as http:
        await place.arrived(await accepted(gateway, place.raw, 8))
        await until(lambda: gateway.waiting() == [])
        async with place.broker.away():
            ids = await accepted(gateway, place.raw, 40)
            thumbs = {"prediction_id": next(iter(ids)), "kind": "thumbs", "positive": True}
            assert (await http.post("/v1/feedback", json=thumbs)).status_code == 200

            async def told() -> bool:
                return any("the shipper is behind" in note for note in (await http.get("/readyz")).json()["notes"])

            await until(told)
            assert oldest_seconds((await http.get("/metrics")).text) > 1.0
            await gateway.end(signal.SIGTERM)  # It cannot ship what it holds, and keeps it.
            assert len(gateway.waiting()) == 81
        await place.announce()
        gateway.start()
        await gateway.until_ready()
        assert len(await place.arrived(ids)) == 40
        assert await place.events(FEEDBACK, {thumbs["prediction_id"]})
        await until(lambda: gateway.waiting() == [])


async def test_a_full_spool_and_a_full_disk_refuse_loudly_and_recover(place: Place) -> None:
    async with place.gateway(RATCHET_GATEWAY_SPOOL_MAX_BYTES=str(1024**2)) as gateway, gateway.http() as http:
        client = Filling(gateway, http, place.raw)
        gateway.shipper(signal.SIGSTOP)
        async with full_disk(gateway):
            refused = await client.until_full()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert "could not be written" in refused.json()["error"]["message"]
            assert "could not be written" in await client.notes()
        kept = len(client.kept)
        refused = await client.until_full()
        assert len(client.kept) > kept  # There was room on the disk again.
        assert refused.status_code == 503
        assert "its limit is reached" in refused.json()["error"]["message"]
        assert (await http.get("/readyz")).status_code in (200, 503)  # Full only to the size of the next event.
        assert await client.count("spool_refusals") == 2
        assert (gateway.home / "gateway.log").read_text().count("event not recorded") >= 1
        gateway.shipper(signal.SIGCONT)
        await client.until_room()
        assert "not kept" not in await client.notes()
        assert len(await place.arrived(client.kept)) >= 30


async def test_by_the_setting_a_full_spool_and_a_full_disk_answer_and_say_that_they_kept_nothing(place: Place) -> None:
    settings = {"RATCHET_GATEWAY_SPOOL_MAX_BYTES": str(1024**2), "RATCHET_GATEWAY_SPOOL_FULL": "answer"}
    async with place.gateway(**settings) as gateway, gateway.http() as http:
        client = Filling(gateway, http, place.raw)
        gateway.shipper(signal.SIGSTOP)
        async with full_disk(gateway):
            assert (await client.until_full()).status_code == 200
            assert "could not be written" in await client.notes()
        assert (await client.until_full()).status_code == 200
        for _ in range(5):
            await client.ask()
        assert len(client.unlogged) == 7
        assert await client.count("answers_unlogged") == 7
        elsewhere = {"task": place.raw, "messages": [{"role": "user", "content": "x" * 30_000}], "answer": "y",
                     "latency_ms": 1}  # fmt: skip
        assert (await http.post("/v1/predictions", json=elsewhere)).status_code == 503
        gateway.shipper(signal.SIGCONT)
        await client.until_room()
        await place.arrived(client.kept)
        assert not {key.decode() for key, _ in await read_raw(place.settings, PREDICTIONS)} & client.unlogged
