"""Cycles: started, followed, finished.

Every change is in the database first and on Kafka after; what was not announced before a crash is announced again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.base import Event, utc_now
from schemas.cycles import CycleStarted, Step, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt
from schemas.failures import FailuresClustered
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from services.scheduler.clients import Offsets
from services.scheduler.domain import Cycle, End, due, end_of, finished_of, late_of, start_of, valid_cron
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import Storage
from services.scheduler.task_watcher import Tasks
from shared.errors import DependencyUnavailable
from shared.identity import event_id
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import EventPublisher

logger = logging.getLogger(__name__)

NEXT_STEP: dict[type[Event], Step] = {
    FailuresClustered: "dataset",
    DatasetBuilt: "training",
    AdapterTrained: "evaluation",
    AdapterEvaluated: "rollout",
    RolloutChanged: "rollout",
}
"""The step that a cycle is in after this event."""


class Handlers:
    def __init__(
        self,
        settings: SchedulerSettings,
        storage: Storage,
        publisher: EventPublisher,
        offsets: Offsets,
        tasks: Tasks,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._publisher = publisher
        self._offsets = offsets
        self._tasks = tasks
        self.now = now

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        for event in NEXT_STEP:
            consumers.on(event, self.on_step)
        consumers.on(StepFailed, self.on_step_failed)
        consumers.on(StepProgressed, self.on_progress)

    async def start(self, spec: TaskSpec, trigger: Literal["cron", "command"]) -> str | None:
        """Start a cycle; returns its id, or None while one of this task is running.

        The fence is taken before the cut-off: what is logged between the two neither trains the candidate nor
        judges it. Raises DependencyUnavailable, and then nothing was started.
        """
        fence = await self._offsets.fence()
        started = start_of(spec, trigger, fence, self.now())
        if not await self._storage.start(started, spec.step_timeout_minutes):
            return None
        logger.info("cycle %s starts (%s)", started.cycle_id, trigger)
        try:
            await self._announce(started)
        except DependencyUnavailable as error:  # It is noted: `tick` announces it.
            logger.warning("cycle %s is announced later: %s", started.cycle_id, error)
        return started.cycle_id

    async def stop(self, cycle_id: str) -> bool:
        """Stop following a cycle: the way out of one that can no longer finish. False: no such cycle is running.

        Work that is on its way is not interrupted, but its results no longer count as this cycle's.
        """
        cycle = await self._storage.get(cycle_id)
        by = event_id("stopped by an operator", cycle_id)
        return cycle is not None and await self._finish(cycle, End("failed", "stopped by an operator"), self.now(), by)

    async def on_step(self, event: Event) -> None:
        """A step has a result: the cycle goes on, or ends."""
        if (cycle := await self._cycle_of(event)) is None or event.cycle_id is None:
            return
        if (end := end_of(event)) is not None:
            await self._finish(cycle, end, event.occurred_at, event.event_id)
        else:
            await self._storage.enter(event.cycle_id, NEXT_STEP[type(event)], event.occurred_at)

    async def on_step_failed(self, event: StepFailed) -> None:
        """A step cannot finish, so neither can the cycle. Our own reports of late steps are no such thing."""
        end = end_of(event)
        if end is not None and (cycle := await self._cycle_of(event)) is not None:
            await self._finish(cycle, end, event.occurred_at, event.event_id)

    async def on_progress(self, event: StepProgressed) -> None:
        """A sign of life."""
        if event.cycle_id is not None:
            await self._storage.progressed(event.cycle_id, event.occurred_at)

    async def tick(self) -> None:
        """Look at the clock and at the cycles: announce, start, report late."""
        for started in await self._storage.unannounced():
            await self._announce(started)
        for spec in self._tasks.specs():
            if valid_cron(spec.cron):
                await self._take_turn(spec)
        for cycle in await self._storage.running():
            if (late := late_of(cycle, self.now())) is not None:
                await self._publisher.publish(late)
                await self._storage.late(str(late.cycle_id), late.step)
                logger.warning("cycle %s: %s", late.cycle_id, late.reason)

    async def tick_forever(self) -> None:
        """Background: `tick`, whatever happens to one of them."""
        while True:
            try:
                await self.tick()
            except DependencyUnavailable as error:
                logger.warning("scheduler: again in a moment: %s", error)
            await asyncio.sleep(self._settings.scheduler_tick_seconds)

    async def _take_turn(self, spec: TaskSpec) -> None:
        last = await self._storage.turn(spec.name)
        is_due, turn = due(spec.cron, last, self.now())
        if is_due and await self.start(spec, "cron") is None:
            logger.warning("%s: the turn of %s is skipped: a cycle is running", spec.name, turn.considered_at)
        if turn != last:
            await self._storage.considered(spec.name, turn)

    async def _announce(self, started: CycleStarted) -> None:
        await self._publisher.publish(started)
        await self._storage.announced(str(started.cycle_id))

    async def _cycle_of(self, event: Event) -> Cycle | None:
        if event.cycle_id is None:
            return None
        cycle = await self._storage.get(event.cycle_id)
        if cycle is None:
            logger.info("%s of unknown cycle %s is ignored", type(event).__name__, event.cycle_id)
        return cycle

    async def _finish(self, cycle: Cycle, end: End, at: datetime, by: UUID) -> bool:
        """End a cycle by event `by`; a later end (a roll-back after the promotion, say) does not reopen it."""
        finished = finished_of(cycle.started, end, at)
        if not await self._storage.finish(finished, by):
            return False
        await self._publisher.publish(finished)
        logger.info("cycle %s: %s, %s", finished.cycle_id, finished.outcome, finished.reason)
        return True
