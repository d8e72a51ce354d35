"""The scheduler on the real broker and database: one cycle of a task, from file to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deploy.devstack.ports import take_ports
from schemas.cycles import CycleFinished, CycleStarted, StepFailed
from services.scheduler.clients import KafkaFenceReader
from services.scheduler.domain import CycleEnd, ScheduledRun, cycle_finished
from services.scheduler.main import MIGRATIONS, NAME, build
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from shared.errors import DependencyUnavailable
from shared.kafka.broker import build_broker
from shared.kafka.publisher import Publisher
from shared.service import running
from shared.settings import Settings
from shared.storage.database import build_engine
from shared.storage.migration import migrate
from tests.integration.gateway_process import read_topic
from tests.integration.publishing import publish
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SELDOM = "0 0 29 2 *"
"""When the cron of a task whose cycles a test starts itself is due: else one begins on a Monday at three."""


@pytest.fixture
def task() -> str:
    """A task of its own for each test: they share the stack."""
    return f"sched-{uuid4().hex[:8]}"


@pytest.fixture
async def cycles(stack_settings: Settings) -> AsyncIterator[PostgresCycleStore]:
    await migrate(stack_settings, NAME, MIGRATIONS)
    engine = build_engine(stack_settings, NAME)
    yield PostgresCycleStore(engine)
    await engine.dispose()


def started(task: str, at: datetime = NOON) -> CycleStarted:
    return CycleStarted(
        task=task, task_revision="r", cycle_id=f"{task}-{at:%H%M%S}", occurred_at=at, trigger="command", data_cutoff=at
    )


async def test_the_database_lets_one_cycle_of_a_task_run(cycles: PostgresCycleStore, task: str) -> None:
    first = started(task)
    tries = [cycles.start(started(task, NOON + timedelta(seconds=n)), 5) for n in range(1, 6)]
    assert await cycles.start(first, 5)
    assert not any(await asyncio.gather(*tries))
    finished = cycle_finished(first, CycleEnd("failed", "why"), NOON, uuid4())
    assert finished not in await cycles.unannounced_ends()
    assert await cycles.finish(finished)
    assert finished in await cycles.unannounced_ends()
    assert first not in await cycles.unannounced(), "it need not begin"
    await cycles.save_end_announced(str(first.cycle_id))
    assert finished not in await cycles.unannounced_ends()
    assert await cycles.finish(finished)
    for ended_by in (uuid4(), None):
        assert not await cycles.finish(finished.model_copy(update={"ended_by": ended_by}))
    assert await cycles.start(started(task, NOON + timedelta(seconds=9)), 5)


async def test_a_cycle_is_stored_as_it_was(cycles: PostgresCycleStore, task: str) -> None:
    event = started(task)
    name = str(event.cycle_id)
    await cycles.start(event, 7)
    assert event in await cycles.unannounced()
    await cycles.save_announced(name)
    assert event not in await cycles.unannounced()
    await cycles.enter_step(name, "training", NOON + timedelta(minutes=2))
    await cycles.enter_step(name, "dataset", NOON + timedelta(minutes=3))
    await cycles.save_progress(name, NOON + timedelta(minutes=5))
    await cycles.save_progress(name, NOON + timedelta(minutes=4))
    await cycles.save_late_step(name, "training")
    await cycles.save_progress(name, NOON + timedelta(minutes=5))  # Redelivered.
    await cycles.save_waiting(name, True)
    cycle = await cycles.get(name)
    assert cycle is not None
    assert (cycle.started, cycle.step, cycle.late_step, cycle.timeout_minutes) == (event, "training", "training", 7)
    assert cycle.waits
    assert cycle.step_since == NOON + timedelta(minutes=2)
    assert cycle.progress_at == NOON + timedelta(minutes=5)


async def test_a_late_step_may_be_reported_again_once_it_has_progressed(cycles: PostgresCycleStore, task: str) -> None:
    name = str(started(task).cycle_id)
    await cycles.start(started(task), 7)
    late: list[str | None] = []
    for minutes in (0, 1, 1, 2):
        await cycles.save_late_step(name, "failures")
        await cycles.save_progress(name, NOON + timedelta(minutes=minutes))
        cycle = await cycles.get(name)
        assert cycle is not None
        late.append(cycle.late_step)
    assert late == ["failures", None, "failures", None], "only what is new ends a silence"


async def test_the_last_scheduled_run_is_stored(cycles: PostgresCycleStore, task: str) -> None:
    assert await cycles.last_run(task) is None
    for minute in (1, 2):
        await cycles.save_run(task, ScheduledRun("0 3 * * 1", NOON + timedelta(minutes=minute)))
    assert await cycles.last_run(task) == ScheduledRun("0 3 * * 1", NOON + timedelta(minutes=2))


async def test_a_restored_database_has_the_cycles_and_ends_that_were_announced_since(
    stack_settings: Settings, cycles: PostgresCycleStore, task: str
) -> None:
    """Ended ones were running for ever, and held up the next; those that were started since were unknown."""
    first, second, third, fourth = (started(task, NOON + timedelta(hours=n)) for n in range(4))
    await cycles.start(first, 5)  # All that the backup has.
    await cycles.save_announced(str(first.cycle_id))
    await cycles.save_run(task, ScheduledRun("0 * * * *", NOON))
    promoted = cycle_finished(first, CycleEnd("promoted", "wealth 1204", "desk-1"), NOON, uuid4())
    stopped = cycle_finished(third, CycleEnd("failed", "stopped"), NOON, None)
    await publish(stack_settings, NAME, first, promoted, second, third, stopped, fourth)

    for _ in range(2):
        await started_once(stack_settings)
        running = {cycle.started: cycle.step for cycle in await cycles.running() if cycle.started.task == task}
        assert running == {second: "rollout", fourth: "failures"}
        assert [end for end in await cycles.unannounced_ends() if end.task == task] == []
    assert not await cycles.finish(stopped.model_copy(update={"ended_by": uuid4()})), "it has ended"
    for end in (promoted, stopped):
        assert await cycles.finish(end), "what ended it comes again"
    assert await cycles.last_run(task) == ScheduledRun("0 * * * *", fourth.occurred_at)
    await cycles.enter_step(str(fourth.cycle_id), "training", NOON)
    await started_once(stack_settings)
    stored = await cycles.get(str(fourth.cycle_id))
    assert stored is not None
    assert stored.step == "training"


async def started_once(settings: Settings) -> None:
    """All that the scheduler does before it reads and decides anything."""
    service = build(SchedulerSettings.load(home=settings.home))
    for hook in service.prepare:
        await hook()
    for hook in service.close:
        await hook()


async def test_the_fence_names_every_partition_of_the_inputs(stack_settings: Settings) -> None:
    fence = await KafkaFenceReader(stack_settings).fence()
    counts = {topic: sum(part.topic == topic for part in fence) for topic in {part.topic for part in fence}}
    assert counts == {
        "predictions.logged.v1": 8, "feedback.given.v1": 4, "corrections.submitted.v1": 4, "subjects.forgotten.v1": 1,
    }  # fmt: skip


async def test_without_a_broker_there_is_no_fence() -> None:
    with pytest.raises(DependencyUnavailable):
        await KafkaFenceReader(Settings(kafka="127.0.0.1:1")).fence()


@asynccontextmanager
async def scheduler(stack_settings: Settings, tasks: Path, port: int) -> AsyncIterator[httpx.AsyncClient]:
    settings = SchedulerSettings.load(home=stack_settings.home, scheduler_tasks=tasks, scheduler_port=port)
    patient = httpx.AsyncHTTPTransport(retries=8)  # The port opens a moment after the start.
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS, transport=patient)
    async with running([build(settings)]), client:
        yield client


async def events_of(settings: Settings, topic: str, task: str) -> list[bytes]:
    """All records of a task that are on a topic now."""
    return [value for key, value in await read_topic(settings, topic) if key == task.encode()]


async def test_a_cycle_runs_from_its_file_to_its_end_across_a_restart(
    stack_settings: Settings, task: str, tmp_path: Path
) -> None:
    (tmp_path / f"{task}.yaml").write_text(
        f"name: {task}\nkind: classification\nsystem_prompt: p\nlabels: [a, b]\ncron: {SELDOM}\n"
    )
    (tmp_path / "broken.yaml").write_text("name: [\n")
    (port,) = take_ports(1)

    async with scheduler(stack_settings, tmp_path, port) as client:

        async def listed() -> Any:
            answer = (await client.get("/api/tasks")).json()
            return {item["name"]: item for item in answer["tasks"]}.get(task)

        await until(listed)
        assert "broken.yaml" in (await client.get("/api/tasks")).json()["broken"]
        answer = await client.post("/api/cycles", json={"task": task})
        assert answer.status_code == 202
        cycle_id = answer.json()["cycle_id"]
        assert (await client.post("/api/cycles", json={"task": task})).status_code == 409

    (value,) = await events_of(stack_settings, "cycles.started.v1", task)
    assert CycleStarted.model_validate_json(value).fence

    broker = build_broker(stack_settings, "trainer")
    await broker.start()
    failure = StepFailed(
        task=task, task_revision="r", cycle_id=cycle_id, service="trainer", step="training", reason="no", way_out="-"
    )
    await Publisher(broker, "trainer").publish(failure)
    await broker.stop()

    async with scheduler(stack_settings, tmp_path, port):
        (value, *again) = await until(lambda: events_of(stack_settings, "cycles.finished.v1", task))
    finished = CycleFinished.model_validate_json(value)
    assert (finished.cycle_id, finished.outcome, finished.reason) == (cycle_id, "failed", "trainer: no")
    assert again == []
