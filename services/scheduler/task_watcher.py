"""The task files, watched: what changed is published.

A broken file is logged once and its task stays as it was. A file that is removed leaves its task in place: data and
adapters outlive it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from schemas.tasks import TaskChanged, TaskSpec
from services.scheduler.settings import SchedulerSettings
from services.scheduler.task_files import read_task
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import EventPublisher

logger = logging.getLogger(__name__)


class Tasks:
    def __init__(self, settings: SchedulerSettings, publisher: EventPublisher, table: LatestByKey[TaskChanged]) -> None:
        self._settings = settings
        self._publisher = publisher
        self._table = table
        self._published: dict[str, TaskSpec] = {}
        self._broken: dict[str, str] = {}
        self._looked = False

    def specs(self) -> Iterator[TaskSpec]:
        """All tasks as they are now."""
        names = sorted(self._published.keys() | {event.task for event in self._table})
        return (spec for name in names if (spec := self.get(name)) is not None)

    def get(self, name: str) -> TaskSpec | None:
        """One task: what this process published, else what the topic says."""
        changed = self._table.get(name)
        return self._published.get(name) or (changed.spec if changed is not None else None)

    @property
    def looked(self) -> bool:
        """The files were read at least once."""
        return self._looked

    @property
    def broken(self) -> dict[str, str]:
        """File name to what is wrong with it."""
        return dict(self._broken)

    async def look(self) -> None:
        """Read every task file once; publish the tasks that changed."""
        files = await asyncio.to_thread(self._read)
        taken: dict[str, Path] = {}
        broken: dict[str, str] = {}
        for path, outcome in files:
            if isinstance(outcome, ConfigurationError):
                broken[path.name] = outcome.reason
            elif outcome.name in taken:
                broken[path.name] = f"{path}: task {outcome.name} is already that of {taken[outcome.name].name}"
            else:
                taken[outcome.name] = path
                await self._publish(outcome)
        for name, reason in broken.items():
            if self._broken.get(name) != reason:
                logger.error("a task file is wrong, its task stays as it was:\n%s", reason)
        self._broken = broken
        self._looked = True

    async def watch(self) -> None:
        """Background: `look` every two seconds."""
        await asyncio.sleep(min(1.0, self._settings.scheduler_poll_seconds))  # The table is read meanwhile.
        while True:
            try:
                await self.look()
            except DependencyUnavailable as error:
                logger.warning("scheduler: tasks are published later: %s", error)
            await asyncio.sleep(self._settings.scheduler_poll_seconds)

    def _read(self) -> list[tuple[Path, TaskSpec | ConfigurationError]]:
        files: list[tuple[Path, TaskSpec | ConfigurationError]] = []
        for path in sorted(self._settings.tasks_folder.glob("*.yaml")):
            try:
                files.append((path, read_task(path)))
            except ConfigurationError as error:
                files.append((path, error))
        return files

    async def _publish(self, spec: TaskSpec) -> None:
        if self.get(spec.name) == spec:
            self._published.setdefault(spec.name, spec)
            return
        await self._publisher.publish(TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
        self._published[spec.name] = spec
        logger.info("task %s is now revision %s", spec.name, spec.revision)
