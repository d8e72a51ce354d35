"""What `Consumers` and `Publisher` guarantee every service, on FastStream's in-memory broker."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from faststream.kafka import KafkaBroker, KafkaMessage, TestKafkaBroker
from polars.exceptions import PanicException

from schemas import catalog
from schemas.predictions import FeedbackGiven, RequestObserved
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from shared.errors import DependencyUnavailable, InvalidMessage, MustStop, Paused
from shared.kafka.broker import build_broker
from shared.kafka.clients import MAX_DEAD_LETTER_BYTES
from shared.kafka.consumers import ATTEMPTS, Consumers
from shared.kafka.dead_letters import DEAD_LETTER_KEY, DeadLetter, decrypt_dead_letter, send_again
from shared.kafka.delivery import Delivery, RecordPosition, TopicPartition
from shared.kafka.publisher import DeadLetterPublisher, Publisher
from shared.privacy.encryption import load_cipher
from shared.settings import Settings

TOPIC = "feedback.given.v1"


def feedback(number: int = 1, text: str | None = None) -> FeedbackGiven:
    return FeedbackGiven(
        task="support-desk", task_revision="r1", prediction_id=f"p{number}", kind="thumbs", positive=False, text=text
    )


class InMemoryService:
    """A broker with one consumer of feedback, and what reached its dead-letter topic."""

    def __init__(self, home: Path) -> None:
        self.broker = KafkaBroker("nowhere:9092")
        self.settings = Settings(home=home)
        self._cipher = load_cipher(self.settings.secrets_folder, DEAD_LETTER_KEY)
        self.consumers = Consumers(self.broker, "prediction_log", self.settings)
        self.handled: list[FeedbackGiven] = []
        self.dead_letters: list[DeadLetter] = []
        self.stored: list[bytes] = []

        @self.broker.subscriber(catalog.dead_letter_topic("prediction_log"), group_id="test", decoder=self._undecoded)
        async def on_dead_letter(body: Any, message: KafkaMessage) -> None:
            raw = message.raw_message
            self.stored.append((raw.key or b"") + raw.value + b"".join(value for _, value in raw.headers))
            self.dead_letters.append(decrypt_dead_letter(self._cipher, 0, raw.value, message.headers))

    @staticmethod
    async def _undecoded(message: KafkaMessage) -> Any:
        return message.body


async def test_a_handler_that_waits_on_purpose_is_redelivered_at_once_without_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service, calls = InMemoryService(tmp_path), 0

    async def handler(event: FeedbackGiven) -> None:
        nonlocal calls
        calls += 1
        raise Paused("the engine is busy")

    service.consumers.on(FeedbackGiven, handler)
    caplog.set_level("INFO")
    async with TestKafkaBroker(service.broker):
        with pytest.raises(Paused):
            await Publisher(service.broker, "gateway").publish(feedback())
    assert (calls, service.dead_letters) == (1, [])
    assert "busy" not in caplog.text


async def test_an_event_reaches_its_handler(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        service.handled.append(event)

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        event = feedback()
        await Publisher(service.broker, "gateway").publish(event)
    assert service.handled == [event]
    assert service.dead_letters == []


@pytest.mark.parametrize("poison", [b"{not json", b"", b"[]", b'{"task": "support-desk"}', b"\xff\xfe"])
async def test_a_poison_message_is_dead_lettered_and_the_next_is_handled(tmp_path: Path, poison: bytes) -> None:
    service = InMemoryService(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        service.handled.append(event)

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await service.broker.publish(poison, TOPIC, key=b"k", headers={"content-type": "application/json"})
        await Publisher(service.broker, "gateway").publish(feedback())
    (dead_letter,) = service.dead_letters
    assert dead_letter.value == poison
    assert dead_letter.topic == TOPIC
    assert "InvalidMessage" in dead_letter.error
    assert len(service.handled) == 1


async def test_a_handler_is_retried_while_a_dependency_is_away(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)
    attempts = 0

    async def handler(event: FeedbackGiven) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise DependencyUnavailable("the database is away")

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await Publisher(service.broker, "gateway").publish(feedback())
    assert attempts == 3
    assert service.dead_letters == []


async def test_a_message_is_redelivered_and_never_dead_lettered_while_a_dependency_stays_away(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise DependencyUnavailable("the database is away")

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        with pytest.raises(DependencyUnavailable):
            await Publisher(service.broker, "gateway").publish(feedback())
    assert service.dead_letters == []


@pytest.mark.parametrize("bug", [KeyError, PanicException])
async def test_a_bug_is_tried_three_times_and_then_dead_lettered_with_its_error(
    bug: type[BaseException], tmp_path: Path
) -> None:
    service = InMemoryService(tmp_path)
    attempts = 0

    async def handler(event: FeedbackGiven) -> None:
        nonlocal attempts
        attempts += 1
        raise bug("oops")

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await Publisher(service.broker, "gateway").publish(feedback())
    assert attempts == 3
    assert bug.__name__ in service.dead_letters[0].error


async def test_neither_a_dead_letter_nor_its_error_can_be_read_without_the_key(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise InvalidMessage(f"unknown customer {event.text}")

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await Publisher(service.broker, "gateway").publish(feedback(text="Ann Example"))
    assert b"Ann Example" in service.dead_letters[0].value
    assert service.dead_letters[0].error == "InvalidMessage: unknown customer Ann Example"
    assert b"Ann" not in service.stored[0]


async def test_the_key_of_a_record_is_encrypted_in_its_dead_letter_and_restored_by_a_replay(tmp_path: Path) -> None:
    """That of `predictions.submitted` is an application's own id, of which only a keyed hash is stored."""
    service = InMemoryService(tmp_path)

    async def handler(event: FeedbackGiven) -> None: ...

    service.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await service.broker.publish(b"{broken", TOPIC, key=b"case-of-ann@example.org")
    assert b"ann@example.org" not in service.stored[0]
    replayed: dict[bytes, bytes] = {}

    class Producer:
        async def send_and_wait(self, topic: str, value: bytes, key: bytes, headers: object) -> None:
            replayed[key] = value

    await send_again(Producer(), service.dead_letters[0], "prediction_log")
    assert replayed == {b"case-of-ann@example.org": b"{broken"}


