"""How a cycle starts, moves on, is late, and ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.base import Event
from schemas.cycles import CycleFinished, CycleStarted, Fence, PartitionFence, StepFailed, StepProgressed
from schemas.failures import FailuresClustered
from schemas.rollouts import Evidence, RolloutChanged, Stage
from schemas.tasks import TaskChanged, TaskKind, TaskSpec
from services.scheduler import task_watcher
from services.scheduler.domain import ScheduledRun
from services.scheduler.erasure import ErasureAnnouncer
from services.scheduler.handlers import Handlers
from services.scheduler.http import build_app
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from services.scheduler.task_watcher import TaskWatcher
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.storage.artifacts import ArtifactStore
from tests.database import Database

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SPEC = TaskSpec(
    name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="p", labels=("a", "b"), cron="0 * * * *",
    step_timeout_minutes=30,
)  # fmt: skip
FENCE = (PartitionFence(topic="predictions.logged.v1", partition=0, offset=7),)


class SchedulerBench:
    """The scheduler on empty tables and a clock that is set by hand, with what it published."""

    def __init__(self, folder: Path, engine: AsyncEngine) -> None:
        self.now = NOON
        self.published: list[Event] = []
        self.away = False
        self.cycles = PostgresCycleStore(engine)
        settings = SchedulerSettings(home=folder)
        self.table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
        self.tasks = TaskWatcher(settings, self, self.table, ArtifactStore(settings.artifacts_uri, folder / "cache"))
        self.rollouts: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed.v1")
        self._settings = settings
        self.restart()

    @classmethod
    async def open(cls, folder: Path, database: Database) -> SchedulerBench:
        return cls(folder, await database.engine("scheduler"))

    def restart(self) -> None:
        """Let another process go on with the cycles that are stored. The tasks are as they were."""
        settings = self._settings
        self.handlers = Handlers(settings, self.cycles, self, lambda: self.fence(), self.tasks, lambda: self.now)
        erasures = ErasureAnnouncer(self, self.rollouts, b"k" * 32, settings.tasks_folder, lambda: self.now)
        self.http = build_app(settings, self.handlers, self.cycles, self.tasks, erasures, list)

    async def publish(self, event: Event) -> None:
        if self.away:
            raise DependencyUnavailable("no broker")
        self.published.append(event)

    async def fence(self) -> Fence:
        return FENCE

    async def apply(self, spec: TaskSpec) -> None:
        await self.table.put(spec.name, TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))

    async def read(self) -> None:
        """Read the topic of tasks to its end, then their files."""
        await self.table.read_to({})
        await self.tasks.scan()

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.published if isinstance(event, kind)]

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        return await self._request("POST", path, json=body)

    async def get(self, path: str) -> httpx.Response:
        return await self._request("GET", path)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.http)
        async with httpx.AsyncClient(transport=transport, base_url="http://scheduler") as client:
            return await client.request(method, path, **options)


@pytest.fixture
async def bench(tmp_path: Path, database: Database) -> SchedulerBench:
    made = await SchedulerBench.open(tmp_path, database)
    await made.apply(SPEC)
    await made.read()
    return made


def envelope(cycle_id: str | None) -> dict[str, Any]:
    return {"task": "desk", "task_revision": SPEC.revision, "cycle_id": cycle_id}


def clustered(cycle_id: str, at: datetime = NOON) -> FailuresClustered:
    return FailuresClustered(
        **envelope(cycle_id), occurred_at=at, suspects=3, noise=0, modes=(), data_cutoff=NOON, fence=()
    )


def rollout(cycle_id: str, reached: Stage, at: datetime = NOON) -> RolloutChanged:
    return RolloutChanged(
        **envelope(cycle_id), occurred_at=at, rollout_id="r", stage=reached, primary_adapter=None,
        candidate_adapter="desk-1", candidate_uri="/a", dataset_uri="/d", data_cutoff=NOON,
        evidence=Evidence(alpha=0.001), reason="wealth 1204 >= 1000", spec=SPEC,
    )  # fmt: skip


def failed(cycle_id: str) -> StepFailed:
    return StepFailed(**envelope(cycle_id), service="trainer", step="training", reason="out of memory", way_out="buy")


async def test_a_command_starts_a_cycle_with_a_fence_and_a_cut_off(bench: SchedulerBench) -> None:
    answer = await bench.post("/api/cycles", {"task": "desk"})
    assert (answer.status_code, answer.json()) == (202, {"cycle_id": "desk-20261123-120000"})
    (started,) = bench.of(CycleStarted)
    assert (started.fence, started.data_cutoff, started.trigger) == (FENCE, NOON, "command")
    assert started.task_revision == SPEC.revision


async def test_the_cut_off_of_a_cycle_is_not_before_its_fence(
    bench: SchedulerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction below the fence trains the candidate, and one after the cut-off is compared with it."""

    async def slow_fence() -> Fence:
        bench.now += timedelta(seconds=9)
        return FENCE

    monkeypatch.setattr(bench, "fence", slow_fence)
    await bench.handlers.start(SPEC, "command")
    (started,) = bench.of(CycleStarted)
    assert started.data_cutoff == NOON + timedelta(seconds=9)


