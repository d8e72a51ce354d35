"""Ticks each task by a worker of its own, so that one that fails or takes long delays no other.

within seconds      after news: labels, counts, another candidate, a command, a change of the task, a tick that failed
at once             when requests show what ends a canary (`Handlers.on_observed`)
at once, and reads  when Unleash's log names one of the task's flags: a hand is to be obeyed within seconds. Without the
the task's flags    log the flags are read every few seconds, which 50 tasks make too much for Unleash
every half minute   without any news, for what the clock decides, and what another process left unsettled

A tick settles, decides, and lets the next candidate in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable

from services.deployer.clients import FlagAdmin
from services.deployer.flags import task_of
from services.deployer.handlers import Handlers
from services.deployer.settings import DeployerSettings
from services.deployer.storage.rollouts import RolloutStore
from shared.errors import DependencyUnavailable
from shared.tasks import end_tasks

logger = logging.getLogger(__name__)
TICKS_AT_ONCE = 10
"""Each holds a connection to the database for its lock, and needs another."""
_LONGEST_PAUSE = 60.0
IDLE_TICKS = 15
"""Ticks after which a rollout of which nothing is new is checked."""
FLAGS_TICKS = 0.25
"""Between two looks into Unleash's log: people wait for what they turned."""
_END_AGAIN_SECONDS = 1.0
"""Less than that of a service's tasks, of which the one that waits for the workers is one."""
_LOG_ENTRIES = 20
"""How many of Unleash's newest log entries are read: its answers have whole flags in them."""
_READ_ANYWAY_SECONDS = 30.0
"""Unleash may fail to log a change, so that a task's flags are read now and then without a sign of one."""


class FlagLog:
    """Which tasks' flags were changed since they were last read, by Unleash's log."""

    def __init__(self, admin: FlagAdmin, clock: Callable[[], float] = time.monotonic) -> None:
        self._admin = admin
        self._clock = clock
        self._entries: frozenset[int] = frozenset()
        self._changed: dict[str, float] = {}
        self._all_changed = clock()
        self._read: dict[str, float] = {}

    async def look(self) -> set[str] | None:
        """Return the tasks of which the log has something new; None: it may be any. Raises DependencyUnavailable."""
        try:
            newest = await self._admin.newest_changes(_LOG_ENTRIES)
        except DependencyUnavailable:
            self._all_changed = math.inf  # Until it can be read again, flags are read all the time.
            raise
        now = self._clock()  # Not before the answer: flags that were read while it was on its way may be of before.
        was_away = self._all_changed == math.inf
        new = {entry: flag for entry, flag in newest if entry not in self._entries}
        missed_some = was_away or (len(newest) == _LOG_ENTRIES and len(new) == len(newest))
        self._entries = frozenset(entry for entry, _ in newest)
        if missed_some:
            self._all_changed = now
            return None
        tasks = {task for flag in new.values() if (task := task_of(flag))}
        self._changed.update(dict.fromkeys(tasks, now))
        return tasks

    def begin_reading(self, task: str) -> float | None:
        """Return the time if the task's flags are to be read, for `set_read`; None if they are as they were."""
        now, read = self._clock(), self._read.get(task)
        changed = max(self._all_changed, self._changed.get(task, self._all_changed))
        return now if read is None or changed >= read or now - read >= _READ_ANYWAY_SECONDS else None

    def set_read(self, task: str, at: float) -> None:
        self._read[task] = at


class TaskWorkers:
    """The workers of all tasks that ever had a rollout."""

    def __init__(
        self, settings: DeployerSettings, rollouts: RolloutStore, admin: FlagAdmin, handlers: Handlers
    ) -> None:
        self._settings = settings
        self._rollouts = rollouts
        self._handlers = handlers
        self._flags = FlagLog(admin)
        self._ticks = asyncio.Semaphore(TICKS_AT_ONCE)

    async def run_forever(self) -> None:
        """Background: give each task its worker, and another one if it ever ended."""
        workers: dict[str, asyncio.Task[None]] = {}
        trouble = ""
        try:
            while True:
                try:
                    for task in await self._rollouts.tasks():
                        if task not in workers or workers[task].done():
                            workers[task] = asyncio.create_task(self._tick_forever(task))
                    trouble = ""
                except DependencyUnavailable as error:  # The workers go on.
                    if error.reason != trouble:
                        trouble = error.reason
                        logger.warning("no new task gets a worker: %s", trouble)
                await asyncio.sleep(self._settings.deployer_tick_seconds)
        finally:
            await end_tasks(workers.values(), _END_AGAIN_SECONDS)

    async def watch_flags_forever(self) -> None:
        """Background: wake the worker of each task whose flags were changed."""
        trouble = ""
        while True:
            try:
                changed = await self._flags.look()
                for task in await self._rollouts.tasks() if changed is None else changed:
                    self._handlers.wakes.wake(task)
                trouble = ""
            except DependencyUnavailable as error:
                if error.reason != trouble:
                    trouble = error.reason
                    logger.warning("flags are read all the time, since Unleash's log is not: %s", trouble)
                with contextlib.suppress(DependencyUnavailable):
                    for task in await self._rollouts.tasks():
                        self._handlers.wakes.note(task)
            await asyncio.sleep(FLAGS_TICKS * self._settings.deployer_tick_seconds)

    async def _tick_forever(self, task: str) -> None:
        shortest = self._settings.deployer_tick_seconds
        idle = IDLE_TICKS * shortest
        pause = shortest
        while True:
            failed = True
            try:
                async with self._ticks:
                    reading = self._flags.begin_reading(task)
                    await self._handlers.tick(task, reads_flags=reading is not None)
            except DependencyUnavailable as error:
                pause = min(2 * pause, _LONGEST_PAUSE)
                self._handlers.report(task, error, f"retrying in {pause:g} s")
                await asyncio.sleep(shortest)  # However often it is woken.
            except Exception as error:  # A worker that ended here would leave its canary unguarded.
                pause = min(2 * pause, _LONGEST_PAUSE)
                self._handlers.trouble[task] = repr(error)
                logger.exception("%s: internal error at its tick, retrying in %g s; the other tasks go on", task, pause)
                await asyncio.sleep(shortest)
            else:
                failed, pause = False, shortest
                self._handlers.trouble.pop(task, None)
                if reading is not None:
                    self._flags.set_read(task, reading)
            # What is noted does not shorten the pause of a tick that is tried again.
            await self._handlers.wakes.wait(task, pause, pause if failed else max(pause, idle))