async def test_must_stop_is_tried_once_and_neither_dead_lettered_nor_acknowledged(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)
    attempts = 0

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        nonlocal attempts
        attempts += 1
        raise MustStop("these are another cluster's records")

    service.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        with pytest.raises(MustStop):
            await service.broker.publish_batch(*[feedback(n).model_dump_json().encode() for n in (1, 2)], topic=TOPIC)
    assert attempts == 1
    assert service.dead_letters == []


async def test_a_record_that_never_reached_its_topic_can_be_dead_lettered(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)
    async with TestKafkaBroker(service.broker):
        await DeadLetterPublisher(service.broker, "prediction_log", service.settings).publish(
            TOPIC, b"k", b"not sent", InvalidMessage("too large")
        )
    assert (service.dead_letters[0].topic, service.dead_letters[0].value) == (TOPIC, b"not sent")


async def test_the_beginning_of_a_record_too_large_for_a_dead_letter_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = InMemoryService(tmp_path)
    async with TestKafkaBroker(service.broker):
        publish = service.broker.publish

        async def publish_up_to_4_mib(value: bytes, *arguments: Any, **options: Any) -> Any:
            if len(value) > MAX_DEAD_LETTER_BYTES:
                raise MessageSizeTooLargeError
            return await publish(value, *arguments, **options)

        monkeypatch.setattr(service.broker, "publish", publish_up_to_4_mib)
        await DeadLetterPublisher(service.broker, "prediction_log", service.settings).publish(
            TOPIC, b"k", b"begin" + b"x" * MAX_DEAD_LETTER_BYTES, InvalidMessage("no JSON")
        )
    (letter,) = service.dead_letters
    assert letter.value.startswith(b"beginx")
    assert "too large for a dead letter; this is its beginning. no JSON" in letter.error


