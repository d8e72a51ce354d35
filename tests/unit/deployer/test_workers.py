"""When a task is ticked: regularly, at once for what cannot wait, and by a worker that nothing else holds up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from schemas.base import Variant
from schemas.predictions import SubjectForgotten
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from services.deployer.settings import DeployerSettings
from services.deployer.workers import FlagLog, TaskWorkers
from shared.errors import DependencyUnavailable
from tests.unit.deployer.canaries import feedback
from tests.unit.deployer.fakes import Deployer, MemoryAdmin, deliveries, evaluated, observed, pair, spec
from tests.waiting import PATIENCE_SECONDS, until

TASK = "support-desk"
NEVER = 3_600.0


@asynccontextmanager
async def working(deployer: Deployer, tick_seconds: float, idle_seconds: float = NEVER) -> AsyncIterator[None]:
    workers = TaskWorkers(
        DeployerSettings(deployer_tick_seconds=tick_seconds), deployer.rollouts, deployer.admin, deployer.handlers
    )
    work = [asyncio.create_task(workers.run_forever()), asyncio.create_task(workers.watch_flags_forever())]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("services.deployer.workers.IDLE_TICKS", idle_seconds / tick_seconds)
            patch.setattr("services.deployer.workers.FLAGS_TICKS", 0.01 / tick_seconds)
            yield
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def in_canary(*tasks: str, **rollout: Any) -> Deployer:
    deployer = Deployer()
    settings = {"canary_wealth": 2, "min_canary_users": 10_000, **rollout}
    for task in tasks or (TASK,):
        await deployer.handlers.on_evaluated(evaluated("a1", task, **settings))
        await deployer.compare_and_label(range(5), "delivery")
        assert deployer.last.stage is Stage.CANARY
    return deployer


def counted_ticks(deployer: Deployer) -> list[str]:
    """Return a list that gets the task of each tick."""
    ticked: list[str] = []
    plain = deployer.handlers.tick

    async def tick(task: str, *, reads_flags: bool = True) -> None:
        await plain(task, reads_flags=reads_flags)
        ticked.append(task)

    deployer.handlers.tick = tick  # type: ignore[method-assign]
    return ticked


@pytest.mark.parametrize("error", [DependencyUnavailable("Unleash is away"), RuntimeError("an archived flag"), None])
async def test_the_trouble_of_one_task_stops_no_other_tasks_ticks(error: Exception | None) -> None:
    deployer = Deployer()
    for adapter, task in (("a1", TASK), ("b1", "billing")):
        await deployer.handlers.on_evaluated(evaluated(adapter, task))
    ticked: list[str] = []

    async def tick(task: str, *, reads_flags: bool = True) -> None:
        ticked.append(task)
        if task == "billing":
            if error is None:
                await asyncio.Event().wait()  # An answer that never comes.
            raise error or AssertionError

    deployer.handlers.tick = tick  # type: ignore[method-assign]
    async with working(deployer, 0.01, 0.01):
        await until(lambda: ticked.count(TASK) >= 5 and (error is None or ticked.count("billing") >= 2))
    assert set(deployer.handlers.trouble) == ({"billing"} if error else set())


async def test_while_the_database_is_away_workers_go_on_and_a_task_that_is_new_then_gets_its_worker_after() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated("a1", TASK))
    ticked, began, away, plain = list[str](), 0, asyncio.Event(), deployer.rollouts.tasks

    async def tick(task: str, *, reads_flags: bool = True) -> None:
        nonlocal began
        began += 1
        await asyncio.sleep(0.05)  # A worker that is cancelled is so here.
        ticked.append(task)

    async def tasks() -> list[str]:
        if away.is_set():
            raise DependencyUnavailable("PostgreSQL does not answer")
        return list(await plain())

    deployer.handlers.tick = tick  # type: ignore[method-assign]
    deployer.rollouts.tasks = tasks  # type: ignore[method-assign]
    async with working(deployer, 0.01, 0.01):
        await until(lambda: ticked)
        away.set()
        await deployer.handlers.on_evaluated(evaluated("b1", "billing"))
        seen = len(ticked)
        await until(lambda: len(ticked) >= seen + 5)
        assert began - len(ticked) <= 1, "no tick was cancelled"
        assert "billing" not in ticked
        away.clear()
        await until(lambda: "billing" in ticked)


async def test_workers_end_with_their_service_also_where_a_failure_takes_the_place_of_the_cancellation() -> None:
    """As where the database goes away as a query is cancelled: the worker would retry, and be waited for for ever."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated("a1", TASK))
    began, lost = asyncio.Event(), 0

    async def tick(task: str, *, reads_flags: bool = True) -> None:
        nonlocal lost
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost += 1
            if lost == 1:
                raise DependencyUnavailable("PostgreSQL does not answer") from None
            raise

    deployer.handlers.tick = tick  # type: ignore[method-assign]
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with working(deployer, 0.01):
            await began.wait()
    assert lost >= 1


