"""What the transport promises every service, on FastStream's in-memory broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faststream.kafka import KafkaBroker, KafkaMessage, TestKafkaBroker

from schemas import catalog
from schemas.predictions import FeedbackGiven, RequestObserved
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from shared.errors import DependencyUnavailable, InvalidMessage, MustStop
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.dead_letters import DEAD_LETTER_KEY, DeadLetter, decrypt_dead_letter
from shared.kafka.delivery import Delivery, RecordPosition
from shared.kafka.publisher import DeadLetterPublisher, Publisher
from shared.privacy.encryption import load_cipher
from shared.settings import Settings

TOPIC = "feedback.given.v1"


def feedback(number: int = 1, text: str | None = None) -> FeedbackGiven:
    return FeedbackGiven(
        task="support-desk", task_revision="r1", prediction_id=f"p{number}", kind="thumbs", positive=False, text=text
    )


class Stage:
    """A broker with one consumer of feedback and a look at its dead letters."""

    def __init__(self, home: Path) -> None:
        self.broker = KafkaBroker("nowhere:9092")
        self.settings = Settings(home=home, retry_base_seconds=0.001, retry_attempts=4)
        self._cipher = load_cipher(self.settings.secrets_folder, DEAD_LETTER_KEY)
        self.consumers = Consumers(self.broker, "prediction_log", self.settings)
        self.seen: list[FeedbackGiven] = []
        self.letters: list[DeadLetter] = []
        self.lying: list[bytes] = []

        @self.broker.subscriber(catalog.dead_letter_topic("prediction_log"), group_id="test", decoder=self._as_is)
        async def dead_letter(body: Any, message: KafkaMessage) -> None:
            raw = message.raw_message
            self.lying.append(raw.value + b"".join(value for _, value in raw.headers))
            self.letters.append(decrypt_dead_letter(self._cipher, 0, raw.key, raw.value, message.headers))

    @staticmethod
    async def _as_is(message: KafkaMessage) -> Any:
        return message.body


async def test_an_event_reaches_its_handler(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        stage.seen.append(event)

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        event = feedback()
        await Publisher(stage.broker, "gateway").publish(event)
    assert stage.seen == [event]
    assert stage.letters == []


@pytest.mark.parametrize("poison", [b"{not json", b"", b"[]", b'{"task": "support-desk"}', b"\xff\xfe"])
async def test_a_poison_message_goes_to_the_dead_letters_and_the_next_is_handled(tmp_path: Path, poison: bytes) -> None:
    stage = Stage(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        stage.seen.append(event)

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await stage.broker.publish(poison, TOPIC, key=b"k", headers={"content-type": "application/json"})
        await Publisher(stage.broker, "gateway").publish(feedback())
    (letter,) = stage.letters
    assert letter.value == poison
    assert letter.topic == TOPIC
    assert "InvalidMessage" in letter.error
    assert len(stage.seen) == 1


async def test_a_handler_is_tried_again_while_a_dependency_is_away(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    tries = 0

    async def handler(event: FeedbackGiven) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DependencyUnavailable("the database is away")

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await Publisher(stage.broker, "gateway").publish(feedback())
    assert tries == 3
    assert stage.letters == []


async def test_a_dependency_that_stays_away_is_redelivered_and_never_buried(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise DependencyUnavailable("the database is away")

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        with pytest.raises(DependencyUnavailable):
            await Publisher(stage.broker, "gateway").publish(feedback())
    assert stage.letters == []


async def test_a_bug_is_tried_three_times_and_then_buried_with_its_error(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    tries = 0

    async def handler(event: FeedbackGiven) -> None:
        nonlocal tries
        tries += 1
        raise KeyError("oops")

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await Publisher(stage.broker, "gateway").publish(feedback())
    assert tries == 3
    assert "KeyError" in stage.letters[0].error


async def test_neither_a_letter_nor_its_reason_can_be_read_without_the_key(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise InvalidMessage(f"unknown customer {event.text}")

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await Publisher(stage.broker, "gateway").publish(feedback(text="Ann Example"))
    assert b"Ann Example" in stage.letters[0].value
    assert stage.letters[0].error == "InvalidMessage: unknown customer Ann Example"
    assert b"Ann" not in stage.lying[0]


async def test_what_a_handler_must_stop_at_is_tried_once_and_neither_buried_nor_acknowledged(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    tries = 0

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        nonlocal tries
        tries += 1
        raise MustStop("these are another cluster's records")

    stage.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        with pytest.raises(MustStop):
            await stage.broker.publish_batch(*[feedback(n).model_dump_json().encode() for n in (1, 2)], topic=TOPIC)
    assert tries == 1
    assert stage.letters == []


async def test_a_record_that_never_came_to_lie_in_its_topic_can_be_buried(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    async with TestKafkaBroker(stage.broker):
        await DeadLetterPublisher(stage.broker, "prediction_log", stage.settings).publish(
            TOPIC, b"k", b"what was to be sent", InvalidMessage("too large")
        )
    assert (stage.letters[0].topic, stage.letters[0].value) == (TOPIC, b"what was to be sent")


async def test_in_a_batch_only_the_bad_event_is_buried(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        if any(d.event.prediction_id == "p2" for d in deliveries):
            raise InvalidMessage("p2 is wrong")
        stage.seen.extend(d.event for d in deliveries)

    stage.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        values = [feedback(n).model_dump_json().encode() for n in (1, 2, 3)]
        await stage.broker.publish_batch(*values, b"{broken", topic=TOPIC)
    assert sorted(event.prediction_id for event in stage.seen) == ["p1", "p3"]
    assert len(stage.letters) == 2


async def test_a_batch_of_which_all_are_bad_costs_one_more_try_each(tmp_path: Path) -> None:
    stage, tries = Stage(tmp_path), 0

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        nonlocal tries
        tries += 1
        raise KeyError("oops")

    stage.consumers.on_batch(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await stage.broker.publish_batch(*[feedback(n).model_dump_json().encode() for n in range(20)], topic=TOPIC)
    assert len(stage.letters) == 20
    assert tries == 3 + 20, "the group waits five minutes for this member, not for a pause after each try of each"


async def test_the_words_of_an_unforeseen_error_are_in_its_letter_and_not_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path)

    async def handler(event: FeedbackGiven) -> None:
        raise KeyError(event.text)

    stage.consumers.on(FeedbackGiven, handler)
    with caplog.at_level("DEBUG"):
        async with TestKafkaBroker(stage.broker):
            await Publisher(stage.broker, "gateway").publish(feedback(text="Ann Example"))
    assert "Ann" in stage.letters[0].error
    assert "Ann" not in caplog.text
    assert "in handler" in caplog.text, "where it arose is told"


async def test_a_bug_outside_the_handler_is_told_and_the_record_comes_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path)

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None: ...

    async def skipped(place: RecordPosition) -> None:
        raise KeyError("oops")

    stage.consumers.on_batch(FeedbackGiven, handler, on_skipped=skipped)
    async with TestKafkaBroker(stage.broker):
        with pytest.raises(KeyError):
            await stage.broker.publish(b"{broken", TOPIC)
    assert "redelivered: KeyError" in caplog.text


async def test_what_a_decoder_stumbles_over_is_buried_whatever_it_raises(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        stage.seen.extend(d.event for d in deliveries)

    def decode(value: bytes) -> FeedbackGiven:
        if value == b"deep":
            raise RecursionError
        return FeedbackGiven.model_validate_json(value)

    stage.consumers.on_batch(FeedbackGiven, handler, decode=decode)
    async with TestKafkaBroker(stage.broker):
        await stage.broker.publish_batch(b"deep", feedback().model_dump_json().encode(), topic=TOPIC)
    assert (len(stage.letters), len(stage.seen)) == (1, 1)


async def test_a_broker_that_is_not_there_is_said_to_be_away() -> None:
    settings = Settings(kafka="127.0.0.1:1")
    broker = build_broker(settings, "prediction_log")
    for _ in range(2):  # Services call it again until it is there.
        with pytest.raises(DependencyUnavailable, match=r"no Kafka broker answers at 127\.0\.0\.1:1"):
            await broker.start()
    await broker.stop()


async def test_what_a_handler_is_not_given_is_passed_over_by_name(tmp_path: Path) -> None:
    stage, passed = Stage(tmp_path), []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        stage.seen.extend(d.event for d in deliveries)

    async def skipped(place: RecordPosition) -> None:
        passed.append(place.topic)

    stage.consumers.on_batch(FeedbackGiven, handler, on_skipped=skipped)
    async with TestKafkaBroker(stage.broker):
        await stage.broker.publish(b"{broken", TOPIC)
        again = feedback().model_dump_json().encode()
        await stage.broker.publish(again, TOPIC, headers={catalog.HEADER_ONLY: "failure_miner"})
        await stage.broker.publish(again, TOPIC, headers={catalog.HEADER_ONLY: "prediction_log"})
    assert passed == [TOPIC, TOPIC]
    assert len(stage.seen) == 1


async def test_a_table_holds_the_last_value_of_each_key() -> None:
    broker = KafkaBroker("nowhere:9092")
    table = Consumers(broker, "gateway", Settings()).table(TaskChanged)

    def task(prompt: str) -> TaskChanged:
        spec = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt=prompt, labels=("a", "b"))
        return TaskChanged(task="t", task_revision=spec.revision, spec=spec)

    async with TestKafkaBroker(broker):
        publisher = Publisher(broker, "scheduler")
        await publisher.publish(task("old"))
        await publisher.publish(task("new"))
    assert (await table.wait_for("t")).spec.system_prompt == "new"
    with pytest.raises(DependencyUnavailable):
        await table.wait_for("unknown", seconds=0.01)


async def test_a_service_cannot_publish_or_consume_what_the_catalog_does_not_give_it() -> None:
    broker = KafkaBroker("nowhere:9092")
    with pytest.raises(ValueError, match="not a producer"):
        await Publisher(broker, "shadow").publish(feedback())

    async def handler(event: RequestObserved) -> None: ...

    with pytest.raises(ValueError, match="not a consumer"):
        Consumers(broker, "trainer", Settings()).on(RequestObserved, handler)