async def test_in_a_batch_only_the_bad_event_is_dead_lettered(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        if any(d.event.prediction_id == "p2" for d in deliveries):
            raise InvalidMessage("p2 is wrong")
        service.handled.extend(d.event for d in deliveries)

    service.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        values = [feedback(n).model_dump_json().encode() for n in (1, 2, 3)]
        await service.broker.publish_batch(*values, b"{broken", topic=TOPIC)
    assert sorted(event.prediction_id for event in service.handled) == ["p1", "p3"]
    assert len(service.dead_letters) == 2


async def test_a_batch_of_bad_events_costs_two_more_attempts_each(tmp_path: Path) -> None:
    service, attempts = InMemoryService(tmp_path), 0

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        nonlocal attempts
        attempts += 1
        raise KeyError("oops")

    service.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await service.broker.publish_batch(*[feedback(n).model_dump_json().encode() for n in range(20)], topic=TOPIC)
    assert len(service.dead_letters) == 20
    assert attempts == 3 + 2 * 19, (
        "the group waits five minutes for this member: no time for pauses between attempts of each"
    )


async def test_one_bad_event_among_many_costs_few_attempts_and_none_of_the_others(tmp_path: Path) -> None:
    """An attempt of the lake's writer is a commit, and a batch has 20,000 records."""
    service, attempts = InMemoryService(tmp_path), 0

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        nonlocal attempts
        attempts += 1
        if any(d.event.prediction_id == "p700" for d in deliveries):
            raise OverflowError
        service.handled.extend(d.event for d in deliveries)

    service.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(service.broker):
        await service.broker.publish_batch(*[feedback(n).model_dump_json().encode() for n in range(1_000)], topic=TOPIC)
    assert len(service.dead_letters) == 1
    assert [event.prediction_id for event in service.handled] == [f"p{n}" for n in range(1_000) if n != 700]
    assert attempts <= 3 + 2 * 10


async def test_the_text_of_an_unexpected_error_is_in_its_dead_letter_and_not_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = InMemoryService(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise KeyError(event.text)

    service.consumers.on(FeedbackGiven, handler)
    with caplog.at_level("DEBUG"):
        async with TestKafkaBroker(service.broker):
            await Publisher(service.broker, "gateway").publish(feedback(text="Ann Example"))
    assert "Ann" in service.dead_letters[0].error
    assert "Ann" not in caplog.text
    assert "in handler" in caplog.text, "the log says where it was raised"


async def test_a_bug_outside_the_handler_is_logged_and_the_record_redelivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = InMemoryService(tmp_path)

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None: ...

    async def skipped(position: RecordPosition) -> None:
        raise KeyError("oops")

    service.consumers.on_batch(FeedbackGiven, handler, on_skipped=skipped)
    async with TestKafkaBroker(service.broker):
        with pytest.raises(KeyError):
            await service.broker.publish(b"{broken", TOPIC)
    assert "redelivered: KeyError" in caplog.text


async def test_what_a_decoder_fails_on_is_dead_lettered_whatever_it_raises(tmp_path: Path) -> None:
    service = InMemoryService(tmp_path)

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        service.handled.extend(d.event for d in deliveries)

    def decode(value: bytes) -> FeedbackGiven:
        if value == b"deep":
            raise RecursionError
        return FeedbackGiven.model_validate_json(value)

    service.consumers.on_batch(FeedbackGiven, handler, decode=decode)
    async with TestKafkaBroker(service.broker):
        await service.broker.publish_batch(b"deep", feedback().model_dump_json().encode(), topic=TOPIC)
    assert (len(service.dead_letters), len(service.handled)) == (1, 1)


async def test_a_missing_broker_is_reported_as_unavailable() -> None:
    settings = Settings(kafka="127.0.0.1:1")
    broker = build_broker(settings, "prediction_log")
    for _ in range(2):  # Services call it until the broker is there.
        with pytest.raises(DependencyUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
            await broker.start()
    await broker.stop()


async def test_on_skipped_gets_each_record_that_the_handler_is_not_given(tmp_path: Path) -> None:
    service, skipped_topics = InMemoryService(tmp_path), []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        service.handled.extend(d.event for d in deliveries)

    async def skipped(position: RecordPosition) -> None:
        skipped_topics.append(position.topic)

    service.consumers.on_batch(FeedbackGiven, handler, on_skipped=skipped)
    async with TestKafkaBroker(service.broker):
        await service.broker.publish(b"{broken", TOPIC)
        value = feedback().model_dump_json().encode()
        await service.broker.publish(value, TOPIC, headers={catalog.HEADER_ONLY: "failure_miner"})
        await service.broker.publish(value, TOPIC, headers={catalog.HEADER_ONLY: "prediction_log"})
    assert skipped_topics == [TOPIC, TOPIC]
    assert len(service.handled) == 1


async def test_no_record_is_skipped_before_those_that_came_with_it_are_stored(tmp_path: Path) -> None:
    """A store that moved past a dead letter would, after a crash, go on behind records that it never had.

    One that moves past it with the others would never see it again: so its dead letter is there before they are
    handled, and no redelivery adds it once more.
    """
    service, skipped, is_away = InMemoryService(tmp_path), list[bool](), True
    before = list[int]()

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        before.append(len(service.dead_letters))
        if is_away:
            raise DependencyUnavailable("the database is away")
        service.handled.extend(d.event for d in deliveries)

    async def on_skipped(position: RecordPosition) -> None:
        skipped.append(len(service.handled) == 1)

    service.consumers.on_batch(FeedbackGiven, handler, on_skipped=on_skipped)
    batch = [feedback().model_dump_json().encode(), b"{broken"]
    async with TestKafkaBroker(service.broker):
        with pytest.raises(DependencyUnavailable):
            await service.broker.publish_batch(*batch, topic=TOPIC)
        assert (skipped, set(before)) == ([], {1})
        is_away = False
        await service.broker.publish_batch(*batch, topic=TOPIC)
    assert (skipped, len(service.dead_letters)) == ([True], 1)


async def test_a_table_holds_the_last_value_of_each_key_and_shows_every_one() -> None:
    broker = KafkaBroker("nowhere:9092")
    shown: list[str] = []

    async def show(event: TaskChanged) -> None:
        assert table.get(event.task) == event
        shown.append(event.spec.system_prompt)

    table = Consumers(broker, "gateway", Settings()).table(TaskChanged, show)

    def task(prompt: str) -> TaskChanged:
        spec = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt=prompt, labels=("a", "b"))
        return TaskChanged(task="t", task_revision=spec.revision, spec=spec)

    async with TestKafkaBroker(broker):
        publisher = Publisher(broker, "scheduler")
        await publisher.publish(task("old"))
        await publisher.publish(task("new"))
    assert (await table.wait_for("t")).spec.system_prompt == "new"
    assert shown == ["old", "new"]
    with pytest.raises(DependencyUnavailable):
        await table.wait_for("unknown", seconds=0.01)


@pytest.mark.parametrize("keeps_all", [False, True])
async def test_a_replayed_dead_letter_takes_no_newer_value_out_of_a_table(keeps_all: bool) -> None:
    """The operator corrects the task first, and empties the queue of dead letters later."""
    broker = KafkaBroker("nowhere:9092")
    shown: list[str] = []

    async def show(event: TaskChanged) -> None:
        shown.append(event.spec.system_prompt)

    table = Consumers(broker, "gateway", Settings()).table(TaskChanged, show, on_older=keeps_all)

    def task(prompt: str, minute: int) -> TaskChanged:
        spec = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt=prompt, labels=("a", "b"))
        at = datetime(2026, 11, 2, 12, minute, tzinfo=UTC)
        return TaskChanged(task="t", task_revision=spec.revision, spec=spec, occurred_at=at)

    replayed = {catalog.HEADER_ONLY: "gateway", catalog.HEADER_REPLAYED: "1"}
    async with TestKafkaBroker(broker) as test:
        await test.publish(task("corrected", 5), "tasks.changed.v1")
        await test.publish(task("broken", 3), "tasks.changed.v1", headers=replayed)
        assert (await table.wait_for("t")).spec.system_prompt == "corrected"
        await test.publish(task("corrected again", 7), "tasks.changed.v1", headers=replayed)
    assert (await table.wait_for("t")).spec.system_prompt == "corrected again"
    assert shown == ["corrected", *["broken"] * keeps_all, "corrected again"]


async def test_a_replay_into_a_compacted_topic_takes_the_place_of_no_value() -> None:
    """All services but one skip it: once the topic is compacted they would have no value at all."""
    sent: dict[str, bytes] = {}

    class Producer:
        async def send_and_wait(self, topic: str, value: bytes, key: bytes, headers: object) -> None:
            sent[topic] = key

    for topic in ("tasks.changed.v1", "feedback.given.v1"):
        letter = DeadLetter(offset=7, key=b"t", value=b"{}", error="e", headers={catalog.HEADER_TOPIC: topic})
        await send_again(Producer(), letter, "prediction_log" if "feedback" in topic else "gateway")
    assert sent == {"tasks.changed.v1": b"t|replayed|gateway", "feedback.given.v1": b"t"}
    headers = {catalog.HEADER_TOPIC: "tasks.changed.v1"}
    again = DeadLetter(offset=9, key=b"t|replayed|gateway", value=b"{}", error="e", headers=headers)
    await send_again(Producer(), again, "gateway")
    assert sent["tasks.changed.v1"] == b"t|replayed|gateway", "of several replays the last one stays"


async def test_a_value_of_a_table_is_shown_again_until_what_it_is_shown_to_is_there(tmp_path: Path) -> None:
    """Nothing redelivers it before the next start: a database that is away for a while would lack it until then."""
    broker = KafkaBroker("nowhere:9092")
    settings = Settings(home=tmp_path)
    calls, stored = 0, list[str]()

    async def save(event: TaskChanged) -> None:
        nonlocal calls
        calls += 1
        if calls <= 2 * ATTEMPTS:
            raise DependencyUnavailable("the database is away")
        stored.append(event.task)

    table = Consumers(broker, "dataset_builder", settings).table(TaskChanged, save)
    spec = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="p")
    async with TestKafkaBroker(broker) as test:
        await test.publish(TaskChanged(task="t", task_revision=spec.revision, spec=spec), "tasks.changed.v1")
    assert (stored, calls) == (["t"], 2 * ATTEMPTS + 1)
    await table.wait_until_read({TopicPartition("tasks.changed.v1", 0): 1})


async def test_a_service_cannot_publish_or_consume_what_the_catalog_does_not_give_it() -> None:
    broker = KafkaBroker("nowhere:9092")
    with pytest.raises(ValueError, match="not a producer"):
        await Publisher(broker, "shadow").publish(feedback())

    async def handler(event: RequestObserved) -> None: ...

    with pytest.raises(ValueError, match="not a consumer"):
        Consumers(broker, "trainer", Settings()).on(RequestObserved, handler)
