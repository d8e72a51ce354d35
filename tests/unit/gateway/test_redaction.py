"""Which texts of an event are redacted, and that nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from schemas.base import Event, Message, Role, Variant
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved
from schemas.tasks import RedactionSettings, TaskChanged, TaskSpec
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.event_log import encode_event
from services.gateway.shipper.redaction import RecordRedactor, RefusedRecord
from services.gateway.tasks import snapshot as gateway_tasks
from services.gateway.tasks.snapshot import TaskTable
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import Redacted, Rules
from shared.spool import Record
from tests.unit.gateway.conftest import HAIKU, SUPPORT

OPEN = HAIKU.model_copy(update={"name": "open", "redaction": RedactionSettings(enabled=False)})
PLAIN = HAIKU.model_copy(update={"name": "plain", "redaction": RedactionSettings(names=False)})


@dataclass
class Swaps:
    """A redactor that turns each Maria into a Paula and records its calls."""

    asked: list[tuple[list[str], Rules]] = field(default_factory=list)
    breaks_on: str | None = None

    def redact(self, texts: Sequence[str], rules: Rules, already_redacted: Sequence[str] = ()) -> list[Redacted]:
        self.asked.append((list(texts), rules))
        if self.breaks_on is not None and any(self.breaks_on in text for text in texts):
            raise RuntimeError("no idea what this is")
        return [Redacted(t.replace("Maria", "Paula"), n := t.count("Maria"), {"name": n} if n else {}) for t in texts]

    @property
    def texts(self) -> list[str]:
        return [text for texts, _ in self.asked for text in texts]


@dataclass
class Setup:
    redactor: RecordRedactor
    swaps: Swaps
    status: ShipperStatus
    tasks: TaskTable

    async def redact(self, *events: Event) -> list[Any]:
        """The events as they are published."""
        redacted = await self.redactor.redact([encode_event(event) for event in events])
        return [record if isinstance(record, RefusedRecord) else orjson.loads(record.value) for record in redacted]


@pytest.fixture
async def setup() -> Setup:
    return await set_up(lambda swaps: swaps)


async def set_up(build: Callable[[Swaps], Swaps], cache_size: int = 100) -> Setup:
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    for spec in (SUPPORT, HAIKU, OPEN, PLAIN):
        await table.put(spec.name, TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
    swaps, status, tasks = Swaps(), ShipperStatus(), TaskTable(table)
    await tasks.read_to({})
    return Setup(RecordRedactor(tasks, lambda: build(swaps), cache_size, status), swaps, status, tasks)


def prediction(task: TaskSpec, asked: str, answer: str, system: str | None = None) -> PredictionLogged:
    messages = (
        Message(role=Role.SYSTEM, content=task.system_prompt if system is None else system),
        Message(role=Role.USER, content=asked),
    )
    return PredictionLogged(
        task=task.name, task_revision=task.revision, prediction_id="p", messages=messages, answer=answer,
        model="small", variant=Variant.BASE, latency_ms=1.0,
    )  # fmt: skip


def feedback(task: TaskSpec, text: str) -> FeedbackGiven:
    return FeedbackGiven(task=task.name, task_revision="r", prediction_id="p", kind="edited", text=text)


async def test_texts_are_redacted_and_counted_and_nothing_else_of_the_event_changes(setup: Setup) -> None:
    event = prediction(HAIKU, "I am Maria, Maria Gonzalez", "Dear Maria")
    (clean,) = await setup.redact(event)
    assert [message["content"] for message in clean["messages"]] == ["Write a haiku.", "I am Paula, Paula Gonzalez"]
    assert (clean["answer"], clean["redactions"]) == ("Dear Paula", 3)
    before = orjson.loads(event.model_dump_json())
    changed = {"messages", "answer", "redactions"}
    assert {k: v for k, v in clean.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}
    assert PredictionLogged.model_validate(clean).event_id == event.event_id
    assert setup.status.redactions == {"name": 3}


async def test_an_event_without_personal_data_stays_byte_for_byte(setup: Setup) -> None:
    record = encode_event(prediction(HAIKU, "no names here", "an old pond"))
    assert await setup.redactor.redact([record]) == [record]


async def test_the_tasks_own_prompt_and_labels_are_not_redacted(setup: Setup) -> None:
    await setup.redact(prediction(SUPPORT, "where is it", "refund"), feedback(SUPPORT, "card_lost"))
    assert setup.swaps.texts == ["where is it"]


async def test_an_applications_own_prompt_is_redacted(setup: Setup) -> None:
    (clean,) = await setup.redact(prediction(SUPPORT, "hello", "refund", system="The customer is Maria."))
    assert clean["messages"][0]["content"] == "The customer is Paula."


async def test_the_text_of_a_correction_is_redacted(setup: Setup) -> None:
    (clean,) = await setup.redact(feedback(HAIKU, "Maria sits by the pond"))
    assert (clean["text"], clean["redactions"]) == ("Paula sits by the pond", 1)


async def test_a_repeated_text_is_redacted_once_and_counted_each_time(setup: Setup) -> None:
    event = prediction(HAIKU, "I am Maria", "Dear Maria")
    for _ in range(3):
        assert [event["redactions"] for event in await setup.redact(event, event)] == [2, 2]
    assert sorted(setup.swaps.texts) == ["Dear Maria", "I am Maria"]
    assert setup.status.redactions == {"name": 12}


async def test_the_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    setup = await set_up(lambda swaps: swaps, cache_size=2)
    for text in ("one", "two", "one", "three", "one", "two"):
        await setup.redact(feedback(HAIKU, text))
    assert setup.swaps.texts == ["one", "two", "three", "two"]


async def test_each_task_has_its_own_rules(setup: Setup) -> None:
    events = [feedback(HAIKU, "Maria"), feedback(PLAIN, "Maria"), feedback(OPEN, "Maria")]
    assert (await setup.redact(*events))[2]["text"] == "Maria"
    assert [rules.names for _, rules in setup.swaps.asked] == [True, False]


async def test_observations_are_not_decoded(setup: Setup) -> None:
    observed = RequestObserved(
        task="unknown", task_revision="r", prediction_id="p", variant=Variant.BASE, status=200, latency_ms=1
    )
    record = encode_event(observed)
    assert await setup.redactor.redact([record]) == [record]


async def test_the_default_rules_hold_for_events_of_an_unknown_task(setup: Setup) -> None:
    (clean,) = await setup.redact(prediction(HAIKU.model_copy(update={"name": "new"}), "Maria", "x"))
    assert clean["messages"][1]["content"] == "Paula"


async def test_an_older_version_of_a_task_lets_no_text_through_after_a_start() -> None:
    """The topic has a version without redaction, then one with it: both must be read before the first event."""
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    tasks, partition = TaskTable(table), TopicPartition("tasks.changed.v1", 0)
    redactor = RecordRedactor(tasks, Swaps, 10, ShipperStatus())
    reading = asyncio.create_task(tasks.read_to({partition: 2}))
    waiting = asyncio.create_task(redactor.redact([encode_event(prediction(HAIKU, "Maria", "x"))]))
    off = HAIKU.model_copy(update={"redaction": RedactionSettings(enabled=False)})
    for offset, version in enumerate((off, HAIKU)):
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await table.put(version.name, TaskChanged(task=version.name, task_revision=version.revision, spec=version))
        await table.advance(0, offset + 1)
    await reading
    (record,) = await waiting
    assert isinstance(record, Record) and orjson.loads(record.value)["messages"][1]["content"] == "Paula"


async def test_a_topic_whose_last_offset_has_no_record_is_read_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_tasks, "READ_SECONDS", 0.05)
    tasks = TaskTable(LatestByKey("tasks.changed.v1"))
    async with asyncio.timeout(5):
        await tasks.read_to({TopicPartition("tasks.changed.v1", 0): 7})
        assert await tasks.latest("any") is None


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("predictions.logged.v1", b"{"), ("predictions.logged.v1", b"[]"),
        ("predictions.logged.v1", b'{"messages": ["x"]}'), ("feedback.given.v1", b'{"text": 1}'),
        ("cycles.started.v1", b"{}"),
    ],
)  # fmt: skip
async def test_an_invalid_event_is_refused_and_its_neighbours_are_not(setup: Setup, topic: str, value: bytes) -> None:
    good = encode_event(feedback(HAIKU, "Maria"))
    invalid, valid = await setup.redactor.redact([Record(topic, b"k", value), good])
    assert isinstance(invalid, RefusedRecord)
    assert invalid.record.value == value
    assert isinstance(valid, Record)


async def test_a_text_that_breaks_the_redactor_refuses_its_own_event_only(setup: Setup) -> None:
    setup.swaps.breaks_on = "curse"
    events = [feedback(HAIKU, text) for text in ("Maria 1", "Maria 2", "a curse", "Maria 3")]
    results = await setup.redact(*events)
    assert isinstance(results.pop(2), RefusedRecord)
    assert [event["text"] for event in results] == ["Paula 1", "Paula 2", "Paula 3"]


async def test_a_redactor_that_always_fails_refuses_no_event(setup: Setup) -> None:
    setup.swaps.breaks_on = ""
    with pytest.raises(DependencyUnavailable, match="the redactor fails"):
        await setup.redact(feedback(HAIKU, "Maria"))


async def test_the_redactor_is_warmed_up_when_the_first_task_redacts() -> None:
    swaps, table = Swaps(), LatestByKey[TaskChanged]("tasks.changed.v1")
    redactor = RecordRedactor(TaskTable(table), lambda: swaps, 10, ShipperStatus())
    loading = asyncio.create_task(redactor.load())
    await table.put(OPEN.name, TaskChanged(task=OPEN.name, task_revision=OPEN.revision, spec=OPEN))
    await asyncio.sleep(0.1)
    assert swaps.asked == []
    await table.put(HAIKU.name, TaskChanged(task=HAIKU.name, task_revision=HAIKU.revision, spec=HAIKU))
    await asyncio.wait_for(loading, 5.0)
    assert len(swaps.asked) == 1


async def test_building_the_redactor_is_retried() -> None:
    builds: list[Swaps] = []

    def build(swaps: Swaps) -> Swaps:
        builds.append(swaps)
        if len(builds) == 1:
            raise OSError("no model")
        return swaps

    setup = await set_up(build)
    with pytest.raises(OSError, match="no model"):
        await setup.redact(feedback(HAIKU, "Maria"))
    (clean,) = await setup.redact(feedback(HAIKU, "Maria"))
    assert clean["text"] == "Paula"


async def test_a_redacted_record_keeps_its_headers(setup: Setup) -> None:
    record = encode_event(feedback(HAIKU, "Maria"), (("traceparent", b"00-a-b-01"),))
    (clean,) = await setup.redactor.redact([record])
    assert isinstance(clean, Record)
    assert (b"Paula" in clean.value, clean.headers) == (True, record.headers)
