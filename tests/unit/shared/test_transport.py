"""What the transport promises every service, on FastStream's in-memory broker."""

from __future__ import annotations

from typing import Any

import pytest
from faststream.kafka import KafkaBroker, KafkaMessage, TestKafkaBroker

from schemas import deadletters as dl
from schemas.predictions import FeedbackGiven, RequestObserved
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from shared.delivery import Delivery, Place
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.settings import Settings
from shared.transport import Consumers, Publisher

TOPIC = "feedback.given.v1"


def feedback(number: int = 1) -> FeedbackGiven:
    return FeedbackGiven(
        task="support-desk", task_revision="r1", prediction_id=f"p{number}", kind="thumbs", positive=False
    )


class Stage:
    """A broker with one consumer of feedback and a look at its dead letters."""

    def __init__(self) -> None:
        self.broker = KafkaBroker("nowhere:9092")
        settings = Settings(retry_base_seconds=0.001, retry_attempts=4)
        self.consumers = Consumers(self.broker, "prediction_log", settings)
        self.seen: list[FeedbackGiven] = []
        self.letters: list[tuple[bytes, dict[str, str]]] = []

        @self.broker.subscriber(dl.dead_letter_topic("prediction_log"), group_id="test", decoder=self._as_is)
        async def bury(body: Any, message: KafkaMessage) -> None:
            self.letters.append((message.raw_message.value, message.headers))

    @staticmethod
    async def _as_is(message: KafkaMessage) -> Any:
        return message.body


async def test_an_event_reaches_its_handler() -> None:
    stage = Stage()

    async def handler(event: FeedbackGiven) -> None:
        stage.seen.append(event)

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        event = feedback()
        await Publisher(stage.broker, "gateway").publish(event)
    assert stage.seen == [event]
    assert stage.letters == []


@pytest.mark.parametrize("poison", [b"{not json", b"", b"[]", b'{"task": "support-desk"}', b"\xff\xfe"])
async def test_a_poison_message_goes_to_the_dead_letters_and_the_next_is_handled(poison: bytes) -> None:
    stage = Stage()

    async def handler(event: FeedbackGiven) -> None:
        stage.seen.append(event)

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await stage.broker.publish(poison, TOPIC, key=b"k", headers={"content-type": "application/json"})
        await Publisher(stage.broker, "gateway").publish(feedback())
    (letter,) = stage.letters
    assert letter[0] == poison
    assert letter[1][dl.HEADER_TOPIC] == TOPIC
    assert "InvalidMessage" in letter[1][dl.HEADER_ERROR]
    assert len(stage.seen) == 1


async def test_a_handler_is_tried_again_while_a_dependency_is_away() -> None:
    stage = Stage()
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


async def test_a_dependency_that_stays_away_is_redelivered_and_never_buried() -> None:
    stage = Stage()

    async def handler(event: FeedbackGiven) -> None:
        raise DependencyUnavailable("the database is away")

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        with pytest.raises(DependencyUnavailable):
            await Publisher(stage.broker, "gateway").publish(feedback())
    assert stage.letters == []


async def test_a_bug_is_tried_three_times_and_then_buried_with_its_error() -> None:
    stage = Stage()
    tries = 0

    async def handler(event: FeedbackGiven) -> None:
        nonlocal tries
        tries += 1
        raise KeyError("oops")

    stage.consumers.on(FeedbackGiven, handler)
    async with TestKafkaBroker(stage.broker):
        await Publisher(stage.broker, "gateway").publish(feedback())
    assert tries == 3
    assert "KeyError" in stage.letters[0][1][dl.HEADER_ERROR]


async def test_in_a_batch_only_the_bad_event_is_buried() -> None:
    stage = Stage()

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


async def test_what_a_handler_is_not_given_is_passed_over_by_name() -> None:
    stage, passed = Stage(), []

    async def handler(deliveries: list[Delivery[FeedbackGiven]]) -> None:
        stage.seen.extend(d.event for d in deliveries)

    async def passed_over(place: Place) -> None:
        passed.append(place.topic)

    stage.consumers.on_batch(FeedbackGiven, handler, on_passed_over=passed_over)
    async with TestKafkaBroker(stage.broker):
        await stage.broker.publish(b"{broken", TOPIC)
        again = feedback().model_dump_json().encode()
        await stage.broker.publish(again, TOPIC, headers={dl.HEADER_ONLY: "failure_miner"})
        await stage.broker.publish(again, TOPIC, headers={dl.HEADER_ONLY: "prediction_log"})
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
