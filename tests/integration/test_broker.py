"""Publishing and consuming on a real broker: dead letters, their replay, and redelivery after a failed handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from faststream.kafka import KafkaBroker
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.catalog import (
    HEADER_OFFSET,
    HEADER_PARTITION,
    HEADER_TOPIC,
    dead_letter_topic,
)
from schemas.predictions import FeedbackGiven, SubjectForgotten
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.kafka.broker import build_broker
from shared.kafka.clients import build_producer, open_consumer
from shared.kafka.consumers import ATTEMPTS, Consumers
from shared.kafka.dead_letters import (
    DEAD_LETTER_KEY,
    encrypt_dead_letter,
    read_dead_letters,
    replay_dead_letters,
)
from shared.kafka.delivery import Delivery
from shared.kafka.publisher import Publisher
from shared.privacy.encryption import Cipher, DecryptionKeyMissing, load_cipher
from shared.settings import Settings
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack


def feedback(mark: str, number: int) -> FeedbackGiven:
    return FeedbackGiven(
        task=f"t-{mark}", task_revision="r1", prediction_id=f"{mark}-{number}", kind="thumbs", positive=True
    )


@asynccontextmanager
async def consuming(settings: Settings, subscribe: Callable[[Consumers], None]) -> AsyncIterator[KafkaBroker]:
    broker = build_broker(settings, "prediction_log")
    subscribe(Consumers(broker, "prediction_log", settings))
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@pytest.fixture
def settings(stack_settings: Settings) -> Settings:
    return stack_settings


async def test_a_dead_lettered_event_is_replayed_to_its_service_alone(settings: Settings) -> None:
    mark, broken, seen = uuid4().hex, True, []
    await replay_dead_letters(settings, "prediction_log", skip_broken=True)  # Those of earlier runs, on a used broker.

    async def handler(event: FeedbackGiven) -> None:
        if event.task != f"t-{mark}":
            return
        if broken:
            raise InvalidMessage("not today")
        seen.append(event.prediction_id)

    async with consuming(settings, lambda consumers: consumers.on(FeedbackGiven, handler)) as broker:
        gateway = Publisher(broker, "gateway")
        await gateway.publish(feedback(mark, 1))
        await broker.publish(b"{poison " + mark.encode(), "feedback.given.v1", key=mark.encode())
        await gateway.publish(feedback(mark, 2))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                pending = await read_dead_letters(settings, "prediction_log")
                letters = [letter for letter in pending if mark.encode() in letter.value]
                if len(letters) == 3:
                    break
        assert {letter.topic for letter in letters} == {"feedback.given.v1"}
        assert any("not today" in letter.error for letter in letters)
        broken = False
        stored = await record_at(settings, letters[1].offset)
        assert mark.encode() not in stored.value and stored.key is None, "the broker has it encrypted only"
        assert (await replay_dead_letters(settings, "prediction_log")).sent >= 3
        await until(lambda: len(seen) == 2)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (
                failed := [
                    letter
                    for letter in await read_dead_letters(settings, "prediction_log")
                    if mark.encode() in letter.value
                ]
            ):
                await asyncio.sleep(0.2)
    assert [letter.value[:7] for letter in failed] == [b"{poison"], "the replayed poison is dead-lettered again"
    assert (failed[0].headers["x-ratchet-replayed"], failed[0].key) == ("1", mark.encode())


async def record_at(settings: Settings, offset: int) -> ConsumerRecord:
    """The record of the dead-letter topic at `offset`, as the broker has it."""
    partition = TopicPartition(dead_letter_topic("prediction_log"), 0)
    async with open_consumer(settings, group_id=None) as consumer:
        consumer.assign([partition])
        consumer.seek(partition, offset)
        return await consumer.getone()


async def test_a_dead_letter_that_no_key_decrypts_stops_a_replay_unless_it_is_skipped(settings: Settings) -> None:
    mark = uuid4().hex
    await replay_dead_letters(settings, "shadow", skip_broken=True)
    value, headers = encrypt_dead_letter(
        Cipher(b"another key, of another machine!"), "shadow", b"k", b"{}", KeyError("x")
    )
    origin = {HEADER_TOPIC: "feedback.given.v1", HEADER_PARTITION: "0", HEADER_OFFSET: mark}
    await _publish(settings, value, dead_letter_topic("shadow"), {**headers, **origin})
    (letter,) = await read_dead_letters(settings, "shadow")
    assert isinstance(letter.broken, DecryptionKeyMissing)
    with pytest.raises(DecryptionKeyMissing):
        await replay_dead_letters(settings, "shadow")
    assert await replay_dead_letters(settings, "shadow", skip_broken=True) == (0, 1)
    assert await read_dead_letters(settings, "shadow") == []


def test_the_command_lists_shows_and_replays(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, command = uuid4().hex, CliRunner()
    for name, value in {"HOME": str(settings.home), "KAFKA": settings.kafka}.items():
        monkeypatch.setenv(f"RATCHET_{name}", value)
    monkeypatch.setenv("COLUMNS", "160")
    assert command.invoke(app, ["dlq", "replay", "trainer", "--skip-broken"]).exit_code == 0
    cipher = load_cipher(settings.secrets_folder, DEAD_LETTER_KEY)
    value, headers = encrypt_dead_letter(
        cipher, "trainer", b"k", f"{{broken {mark}".encode(), InvalidMessage(f"no JSON: {mark}")
    )
    origin = {HEADER_TOPIC: "datasets.built.v1", HEADER_PARTITION: "0", HEADER_OFFSET: mark}
    asyncio.run(_publish(settings, value, dead_letter_topic("trainer"), {**headers, **origin}))
    listed = command.invoke(app, ["dlq", "list"]).output
    assert "InvalidMessage" in listed
    assert mark not in listed, "nobody asked to see what may be personal data"
    shown = command.invoke(app, ["dlq", "show", "trainer"]).output
    assert f"{{broken {mark}" in shown
    assert f"InvalidMessage: no JSON: {mark}" in shown
    assert f"datasets.built.v1/0/{mark}" in shown
    assert "1 dead letters sent again to trainer" in command.invoke(app, ["dlq", "replay", "trainer"]).output
    assert mark not in command.invoke(app, ["dlq", "show", "trainer"]).output
    unknown = command.invoke(app, ["dlq", "show", "nobody"])
    assert (unknown.exit_code, "no such service" in unknown.output) == (2, True)


async def _publish(settings: Settings, value: bytes, topic: str, headers: dict[str, str]) -> None:
    producer = build_producer(settings, "test")
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, headers=[(n, v.encode()) for n, v in headers.items()])
    finally:
        await producer.stop()


async def test_what_a_stopped_consumer_did_not_finish_is_redelivered(settings: Settings) -> None:
    mark, seen = uuid4().hex, []

    async def unavailable(event: SubjectForgotten) -> None:
        if event.task == f"t-{mark}":
            raise DependencyUnavailable("the database is away")

    async def available(event: SubjectForgotten) -> None:
        if event.task == f"t-{mark}":
            seen.append(event.subject_hash)

    async with consuming(settings, lambda consumers: consumers.on(SubjectForgotten, unavailable)) as broker:
        event = SubjectForgotten(task=f"t-{mark}", task_revision="r", subject_hash="ann")
        await Publisher(broker, "scheduler").publish(event)
        await asyncio.sleep(2.0)
    async with consuming(settings, lambda consumers: consumers.on(SubjectForgotten, available)):
        await until(lambda: seen == ["ann"])


async def test_a_running_consumer_is_redelivered_what_failed_at_every_attempt(settings: Settings) -> None:
    mark, attempts, handled = uuid4().hex, 0, []

    async def handler(event: SubjectForgotten) -> None:
        nonlocal attempts
        if event.task != f"t-{mark}":
            return
        attempts += event.subject_hash == "ann"
        if attempts <= 3 * ATTEMPTS:
            raise DependencyUnavailable("the database is away")
        handled.append(event.subject_hash)

    async with consuming(settings, lambda consumers: consumers.on(SubjectForgotten, handler)) as broker:
        for name in ("ann", "bob"):
            await Publisher(broker, "scheduler").publish(
                SubjectForgotten(task=f"t-{mark}", task_revision="r", subject_hash=name)
            )
        await until(lambda: len(handled) == 2)
    assert handled == ["ann", "bob"], "the next record waited"
    assert attempts == 3 * ATTEMPTS + 1


@pytest.mark.parametrize("header", [b"\xff\xfe\x00trace", None], ids=["binary", "null"])
async def test_headers_that_are_not_text_do_not_harm_a_record(settings: Settings, header: bytes | None) -> None:
    mark, single, batch = uuid4().hex, [], []

    async def handle(event: FeedbackGiven) -> None:
        if event.task == f"t-{mark}":
            single.append(event.prediction_id)

    async def handle_batch(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        batch.extend(d.event.prediction_id for d in deliveries if d.event.task == f"t-{mark}")

    producer = build_producer(settings, "test")
    await producer.start()
    try:
        for number in range(3):
            value = feedback(mark, number).model_dump_json().encode()
            await producer.send(
                "feedback.given.v1", value, partition=0, headers=[("x-trace", header if number == 1 else b"1")]
            )
        await producer.flush()
    finally:
        await producer.stop()
    other = build_broker(settings, "failure_miner")
    Consumers(other, "failure_miner", settings).on_batch(FeedbackGiven, handle_batch)
    async with consuming(settings, lambda consumers: consumers.on(FeedbackGiven, handle)):
        await other.start()
        try:
            await until(lambda: len(single) == 3 and len(batch) == 3)
        finally:
            await other.stop()
    assert single == batch == [f"{mark}-{number}" for number in range(3)]


async def test_a_stopping_consumer_finishes_its_batch(settings: Settings) -> None:
    mark, begun, done, again = uuid4().hex, asyncio.Event(), [], []

    async def slow(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        mine = [d.event.prediction_id for d in deliveries if d.event.task == f"t-{mark}"]
        if mine:
            begun.set()
            await asyncio.sleep(1.5)
            done.extend(mine)

    async def note(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        again.extend(d.event.prediction_id for d in deliveries if d.event.task == f"t-{mark}")

    async with consuming(settings, lambda consumers: consumers.on_batch(FeedbackGiven, slow)) as broker:
        await Publisher(broker, "gateway").publish(feedback(mark, 1))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await begun.wait()
        assert not done
    assert done == [f"{mark}-1"], "stopping waited for the handler"
    async with consuming(settings, lambda consumers: consumers.on_batch(FeedbackGiven, note)) as broker:
        await Publisher(broker, "gateway").publish(feedback(mark, 2))
        await until(lambda: f"{mark}-2" in again)
        await asyncio.sleep(1.0)
    assert again == [f"{mark}-2"], "what was finished was acknowledged too"


async def test_batches_carry_their_positions(settings: Settings) -> None:
    mark = uuid4().hex
    seen: list[Delivery[FeedbackGiven]] = []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        seen.extend(d for d in deliveries if d.event.task == f"t-{mark}")

    async with consuming(settings, lambda consumers: consumers.on_batch(FeedbackGiven, handler)) as broker:
        for number in range(20):
            await Publisher(broker, "gateway").publish(feedback(mark, number))
        await until(lambda: len(seen) == 20)
    places = {(d.partition, d.offset) for d in seen}
    assert len(places) == 20


@pytest.mark.apache_kafka("tansu counts generations from 0, and aiokafka leaves none of number 0")
async def test_a_stopped_consumer_is_a_member_of_its_new_group_no_longer(settings: Settings) -> None:
    group, partition = uuid4().hex, TopicPartition("feedback.given.v1", 0)
    async with open_consumer(settings, partition.topic, group_id=group):
        pass
    async with open_consumer(settings, group_id=group) as outsider:
        outsider.assign([partition])
        await outsider.commit({partition: 0})  # Refused while the group has a member.
