"""prediction_log's background work: hours are published until the broker has them, expired days are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas.base import Event, utc_now
from schemas.catalog import topic_of
from schemas.lake import PREDICTIONS
from schemas.predictions import PredictionsRolledUp, SubjectForgotten
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.prediction_log.handlers import Handlers
from services.prediction_log.maintenance.maintenance import Maintenance
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.storage import DeltaLake
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from tests.unit.prediction_log.lake_rows import NOON, TASK, ids, prediction, write
from tests.unit.shared.storage.kept_media import upload


class Broker:
    """Collects published events, or is unavailable; provides the table of tasks."""

    def __init__(self) -> None:
        self.is_unavailable = False
        self.events: list[PredictionsRolledUp] = []
        self.tasks: LatestByKey[TaskChanged] = LatestByKey(topic_of(TaskChanged).name)
        self.batches: dict[type[Event], Any] = {}

    async def publish(self, event: Event) -> None:
        if self.is_unavailable:
            raise DependencyUnavailable("the broker is unavailable")
        assert isinstance(event, PredictionsRolledUp)
        self.events.append(event)

    def on_batch(self, event: type[Event], handler: Any, batch: Any = None, **options: Any) -> None:
        assert options["resume"], "the lake has the offsets of every topic"
        self.batches[event] = handler

    def table(self, event: type[TaskChanged]) -> LatestByKey[TaskChanged]:
        return self.tasks


async def no_ids(names: Sequence[str]) -> dict[str, str]:
    return {}


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def handlers(tmp_path: Path, broker: Broker) -> Handlers:
    settings = PredictionLogSettings(home=tmp_path, lake=str(tmp_path))
    made = Handlers(settings, DeltaLake(str(tmp_path)), broker, no_ids)
    made.subscribe(broker)  # type: ignore[arg-type]
    return made


async def test_an_hour_is_published_once_and_again_when_it_changed(
    tmp_path: Path, broker: Broker, handlers: Handlers
) -> None:
    await handlers.roll_up_once()
    write(tmp_path, PREDICTIONS, [prediction("p0")])
    for _ in range(2):
        await handlers.roll_up_once()
    write(tmp_path, PREDICTIONS, [prediction("late", NOON + timedelta(minutes=59))])
    await handlers.roll_up_once()
    assert [(event.hour, event.predictions) for event in broker.events] == [(NOON, 1), (NOON, 2)]


async def test_an_hour_that_could_not_be_published_is_published_later(
    tmp_path: Path, broker: Broker, handlers: Handlers
) -> None:
    write(tmp_path, PREDICTIONS, [prediction("p0"), prediction("p1", NOON + timedelta(hours=1))])
    broker.is_unavailable = True
    with pytest.raises(DependencyUnavailable):
        await handlers.roll_up_once()
    broker.is_unavailable = False
    await handlers.roll_up_once()
    assert [event.hour for event in broker.events] == [NOON, NOON + timedelta(hours=1)]


async def test_an_hour_that_cannot_be_counted_holds_up_no_other(
    tmp_path: Path, broker: Broker, handlers: Handlers
) -> None:
    """The roll-ups of all tasks ended with the first one whose file a power cut had left shorter."""
    write(tmp_path, PREDICTIONS, [prediction("p0")])
    (damaged,) = (tmp_path / PREDICTIONS).rglob("*.parquet")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    hours = [NOON + timedelta(days=days) for days in (1, 2)]
    write(tmp_path, PREDICTIONS, [prediction(f"p{hour.day}", hour) for hour in hours])
    for _ in range(2):
        with pytest.raises(DependencyUnavailable, match="was not counted"):
            await handlers.roll_up_once()
    assert [event.hour for event in broker.events] == hours
    damaged.write_bytes(whole)
    await handlers.roll_up_once()
    assert [event.hour for event in broker.events] == [*hours, NOON]


async def test_rows_are_deleted_after_the_current_retention_of_their_task(
    tmp_path: Path, broker: Broker, handlers: Handlers
) -> None:
    now = utc_now()
    for task in ("short", "long", "unknown"):
        write(tmp_path, PREDICTIONS, [prediction(f"{task}-{d}", now - timedelta(days=d), task=task) for d in (1, 9)])
    for task, days in (("short", 100), ("short", 7), ("long", None)):
        spec = TaskSpec(name=task, kind=TaskKind.GENERATION, system_prompt="p", retention_days=days)
        await broker.tasks.put(task, TaskChanged(task=task, task_revision=spec.revision, spec=spec))
    await broker.tasks.read_to({})
    await handlers.maintain_once()
    assert ids(tmp_path, PREDICTIONS) == ["long-1", "long-9", "short-1", "unknown-1", "unknown-9"]


async def test_nothing_is_deleted_by_a_retention_that_may_have_a_newer_one_behind_it(
    tmp_path: Path, broker: Broker, handlers: Handlers
) -> None:
    old = utc_now() - timedelta(days=9)
    write(tmp_path, PREDICTIONS, [prediction("old", old)])
    file = upload(tmp_path / "artifacts", TASK, "ann", old)
    for days in (7, 90):
        spec = TaskSpec(name=TASK, kind=TaskKind.GENERATION, system_prompt="p", retention_days=days)
        await broker.tasks.put(TASK, TaskChanged(task=TASK, task_revision=spec.revision, spec=spec))
        await handlers.maintain_once()  # At a start, when the topic is read this far.
    await broker.tasks.read_to({})
    await handlers.maintain_once()
    assert ids(tmp_path, PREDICTIONS) == ["old"]
    assert file.exists()


async def test_a_batch_of_erasure_requests_is_applied(tmp_path: Path, broker: Broker, handlers: Handlers) -> None:
    write(tmp_path, PREDICTIONS, [prediction(f"p-{who}", user_hash=who) for who in ("ann", "bob", "eve")])
    events = [
        SubjectForgotten(task=TASK, task_revision="r1", subject_hash=who, occurred_at=NOON) for who in ("ann", "bob")
    ]
    topic = topic_of(SubjectForgotten).name
    await broker.batches[SubjectForgotten]([Delivery(event, topic, 0, n, {}) for n, event in enumerate(events)])
    assert ids(tmp_path, PREDICTIONS) == ["p-eve"]


async def test_kept_media_are_deleted_after_the_retention_of_their_task_whether_the_lake_is_there_or_not(
    tmp_path: Path, broker: Broker, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise DependencyUnavailable("the lake is away")

    now = utc_now()
    for task, days in (("short", 7), ("long", None)):
        spec = TaskSpec(name=task, kind=TaskKind.GENERATION, system_prompt="p", retention_days=days)
        await broker.tasks.put(task, TaskChanged(task=task, task_revision=spec.revision, spec=spec))
    await broker.tasks.read_to({})
    for user in ("ann", "anonymous"):
        files = {
            (task, days): upload(tmp_path / "artifacts", task, user, now - timedelta(days=days))
            for task in ("short", "long", "unknown") for days in (1, 9)
        }  # fmt: skip
        monkeypatch.setattr(Maintenance, "run", unavailable)
        with pytest.raises(DependencyUnavailable, match="the lake is away"):
            await handlers.maintain_once()
        assert [name for name, file in files.items() if not file.exists()] == [("short", 9)]


async def test_forgetting_a_person_deletes_their_kept_media_and_what_is_uploaded_late(
    tmp_path: Path, broker: Broker, handlers: Handlers
) -> None:
    before, after = NOON - timedelta(minutes=1), NOON + timedelta(minutes=1)
    files = {
        (who, at): upload(tmp_path / "artifacts", TASK, who, at) for who in ("ann", "bob") for at in (before, after)
    }
    event = SubjectForgotten(task=TASK, task_revision="r1", subject_hash="ann", occurred_at=NOON)
    await broker.batches[SubjectForgotten]([Delivery(event, topic_of(SubjectForgotten).name, 0, 0, {})])
    assert [name for name, file in files.items() if not file.exists()] == [("ann", before)]
    assert not upload(tmp_path / "artifacts", TASK, "ann", NOON - timedelta(days=3)).exists()
