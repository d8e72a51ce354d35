"""Watches the task files and publishes the tasks that changed.

An invalid file is logged once and its task stays as it was. A file that is removed leaves its task in place: data and
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


class TaskWatcher:
    """The tasks as their files and the topic `tasks.changed` define them."""

    def __init__(self, settings: SchedulerSettings, publisher: EventPublisher, table: LatestByKey[TaskChanged]) -> None:
        self._settings = settings
        self._publisher = publisher
        self._table = table
        self._published: dict[str, TaskSpec] = {}
        self.invalid_files: dict[str, str] = {}
        """File name to what is wrong with it."""
        self.scanned = False
        """True once the files were read."""

    def specs(self) -> Iterator[TaskSpec]:
        """Return all current tasks, by name."""
        names = sorted(self._published.keys() | {event.task for event in self._table})
        return (spec for name in names if (spec := self.get(name)) is not None)

    def get(self, name: str) -> TaskSpec | None:
        """Return one task: what this process published, else what is on the topic."""
        changed = self._table.get(name)
        return self._published.get(name) or (changed.spec if changed is not None else None)

    async def scan(self) -> None:
        """Read every task file once; publish the tasks that changed. Raises DependencyUnavailable."""
        files = await asyncio.to_thread(self._read)
        file_of: dict[str, str] = {}
        invalid: dict[str, str] = {}
        for path, task in files:
            if isinstance(task, ConfigurationError):
                invalid[path.name] = task.reason
            elif task.name in file_of:
                invalid[path.name] = f"{path}: task {task.name} is already defined in {file_of[task.name]}"
            else:
                file_of[task.name] = path.name
                await self._publish(task)
        for name, reason in invalid.items():
            if self.invalid_files.get(name) != reason:
                logger.error("invalid task file, its task stays as it was:\n%s", reason)
        self.invalid_files = invalid
        self.scanned = True

    async def scan_forever(self) -> None:
        """Run `scan` at the configured interval, as a background task."""
        await asyncio.sleep(min(1.0, self._settings.scheduler_poll_seconds))  # The table is read meanwhile.
        while True:
            try:
                await self.scan()
            except DependencyUnavailable as error:
                logger.warning(
                    "tasks are not published, retrying in %s s: %s", self._settings.scheduler_poll_seconds, error
                )
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