async def test_a_cycle_starts_with_the_task_as_its_file_says_now(bench: SchedulerBench, tmp_path: Path) -> None:
    edited = SPEC.model_copy(update={"dataset": SPEC.dataset.model_copy(update={"min_new_examples": 0})})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "desk.yaml").write_text(edited.model_dump_json(exclude_defaults=True))  # JSON is YAML.
    await bench.post("/api/cycles", {"task": "desk"})
    changed, started = bench.published
    assert isinstance(changed, TaskChanged) and changed.spec.dataset.min_new_examples == 0
    assert isinstance(started, CycleStarted)


def write_task(folder: Path, file: str, name: str = "desk", labels: str = "[a, b]") -> None:
    (folder / "tasks").mkdir(exist_ok=True)
    text = f"name: {name}\nkind: classification\nsystem_prompt: p\nlabels: {labels}\ncron: '0 * * * *'\n"
    (folder / "tasks" / file).write_text(text)


@pytest.mark.parametrize("file", ["desk.yaml", "support.yaml"])
async def test_no_command_starts_a_cycle_of_a_task_whose_file_is_invalid(
    bench: SchedulerBench, tmp_path: Path, file: str
) -> None:
    write_task(tmp_path, file)
    await bench.tasks.scan()
    write_task(tmp_path, file, labels="[a, b")
    refused = await bench.post("/api/cycles", {"task": "desk"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_task_file")
    assert f"{file}:" in refused.json()["error"]["message"]
    assert bench.of(CycleStarted) == []
    write_task(tmp_path, file, labels="[a, b, c]")
    assert (await bench.post("/api/cycles", {"task": "desk"})).status_code == 202


async def test_no_command_starts_a_cycle_of_a_task_whose_golden_file_is_invalid(
    bench: SchedulerBench, tmp_path: Path
) -> None:
    write_task(tmp_path, "desk.yaml", labels="[a, b]\ngolden_file: golden.jsonl")
    (tmp_path / "tasks" / "golden.jsonl").write_text('{"text": "q", "label": "none of the task"}')
    refused = await bench.post("/api/cycles", {"task": "desk"})
    assert refused.status_code == 409
    assert "golden.jsonl:1" in refused.json()["error"]["message"]


async def test_another_invalid_file_holds_up_no_command(bench: SchedulerBench, tmp_path: Path) -> None:
    """Neither one that nobody can tell the task of, nor a copy of the task's own."""
    write_task(tmp_path, "desk.yaml")
    write_task(tmp_path, "desk-copy.yaml")
    write_task(tmp_path, "draft.yaml", name="[")
    assert (await bench.post("/api/cycles", {"task": "desk"})).status_code == 202
    assert sorted(bench.tasks.invalid_files) == ["desk-copy.yaml", "draft.yaml"]


async def test_a_scheduled_cycle_starts_with_the_task_as_it_was_and_says_that_its_file_is_invalid(
    bench: SchedulerBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody may look for a week."""
    write_task(tmp_path, "desk.yaml", labels="[a, b")
    await bench.handlers.tick()
    await bench.tasks.scan()
    caplog.clear()
    bench.now += timedelta(hours=1)
    await bench.handlers.tick()
    (started,) = bench.of(CycleStarted)
    assert started.task_revision == SPEC.revision
    (warned,) = [record.getMessage() for record in caplog.records if "invalid" in record.getMessage()]
    assert str(started.cycle_id) in warned
    assert "desk.yaml:" in warned


async def test_one_cycle_of_a_task_runs_at_a_time(bench: SchedulerBench) -> None:
    await bench.post("/api/cycles", {"task": "desk"})
    bench.now += timedelta(seconds=5)
    answer = await bench.post("/api/cycles", {"task": "desk"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "cycle_running")


@pytest.mark.parametrize("body", [{"task": "nope"}, {"task": "Nope!"}, {}, {"task": "desk", "x": 1}, None])
async def test_a_bad_command_is_refused_with_a_reason(bench: SchedulerBench, body: Any) -> None:
    answer = await bench.post("/api/cycles", body)
    assert answer.status_code in (404, 422)
    assert answer.json()["error"]["message"]


async def test_a_cycle_that_could_not_be_announced_is_announced_at_a_later_tick(bench: SchedulerBench) -> None:
    bench.away = True
    cycle_id = await bench.handlers.start(SPEC, "cron")
    bench.away = False
    await bench.handlers.tick()
    await bench.handlers.tick()
    (started,) = bench.of(CycleStarted)
    assert started.cycle_id == cycle_id


async def test_the_end_of_a_stopped_cycle_that_could_not_be_announced_is_announced_at_a_later_tick(
    bench: SchedulerBench,
) -> None:
    cycle_id = await bench.handlers.start(SPEC, "command")
    bench.away = True
    assert (await bench.post(f"/api/cycles/{cycle_id}/stop")).status_code == 503
    bench.away = False
    for _ in range(2):
        await bench.handlers.tick()
    (finished,) = bench.of(CycleFinished)
    assert (finished.cycle_id, finished.outcome, finished.ended_by) == (cycle_id, "failed", None)


async def test_a_cycle_that_was_stopped_before_it_was_announced_never_begins(bench: SchedulerBench) -> None:
    bench.away = True
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.post(f"/api/cycles/{cycle_id}/stop")
    bench.away = False
    await bench.handlers.tick()
    assert bench.of(CycleStarted) == []


async def test_cron_starts_one_cycle_when_it_is_due(bench: SchedulerBench) -> None:
    await bench.handlers.tick()
    assert bench.of(CycleStarted) == []
    bench.now += timedelta(hours=3)
    await bench.handlers.tick()
    await bench.handlers.tick()
    (started,) = bench.of(CycleStarted)
    assert started.trigger == "cron"


async def test_a_run_that_is_due_while_the_broker_is_away_starts_once_it_is_back(
    bench: SchedulerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable() -> Fence:
        raise DependencyUnavailable("no broker")

    await bench.handlers.tick()
    bench.now += timedelta(hours=1)
    with monkeypatch.context() as patched, pytest.raises(DependencyUnavailable):
        patched.setattr(bench, "fence", unavailable)
        await bench.handlers.tick()
    await bench.handlers.tick()
    assert [started.trigger for started in bench.of(CycleStarted)] == ["cron"]


async def test_a_run_that_was_missed_is_made_up_for_once_the_task_is_known_as_it_is_now(
    tmp_path: Path, database: Database
) -> None:
    """After a start an older version of a task comes first, and its file may have been edited meanwhile."""
    bench = await SchedulerBench.open(tmp_path, database)
    await bench.cycles.save_run("desk", ScheduledRun(SPEC.cron, NOON - timedelta(minutes=30)))
    bench.now += timedelta(minutes=1)
    for older in (SPEC.model_copy(update={"cron": "0 3 * * 1"}), SPEC):
        await bench.apply(older)
        await bench.handlers.tick()
    edited = SPEC.model_copy(update={"labels": ("a", "b", "c")})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "desk.yaml").write_text(edited.model_dump_json(exclude_defaults=True))
    await bench.table.read_to({})
    await bench.handlers.tick()
    assert bench.published == []
    await bench.read()
    await bench.handlers.tick()
    (started,) = bench.of(CycleStarted)
    assert started.task_revision == edited.revision


async def test_an_unchanged_task_is_not_published_again_by_a_start_that_reads_its_topic_slowly(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_watcher, "TABLE_SECONDS", 0.01)
    bench = await SchedulerBench.open(tmp_path, database)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "desk.yaml").write_text(SPEC.model_dump_json(exclude_defaults=True))
    with pytest.raises(DependencyUnavailable, match="not read"):
        await bench.tasks.scan()
    assert not bench.tasks.scanned
    await bench.apply(SPEC)
    await bench.read()
    assert (bench.published, bench.tasks.scanned) == ([], True)


async def test_a_task_whose_cron_never_comes_round_holds_up_no_other_task(bench: SchedulerBench) -> None:
    """It was published when such a cron was still taken."""
    never = SPEC.model_copy(update={"name": "a-desk", "cron": "0 0 31 4 *"})
    await bench.apply(never)
    await bench.handlers.tick()
    bench.now += timedelta(hours=1)
    await bench.handlers.tick()
    await bench.handlers.tick()
    assert [started.task for started in bench.of(CycleStarted)] == ["desk"]
    transport = httpx.ASGITransport(app=bench.http)
    async with httpx.AsyncClient(transport=transport, base_url="http://scheduler") as client:
        tasks = (await client.get("/api/tasks")).json()["tasks"]
    assert {task["name"]: task["next_cycle_at"] for task in tasks} == {
        "a-desk": None, "desk": "2026-11-23T14:00:00Z",
    }  # fmt: skip


async def test_a_scheduled_run_during_a_cycle_is_skipped(bench: SchedulerBench) -> None:
    await bench.handlers.tick()
    await bench.handlers.start(SPEC, "command")
    bench.now += timedelta(hours=1)
    await bench.handlers.tick()
    assert len(bench.of(CycleStarted)) == 1
    assert await bench.cycles.last_run("desk") == ScheduledRun(SPEC.cron, bench.now)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (Stage.PROMOTED, "promoted"),
        (Stage.REJECTED, "rejected"),
        (Stage.INCONCLUSIVE, "inconclusive"),
        (Stage.ROLLED_BACK, "rejected"),
    ],
)
async def test_a_rollout_ends_its_cycle_once_however_often_it_is_delivered(
    bench: SchedulerBench, end: Stage, outcome: str
) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    event = rollout(cycle_id, end, NOON + timedelta(minutes=5))
    await bench.handlers.on_step(event)
    await bench.handlers.on_step(event)
    finished = bench.of(CycleFinished)
    assert {(f.event_id, f.outcome, f.seconds) for f in finished} == {(finished[0].event_id, outcome, 300.0)}
    assert {f.ended_by for f in finished} == {event.event_id}


async def test_a_rollback_after_the_promotion_neither_reopens_nor_ends_the_cycle(bench: SchedulerBench) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.handlers.on_step(rollout(cycle_id, Stage.PROMOTED))
    await bench.handlers.on_step(rollout(cycle_id, Stage.ROLLED_BACK))
    await bench.handlers.on_step(rollout(cycle_id, Stage.REJECTED))
    assert [f.outcome for f in bench.of(CycleFinished)] == ["promoted"]
    assert await bench.cycles.running() == []


async def test_a_failed_step_ends_its_cycle_with_the_reason(bench: SchedulerBench) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.handlers.on_step(failed(cycle_id))
    (finished,) = bench.of(CycleFinished)
    assert (finished.outcome, finished.reason) == ("failed", "trainer: out of memory")


async def test_a_cycle_with_too_little_new_is_skipped_and_another_can_start(bench: SchedulerBench) -> None:
    cycle = str(await bench.handlers.start(SPEC, "command"))
    skipped = failed(cycle).model_copy(update={"service": "dataset_builder", "step": "dataset", "skipped": True})
    await bench.handlers.on_step(skipped)
    (finished,) = bench.of(CycleFinished)
    assert (finished.outcome, finished.reason) == ("skipped", skipped.reason)
    bench.now += timedelta(minutes=1)
    assert await bench.handlers.start(SPEC, "command") is not None


async def test_events_that_overtake_each_other_do_not_move_a_cycle_back(bench: SchedulerBench) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.handlers.on_step(rollout(cycle_id, Stage.SHADOW))
    await bench.handlers.on_step(clustered(cycle_id))
    (cycle,) = await bench.cycles.running()
    assert cycle.step == "rollout"


async def test_a_late_step_is_reported_once_and_may_still_finish(bench: SchedulerBench) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.handlers.on_step(clustered(cycle_id))
    bench.now += timedelta(minutes=31)
    await bench.handlers.tick()
    await bench.handlers.tick()
    (late,) = bench.of(StepFailed)
    assert (late.service, late.step, late.cycle_id) == ("scheduler", "dataset", cycle_id)
    assert "late" in late.reason
    assert "ratchet status" in late.way_out
    assert "ratchet cycle desk --stop" in late.way_out
    await bench.handlers.on_step(late)  # The scheduler consumes its own event.
    assert bench.of(CycleFinished) == []
    await bench.handlers.on_step(rollout(cycle_id, Stage.PROMOTED))
    assert [f.outcome for f in bench.of(CycleFinished)] == ["promoted"]


async def test_a_step_is_not_late_for_the_time_in_which_the_scheduler_was_down(bench: SchedulerBench) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    bench.now += timedelta(hours=10)
    bench.restart()
    await bench.handlers.tick()
    bench.now += timedelta(minutes=30)
    await bench.handlers.tick()
    assert bench.of(StepFailed) == []
    (task,) = (await bench.get("/api/tasks")).json()["tasks"]
    assert not task["late"]
    assert (
        f'ratchet_scheduler_step_late{{cycle_id="{cycle_id}",step="failures",task="desk"}} 0.0'
        in (await bench.get("/metrics")).text.splitlines()
    )
    bench.now += timedelta(minutes=1)
    await bench.handlers.tick()
    (late,) = bench.of(StepFailed)
    assert "without progress for 31 minutes, since the scheduler started (" in late.reason


async def test_a_step_that_progressed_after_it_was_late_is_reported_when_it_is_late_again(
    bench: SchedulerBench,
) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    bench.now += timedelta(minutes=31)
    await bench.handlers.tick()
    progressed = StepProgressed(**envelope(cycle_id), occurred_at=bench.now, step="failures", done=1, total=2)
    await bench.handlers.on_progress(progressed)
    for _ in range(2):
        bench.now += timedelta(minutes=31)
        await bench.handlers.tick()
        await bench.handlers.on_progress(progressed)  # Redelivered, it ends no silence.
    first, second = bench.of(StepFailed)
    assert first.event_id != second.event_id, "else a consumer takes it for the first one"


async def test_a_candidate_that_waits_for_its_turn_is_not_late_but_one_that_is_compared_may_be(
    bench: SchedulerBench,
) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.handlers.on_step(rollout(cycle_id, Stage.QUEUED, bench.now))
    bench.now += timedelta(days=7)
    await bench.handlers.tick()
    assert bench.of(StepFailed) == []
    await bench.handlers.on_step(rollout(cycle_id, Stage.SHADOW, bench.now))
    bench.now += timedelta(minutes=29)
    await bench.handlers.tick()
    assert bench.of(StepFailed) == [], "its time begins with its turn"
    bench.now += timedelta(minutes=2)
    await bench.handlers.tick()
    (late,) = bench.of(StepFailed)
    assert late.step == "rollout"
    assert "ratchet rollout rollback desk" in late.way_out


async def test_a_step_that_progresses_is_not_late(bench: SchedulerBench) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    bench.now += timedelta(minutes=29)
    await bench.handlers.on_progress(
        StepProgressed(**envelope(cycle_id), occurred_at=bench.now, step="failures", done=1, total=2)
    )
    bench.now += timedelta(minutes=29)
    await bench.handlers.tick()
    assert bench.of(StepFailed) == []


async def test_a_run_that_is_skipped_says_which_step_holds_it_up_and_how_to_end_that(
    bench: SchedulerBench, caplog: pytest.LogCaptureFixture
) -> None:
    """The report of the late step was weeks ago."""
    await bench.handlers.tick()
    bench.now += timedelta(minutes=55)
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    await bench.handlers.on_step(clustered(cycle_id, bench.now))
    bench.now += timedelta(minutes=40)
    await bench.handlers.tick()
    (skipped,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    for part in (cycle_id, "step dataset", "40 minutes", "ratchet cycle desk --stop"):
        assert part in skipped
    refused = (await bench.post("/api/cycles", {"task": "desk"})).json()["error"]
    for part in (cycle_id, "step dataset", "40 minutes", "ratchet cycle desk --stop"):
        assert part in refused["message"]
    assert refused["code"] == "cycle_running"


async def test_how_long_a_step_is_silent_and_whether_that_is_late_is_a_metric_until_its_cycle_ends(
    bench: SchedulerBench,
) -> None:
    cycle_id = str(await bench.handlers.start(SPEC, "command"))
    for minutes, late in ((30, 0), (31, 1)):
        bench.now = NOON + timedelta(minutes=minutes)
        labels = f'{{cycle_id="{cycle_id}",step="failures",task="desk"}}'
        lines = (await bench.get("/metrics")).text.splitlines()
        assert f"ratchet_scheduler_step_silence_seconds{labels} {minutes * 60}.0" in lines
        assert f"ratchet_scheduler_step_late{labels} {late}.0" in lines
        (task,) = (await bench.get("/api/tasks")).json()["tasks"]
        assert (task["step"], task["late"]) == ("failures", bool(late))
    await bench.handlers.stop(cycle_id)
    assert cycle_id not in (await bench.get("/metrics")).text


async def test_events_of_unknown_cycles_are_ignored(bench: SchedulerBench) -> None:
    await bench.handlers.on_step(clustered("desk-of-yesterday"))
    await bench.handlers.on_step(failed("desk-of-yesterday"))
    await bench.handlers.on_progress(StepProgressed(**envelope(None), step="training", done=1, total=2))
    assert bench.published == []


async def test_after_a_stopped_cycle_the_next_may_start(bench: SchedulerBench) -> None:
    cycle_id = await bench.handlers.start(SPEC, "command")
    assert (await bench.post(f"/api/cycles/{cycle_id}/stop")).status_code == 202
    assert (await bench.post("/api/cycles/unknown/stop")).status_code == 404
    bench.now += timedelta(seconds=1)
    assert await bench.handlers.start(SPEC, "command") is not None


async def test_a_changed_file_is_published_once_and_an_invalid_one_leaves_its_task(
    tmp_path: Path, database: Database
) -> None:
    bench = await SchedulerBench.open(tmp_path, database)
    await bench.table.read_to({})
    folder = tmp_path / "tasks"
    folder.mkdir()
    text = "name: desk\nkind: classification\nsystem_prompt: p\nlabels: [a, b]\n"
    (folder / "desk.yaml").write_text(text)
    (folder / "twin.yaml").write_text(text)
    await bench.tasks.scan()
    await bench.tasks.scan()
    assert len(bench.of(TaskChanged)) == 1
    assert "already defined in desk.yaml" in bench.tasks.invalid_files["twin.yaml"]
    (folder / "desk.yaml").write_text("name: desk\nkind: nonsense\n")
    (folder / "twin.yaml").unlink()
    await bench.tasks.scan()
    assert "kind: found 'nonsense'" in bench.tasks.invalid_files["desk.yaml"]
    assert [spec.labels for spec in bench.tasks.specs()] == [("a", "b")]
    (folder / "desk.yaml").write_text(text.replace("[a, b]", "[a, b, c]"))
    await bench.tasks.scan()
    assert [event.spec.labels for event in bench.of(TaskChanged)] == [("a", "b"), ("a", "b", "c")]
    assert bench.tasks.invalid_files == {}


async def test_a_task_that_is_on_the_topic_already_is_not_published_again(
    bench: SchedulerBench, tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "desk.yaml").write_text(
        "name: desk\nkind: classification\nsystem_prompt: p\nlabels: [a, b]\n"
        'cron: "0 * * * *"\nstep_timeout_minutes: 30\n'
    )
    await bench.tasks.scan()
    assert bench.published == []
