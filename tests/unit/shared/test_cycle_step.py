"""A step of a cycle: it awaits its inputs up to the fence, runs once, and publishes its outcome or its failure."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.base import Event
from schemas.cycles import CycleStarted, PartitionFence, StepFailed
from schemas.failures import FailuresClustered
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from shared.cycle_step import CycleStep, current_spec, cycle_spec
from shared.errors import DependencyUnavailable, InvalidMessage, StepImpossible, StepSkipped
from shared.jobs import Job, JobProgress
from shared.kafka import latest_by_key
from shared.kafka.delivery import TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.settings import Settings
from tests.waiting import until

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
PARTITION = TopicPartition("tasks.changed.v1", 0)
READ, OTHER = "predictions.logged.v1", "corrections.submitted.v1"
STEP = CycleStep("failure_miner", "failures", inputs=(READ,))
SPEC = TaskSpec(name="desk", kind=TaskKind.GENERATION, system_prompt="p")


class Cycle:
    """A step's store, publisher and work, all in memory."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Event] = {}
        self.next_offset = 0
        self.published: list[Event] = []
        self.error: Exception | None = None
        self.runs = 0

    async def outcome(self, cycle_id: str) -> Event | None:
        return self.outcomes.get(cycle_id)

    async def unread(self, fence: Sequence[PartitionFence]) -> list[PartitionFence]:
        return [part for part in fence if self.next_offset < part.offset]

    async def publish(self, event: Event) -> None:
        self.published.append(event)

    async def save(self, event: Event) -> None:
        self.outcomes[str(event.cycle_id)] = event

    async def work(self, event: CycleStarted) -> Event:
        self.runs += 1
        if self.error is not None:
            raise self.error
        return FailuresClustered(
            task=event.task, task_revision=event.task_revision, cycle_id=event.cycle_id, suspects=0, noise=0, modes=(),
            data_cutoff=NOON, fence=event.fence,
        )  # fmt: skip

    async def run(self, cycle_id: str | None = "c1") -> None:
        await STEP.run(started(cycle_id), self, self, self.work, self.save)


def started(cycle_id: str | None = "c1") -> CycleStarted:
    return CycleStarted(
        task="desk", task_revision=SPEC.revision, cycle_id=cycle_id, trigger="command", data_cutoff=NOON,
        occurred_at=NOON, fence=tuple(PartitionFence(topic=topic, partition=2, offset=5) for topic in (READ, OTHER)),
    )  # fmt: skip


async def test_a_step_awaits_its_own_inputs_up_to_the_fence() -> None:
    cycle = Cycle()
    with pytest.raises(DependencyUnavailable) as caught:
        await cycle.run()
    assert READ in caught.value.reason
    assert OTHER not in caught.value.reason
    assert (cycle.runs, cycle.published) == (0, [])
    cycle.next_offset = 5
    await cycle.run()
    assert isinstance(cycle.published[0], FailuresClustered)


@pytest.mark.parametrize("error", [None, StepImpossible("too few", "collect more"), KeyError("bug")])
async def test_a_redelivery_publishes_the_first_outcome_without_running_again(error: Exception | None) -> None:
    cycle = Cycle()
    cycle.next_offset, cycle.error = 5, error
    await cycle.run()
    cycle.error = None
    await cycle.run()
    assert cycle.published[0] == cycle.published[1]
    assert cycle.runs == 1


async def test_a_failed_step_says_why_and_what_to_do() -> None:
    cycle = Cycle()
    cycle.next_offset = 5
    for error in (StepImpossible("too few " + "x" * 5_000, "collect more"), ValueError()):
        cycle.error = error
        await STEP.run(started(), cycle, cycle, cycle.work)
    impossible, broken = cycle.published
    assert isinstance(impossible, StepFailed)
    assert isinstance(broken, StepFailed)
    assert (impossible.reason[:7], len(impossible.reason), impossible.way_out) == ("too few", 4_000, "collect more")
    assert (broken.reason, broken.service, broken.step) == ("ValueError", "failure_miner", "failures")
    assert "log of failure_miner" in broken.way_out
    assert impossible.event_id == broken.event_id


async def test_a_step_with_too_little_new_is_skipped_and_a_stopped_one_names_its_report() -> None:
    cycle = Cycle()
    cycle.next_offset = 5
    for error in (StepSkipped("3 new", "wait"), StepImpossible("noisy", "review", report="/store/inspections/c1")):
        cycle.error = error
        await STEP.run(started(), cycle, cycle, cycle.work)
    skipped, stopped = cycle.published
    assert isinstance(skipped, StepFailed)
    assert isinstance(stopped, StepFailed)
    assert (skipped.skipped, skipped.reason, skipped.report) == (True, "3 new", None)
    assert (stopped.skipped, stopped.report) == (False, "/store/inspections/c1")


