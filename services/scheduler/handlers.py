"""Starts cycles, follows them through their steps, and finishes them.

Every change is stored first and published after; what a crash left unpublished is published later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Literal
from uuid import UUID

from schemas.adapters import AdapterEvaluated, AdapterTrained
from schemas.base import Event, utc_now
from schemas.cycles import CycleFinished, Fence, Step, StepFailed, StepProgressed
from schemas.datasets import DatasetBuilt
from schemas.failures import FailuresClustered
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from services.scheduler.domain import (
    Cycle,
    CycleEnd,
    check_schedule,
    cycle_end,
    cycle_finished,
    cycle_started,
    describe,
    late_step_report,
    valid_cron,
    way_to_end,
)
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from services.scheduler.task_watcher import TaskWatcher
from shared.errors import DependencyUnavailable
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import Publisher

logger = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
"""Between two checks of schedules and cycles."""
NEXT_STEP: dict[type[Event], Step] = {
    FailuresClustered: "dataset",
    DatasetBuilt: "training",
    AdapterTrained: "evaluation",
    AdapterEvaluated: "rollout",
    RolloutChanged: "rollout",
}
"""The step that a cycle enters with this event."""


class Handlers:
    def __init__(
        self,
        settings: SchedulerSettings,
        cycles: PostgresCycleStore,
        publisher: Publisher,
        read_fence: Callable[[], Awaitable[Fence]],
        tasks: TaskWatcher,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings
        self._cycles = cycles
        self._publisher = publisher
        self._read_fence = read_fence
        self._tasks = tasks
        self._ending = asyncio.Lock()
        self.now = now
        self.listening_since = now()
        """No step is late for what was not heard before: see `domain.silence`."""

    def subscribe(self, consumers: Consumers) -> None:
        """Register all handlers."""
        for event in NEXT_STEP:
            consumers.on(event, self.on_step)
        consumers.on(StepFailed, self.on_step)
        consumers.on(StepProgressed, self.on_progress)

    async def start(self, spec: TaskSpec, trigger: Literal["cron", "command"]) -> str | None:
        """Start a cycle and return its id; None while one of this task is running and has not come to its rollout.

        The fence is read before the cut-off: a prediction logged between the two neither trains nor judges the
        candidate. Raises DependencyUnavailable, and then nothing was started.
        """
        fence = await self._read_fence()
        started = cycle_started(spec, trigger, fence, self.now())
        if not await self._cycles.start(started, spec.step_timeout_minutes):
            return None
        logger.info("cycle %s started (%s)", started.cycle_id, trigger)
        try:
            await self._announce_stored()
        except DependencyUnavailable as error:  # It is stored: the next `tick` announces it.
            logger.warning("cycle %s is not announced yet, retrying: %s", started.cycle_id, error)
        return started.cycle_id

    async def stop(self, cycle_id: str) -> bool:
        """End a cycle that cannot finish, as failed. Return False if no such cycle is running.

        The service of its step ends the job that works for it; a candidate that was evaluated by then goes on.
        """
        cycle = await self._cycles.get(cycle_id)
        return cycle is not None and await self._finish(
            cycle, CycleEnd("failed", "stopped by an operator"), self.now(), None
        )

    async def what_holds_up(self, task: str) -> str:
        """Return which cycle of the task holds up the next one, where it is, and the command that ends it."""
        for cycle in await self._cycles.running():
            if cycle.started.task == task and cycle.step != "rollout":
                return f"{describe(cycle, self.now(), self.listening_since)}. If it cannot finish: {way_to_end(cycle)}"
        return f"a cycle of {task} is running"

    async def on_step(self, event: Event) -> None:
        """Move the cycle on, or end it, by a step's result. The scheduler's own reports of late steps do neither."""
        if (cycle := await self._cycle_of(event)) is None:
            return
        if (end := cycle_end(event)) is not None:
            await self._finish(cycle, end, event.occurred_at, event.event_id)
        elif (step := NEXT_STEP.get(type(event))) is not None:
            await self._cycles.enter_step(str(event.cycle_id), step, event.occurred_at)
            if isinstance(event, RolloutChanged):
                await self._cycles.save_waiting(str(event.cycle_id), event.stage is Stage.QUEUED)

    async def on_progress(self, event: StepProgressed) -> None:
        """Record the progress of a step, so that it is not late."""
        if event.cycle_id is not None:
            await self._cycles.save_progress(event.cycle_id, event.occurred_at)

    async def tick(self) -> None:
        """Announce stored cycles and ends, start cycles that are due, report late steps.

        None is due until the tasks are known as they are now: one of an older version could not finish, and an older
        cron would put off the run.
        """
        await self._announce_stored()
        async with self._ending:
            for finished in await self._cycles.unannounced_ends():
                await self._announce_end(finished)
        for spec in self._tasks.specs() if self._tasks.scanned else ():
            if valid_cron(spec.cron):
                await self._start_if_due(spec)
        for cycle in await self._cycles.running():
            if (late := late_step_report(cycle, self.now(), self.listening_since)) is not None:
                await self._publisher.publish(late)
                await self._cycles.save_late_step(str(late.cycle_id), late.step)
                logger.warning("%s %s", late.reason, late.way_out)

    async def tick_forever(self) -> None:
        """Run `tick` at the configured interval, as a background task."""
        while True:
            try:
                await self.tick()
            except DependencyUnavailable as error:
                logger.warning("tick failed, retrying in %s s: %s", _TICK_SECONDS, error)
            await asyncio.sleep(_TICK_SECONDS)

    async def _start_if_due(self, spec: TaskSpec) -> None:
        last = await self._cycles.last_run(spec.name)
        is_due, run = check_schedule(spec.cron, last, self.now())
        if is_due and (cycle_id := await self.start(spec, "cron")) is None:
            held_up_by = await self.what_holds_up(spec.name)
            logger.warning("task %s: the run of %s is skipped: %s", spec.name, run.considered_at, held_up_by)
        elif is_due and (fault := self._tasks.fault_of(spec.name)) is not None:
            # A command is refused. Here nobody may look for a week, and this revision is what production serves.
            logger.warning("cycle %s has the task as it was, for its file is invalid:\n%s", cycle_id, fault)
        if run != last:
            await self._cycles.save_run(spec.name, run)

    async def _announce_stored(self) -> None:
        """Announce the cycles that are stored, not after the end of one that is stopped meanwhile."""
        async with self._ending:
            for started in await self._cycles.unannounced():
                await self._publisher.publish(started)
                await self._cycles.save_announced(str(started.cycle_id))

    async def _cycle_of(self, event: Event) -> Cycle | None:
        if event.cycle_id is None:
            return None
        cycle = await self._cycles.get(event.cycle_id)
        if cycle is None:
            logger.info("%s of unknown cycle %s ignored", type(event).__name__, event.cycle_id)
        return cycle

    async def _finish(self, cycle: Cycle, end: CycleEnd, at: datetime, ended_by: UUID | None) -> bool:
        """End a cycle by an event, or by an operator. A later end, such as a rollback, changes nothing."""
        finished = cycle_finished(cycle.started, end, at, ended_by)
        async with self._ending:  # Else a tick would announce it, too.
            if not await self._cycles.finish(finished):
                return False
            await self._announce_end(finished)
        return True

    async def _announce_end(self, finished: CycleFinished) -> None:
        await self._publisher.publish(finished)
        await self._cycles.save_end_announced(str(finished.cycle_id))
        logger.info("cycle %s: %s, %s", finished.cycle_id, finished.outcome, finished.reason)