async def test_a_worker_that_ended_is_replaced() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated("a1", TASK))
    ticks = 0

    async def tick(task: str, *, reads_flags: bool = True) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 1:
            raise asyncio.CancelledError  # Of something that the tick waited for.

    deployer.handlers.tick = tick  # type: ignore[method-assign]
    async with working(deployer, 0.01, 0.01):
        await until(lambda: ticks >= 3)


async def test_a_canary_that_its_guards_end_is_ended_by_the_request_that_decides_and_not_at_the_next_tick() -> None:
    deployer = await in_canary()
    ticked = counted_ticks(deployer)
    async with working(deployer, NEVER):
        await until(lambda: TASK in ticked)
        await deployer.see_canary(2)
        await deployer.see_canary(5, status=502)
        await until(lambda: deployer.last.stage is Stage.REJECTED)
    assert "fails too often" in deployer.last.reason
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_a_promotion_that_the_guards_take_back_is_taken_back_by_the_request_that_decides() -> None:
    deployer = await in_canary(min_canary_users=0, control_days=7)
    await deployer.compare_and_label(range(5, 25), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    ticked = counted_ticks(deployer)
    async with working(deployer, NEVER):
        await until(lambda: TASK in ticked)
        failed = [observed(deployer.last, number, Variant.PRIMARY, 502) for number in range(200)]
        later = {"occurred_at": deployer.last.occurred_at + timedelta(minutes=1)}
        await deployer.handlers.on_observed(deliveries(event.model_copy(update=later) for event in failed))
        await until(lambda: deployer.last.stage is Stage.ROLLED_BACK)


async def test_requests_of_a_canary_that_decide_nothing_wait_for_its_next_tick_and_others_for_none() -> None:
    wakes = (deployer := await in_canary()).handlers.wakes
    await wakes.wait(TASK, 0.0, 0.0)
    assert not await is_due(deployer, soon=True)
    await deployer.see_canary(50)
    assert not await is_due(deployer, soon=False)
    await deployer.see_canary(50)
    assert await is_due(deployer, soon=True)
    await deployer.handlers.on_observed(deliveries(observed(deployer.last, n, Variant.PRIMARY) for n in range(50)))
    assert not await is_due(deployer, soon=True)


async def is_due(deployer: Deployer, *, soon: bool) -> bool:
    """Return True if the task is to be ticked at once or, with `soon`, as soon as its last tick is long enough ago."""
    waiting = asyncio.create_task(deployer.handlers.wakes.wait(TASK, 0.0 if soon else NEVER, NEVER))
    for _ in range(50):
        await asyncio.sleep(0)
    return waiting.done() or not waiting.cancel()


async def _labels(deployer: Deployer) -> None:
    await deployer.compare_and_label(range(5, 45), "refund")
    assert deployer.last.stage is Stage.REJECTED, "so the next candidate may come"


async def _forgotten(deployer: Deployer) -> None:
    deployer.ledger.forget = _do_nothing
    await deployer.handlers.on_forgotten(SubjectForgotten(task=TASK, task_revision="1", subject_hash="user-1"))


async def _do_nothing(event: Any) -> None:
    pass


async def _changed(deployer: Deployer) -> None:
    changed = spec(TASK)
    await deployer.handlers.on_task(TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))


async def _complaint(deployer: Deployer) -> None:
    await deployer.handlers.on_feedback(feedback(deployer.last, 1))


async def _broker_away(deployer: Deployer) -> None:
    deployer.publisher.is_away = True
    await deployer.compare(pair(deployer.last, 5, ("refund", "delivery")))


async def _command(deployer: Deployer) -> None:
    await deployer.commands.rollback(TASK, "ann", "no")


@pytest.mark.parametrize("news", [_labels, _forgotten, _changed, _complaint, _broker_away, _command])
async def test_what_is_new_of_a_task_has_it_ticked_soon(news: Callable[[Deployer], Awaitable[None]]) -> None:
    deployer = await in_canary()
    await deployer.handlers.wakes.wait(TASK, 0.0, 0.0)
    await news(deployer)
    assert await is_due(deployer, soon=True)


async def test_a_task_of_which_nothing_is_new_is_ticked_seldom() -> None:
    deployer = await in_canary()
    ticked = counted_ticks(deployer)
    async with working(deployer, 0.001):
        await until(lambda: TASK in ticked)
        deployer.admin._write("ratchet.another-task.shadow", enabled=True)
        await asyncio.sleep(0.2)  # Two hundred ticks, if they came without news.
        assert len(ticked) <= 2, "the flags that it set itself may be in the log"
        deployer.handlers.wakes.note(TASK)
        seen = len(ticked)
        await until(lambda: len(ticked) > seen)
    async with working(deployer, 0.001, 0.01):
        await until(lambda: len(ticked) > 10)