async def test_a_step_that_a_job_does_publishes_nothing_until_the_jobs_outcome_is_stored() -> None:
    cycle = Cycle()
    cycle.next_offset = 5

    async def submit(event: CycleStarted) -> None:
        cycle.runs += 1

    await STEP.run(started(), cycle, cycle, submit, cycle.save)
    assert (cycle.runs, cycle.outcomes, cycle.published) == (1, {}, [])
    outcome = await cycle.work(started())
    await cycle.save(outcome)
    await STEP.run(started(), cycle, cycle, submit, cycle.save)
    assert cycle.published == [outcome]


async def test_a_dependency_that_is_away_fails_no_step() -> None:
    cycle = Cycle()
    cycle.next_offset, cycle.error = 5, DependencyUnavailable("no lake")
    with pytest.raises(DependencyUnavailable):
        await cycle.run()
    assert (cycle.outcomes, cycle.published) == ({}, [])


async def test_an_event_without_a_cycle_is_invalid() -> None:
    with pytest.raises(InvalidMessage, match=r"cycles\.started"):
        await Cycle().run(cycle_id=None)


async def test_a_task_that_nobody_applied_is_awaited_and_then_invalid() -> None:
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    await tasks.read_to({})
    with pytest.raises(InvalidMessage, match="desk"):
        await current_spec(started(), tasks, NOON + timedelta(minutes=1))


async def test_a_task_of_a_topic_that_is_not_read_yet_is_not_missing_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its cycles would become dead letters, and hold up all later ones."""
    monkeypatch.setattr(latest_by_key, "READ_SECONDS", 0.0)
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    reading = asyncio.create_task(tasks.read_to({PARTITION: 1}))
    waiting = asyncio.create_task(current_spec(started(), tasks, NOON + timedelta(minutes=1)))
    await asyncio.sleep(0)
    await tasks.put("desk", TaskChanged(task="desk", task_revision=SPEC.revision, spec=SPEC))
    await tasks.advance(0, 1)
    assert await waiting == SPEC
    await reading


async def test_a_task_that_changed_since_its_cycle_started_makes_the_step_impossible() -> None:
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    newer = SPEC.model_copy(update={"system_prompt": "other"})
    await tasks.put("desk", TaskChanged(task="desk", task_revision=newer.revision, spec=newer))
    assert await current_spec(started(), tasks, NOON) == newer
    with pytest.raises(StepImpossible, match="changed to revision"):
        await cycle_spec(started(), tasks, NOON)


class Log:
    """The broker's side of a table: a partition that ends at offset 5."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first_without_record: int = 5) -> None:
        self.away = False
        self.asked: list[int] = []
        self._first_without_record = first_without_record
        monkeypatch.setattr(latest_by_key, "READ_SECONDS", 0.05)
        for name in ("describe_topics", "end_offsets", "has_records"):
            monkeypatch.setattr(latest_by_key, name, getattr(self, name), raising=False)

    async def describe_topics(self, settings: Settings, names: Sequence[str]) -> dict[str, SimpleNamespace]:
        return {name: SimpleNamespace(partitions=[0]) for name in names}

    async def end_offsets(
        self, settings: Settings, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 5)

    async def has_records(self, settings: Settings, partition: TopicPartition, start: int) -> bool:
        if self.away:
            raise DependencyUnavailable("the broker is away")
        self.asked.append(start)
        return start < self._first_without_record


async def test_a_table_of_a_broker_that_goes_away_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted by a retention, or announced for all tasks, would be by a part of them."""
    Log(monkeypatch).away = True
    tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    with pytest.raises(DependencyUnavailable, match="away"):
        await tasks.read_to_end(Settings())
    assert not tasks.is_read


async def test_a_table_whose_consumer_is_behind_is_not_read_however_long_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker answers others meanwhile: a process that loads a model, say, has no time to read."""
    log, tasks = Log(monkeypatch), LatestByKey[TaskChanged]("tasks.changed.v1")
    await tasks.advance(0, 3)
    reading = asyncio.create_task(tasks.read_to_end(Settings()))
    await until(lambda: len(log.asked) > 1 or reading.done())
    assert not tasks.is_read
    assert set(log.asked) == {3}
    await tasks.advance(0, 5)
    await reading
    assert tasks.is_read


async def test_a_table_is_read_where_no_record_is_left_before_the_end_of_its_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, tasks = Log(monkeypatch, first_without_record=4), LatestByKey[TaskChanged]("tasks.changed.v1")
    await tasks.advance(0, 4)
    await tasks.read_to_end(Settings())
    assert (tasks.is_read, log.asked) == (True, [4])


def test_losses_of_a_training_travel_with_its_progress(tmp_path: Path) -> None:
    job, step = Job("a", tmp_path), CycleStep("trainer", "training")
    before, after = (
        step.progressed(started(), job, JobProgress(done=3, total=9, message="m", loss=0.5, validation_loss=held_out))
        for held_out in (None, 0.75)
    )
    assert (after.done, after.loss, after.validation_loss) == (3, 0.5, 0.75)
    assert before.event_id != after.event_id