@pytest.mark.parametrize(("flag", "on"), [("primary", False), ("rollback", True), ("canary", False), ("shadow", False)])
async def test_a_hand_on_any_flag_is_obeyed_as_soon_as_unleashs_log_names_it(flag: str, on: bool) -> None:
    deployer = await in_canary()
    ticked = counted_ticks(deployer)
    async with working(deployer, NEVER):
        await until(lambda: TASK in ticked)
        await deployer.admin.switch(f"ratchet.{TASK}.{flag}", on)
        await until(lambda: deployer.last.paused != "")
    assert deployer.last.paused.startswith(f"{flag} is {'on' if on else 'off'}")


async def test_flags_that_nobody_touched_are_not_read_again_and_again() -> None:
    deployer = await in_canary(TASK, "billing")
    ticked = counted_ticks(deployer)
    async with working(deployer, 0.01, 0.01):
        await until(lambda: {TASK, "billing"} <= set(ticked) and len(ticked) > 10)
        reads = deployer.admin.reads
        seen = len(ticked)
        await until(lambda: len(ticked) > seen + 10)
    assert deployer.admin.reads == reads


async def test_without_unleashs_log_flags_are_read_all_the_time() -> None:
    class WithoutLog(MemoryAdmin):
        async def newest_changes(self, limit: int) -> list[tuple[int, str]]:
            raise DependencyUnavailable("403")

    deployer = Deployer(admin=WithoutLog())
    await deployer.handlers.on_evaluated(evaluated())
    async with working(deployer, 0.01):
        await until(lambda: deployer.admin.reads > 40)
        await deployer.admin.switch(f"ratchet.{TASK}.shadow", False)
        await until(lambda: deployer.last.paused != "")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Log(MemoryAdmin):
    """Unleash's log, by hand: its newest entries first."""

    away = False

    async def newest_changes(self, limit: int) -> list[tuple[int, str]]:
        if self.away:
            raise DependencyUnavailable("Unleash is away")
        return self.log[:limit]


def read_at(flags: FlagLog, clock: Clock, *tasks: str) -> list[str]:
    """Return those of the tasks whose flags are to be read, and count them as read; a second goes by."""
    clock.now += 1
    found = [(task, at) for task in tasks if (at := flags.begin_reading(task)) is not None]
    for task, at in found:
        flags.set_read(task, at)
    clock.now += 1
    return [task for task, _ in found]


async def test_the_log_says_which_tasks_flags_are_to_be_read_also_where_its_entries_come_late() -> None:
    clock, log = Clock(), Log()
    flags = FlagLog(log, clock)
    log.log = [(3, "ratchet.a.canary")]
    await flags.look()
    assert read_at(flags, clock, "a", "b") == ["a", "b"], "at first nothing is known"
    assert await flags.look() == set()
    assert read_at(flags, clock, "a", "b") == []
    log.log = [(5, "ratchet.b.shadow"), (4, "another-flag"), *log.log]
    assert await flags.look() == {"b"}
    assert read_at(flags, clock, "a", "b") == ["b"]
    log.log = [(5, "ratchet.b.shadow"), (4, "another-flag"), (3, "ratchet.a.canary"), (2, "ratchet.a.primary")]
    assert await flags.look() == {"a"}, "an entry with a lower number was committed after one with a higher"
    assert read_at(flags, clock, "a", "b") == ["a"]
    clock.now += 30
    assert read_at(flags, clock, "a", "b") == ["a", "b"], "Unleash may fail to log a change"


async def test_more_news_than_the_log_shows_or_a_log_that_was_away_may_be_of_any_task() -> None:
    clock, log = Clock(), Log()
    flags = FlagLog(log, clock)
    await flags.look()
    assert read_at(flags, clock, "a") == ["a"]
    log.log = [(number, "ratchet.b.canary") for number in range(40, 0, -1)]
    assert await flags.look() is None
    assert read_at(flags, clock, "a") == ["a"]
    log.away = True
    with pytest.raises(DependencyUnavailable):
        await flags.look()
    assert [read_at(flags, clock, "a"), read_at(flags, clock, "a")] == [["a"], ["a"]]
    log.away = False
    assert await flags.look() is None
    assert read_at(flags, clock, "a") == ["a"]
    assert await flags.look() == set()
    assert read_at(flags, clock, "a") == []


async def test_a_change_while_the_flags_are_read_has_them_read_again() -> None:
    clock, log = Clock(), Log()
    flags = FlagLog(log, clock)
    await flags.look()
    began = flags.begin_reading("a")
    assert began is not None
    log.log = [(1, "ratchet.a.canary")]
    await flags.look()
    flags.set_read("a", began)
    assert read_at(flags, clock, "a") == ["a"]


async def test_a_change_while_the_log_is_asked_for_is_not_taken_for_read() -> None:
    """The flags were read meanwhile, just before the hand: it was seen only half a minute later."""
    clock = Clock()

    class Asked(Log):
        async def newest_changes(self, limit: int) -> list[tuple[int, str]]:
            read_at(flags, clock, "a")
            self.log = [(1, "ratchet.a.canary")]
            clock.now += 1
            return await super().newest_changes(limit)

    flags = FlagLog(Asked(), clock)
    assert await flags.look() == {"a"}
    assert read_at(flags, clock, "a") == ["a"]
    assert read_at(flags, clock, "a") == []
