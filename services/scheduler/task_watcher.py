"""Watches the task files; publishes the tasks that changed, and before them their golden sets, to the artifact store.

An invalid file is logged once and its task stays as it was; no command starts a cycle of it meanwhile. A file that is
removed leaves its task in place: data and adapters outlive it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from schemas.golden import GoldenSet
from schemas.tasks import TaskChanged, TaskSpec
from services.scheduler.settings import SchedulerSettings
from services.scheduler.task_files import TaskFile, read_task_file
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.kafka.publisher import Publisher
from shared.storage.artifacts import ArtifactStore
from shared.storage.golden_sets import publish_golden_set

logger = logging.getLogger(__name__)
POLL_SECONDS = 2.0
"""Between two scans of the task files."""
TABLE_SECONDS = 10.0
"""How long a request waits until a table is read: a client waits longer for its answer."""
_Version = tuple[int, int, int, str]
_Stamp = tuple[int, int, int, int]
_SETTLED_NANOSECONDS = 2 * 10**9
"""A file that was written to so lately may be again without its time telling."""
_READ_BY = {"kind", "system_prompt", "labels", "renamed_labels"}
"""What of a task decides how its golden file is read."""


class TaskWatcher:
    """The tasks as their files and the topic `tasks.changed` define them."""

    def __init__(
        self,
        settings: SchedulerSettings,
        publisher: Publisher,
        table: LatestByKey[TaskChanged],
        artifacts: ArtifactStore,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._table = table
        self._artifacts = artifacts
        self._published: dict[str, TaskSpec] = {}
        self._versions: dict[str, _Version] = {}
        self._sets: dict[str, tuple[_Version, GoldenSet]] = {}
        self._known: dict[Path, tuple[_Stamp, TaskFile]] = {}
        self.invalid_files: dict[str, str] = {}
        """File name to what is wrong with it."""
        self._file_of: dict[str, str] = {}
        self._task_in: dict[str, str] = {}
        self._scanning = asyncio.Lock()
        self.scanned = False
        """True once the files were read, and before them all tasks that are on the topic."""

    def specs(self) -> Iterator[TaskSpec]:
        """Return all current tasks, by name."""
        names = sorted(self._published.keys() | {event.task for event in self._table})
        return (spec for name in names if (spec := self.get(name)) is not None)

    def get(self, name: str) -> TaskSpec | None:
        """Return one task: what this process published, else what is on the topic."""
        changed = self._table.get(name)
        return self._published.get(name) or (changed.spec if changed is not None else None)

    def fault_of(self, name: str) -> str | None:
        """Return what is wrong with the task's own file, for which it is still as it was; None: nothing.

        An invalid file is that of the task that this process last read from it, else of the one it is named after,
        unless another file defines that one. So one whose content cannot be read concerns no other task.
        """
        return self.invalid_files.get(self._file_of.get(name, ""))

    async def until_read(self) -> None:
        """Return when all tasks are known, those whose file was removed too. Raises DependencyUnavailable."""
        await self._table.until_read(TABLE_SECONDS)

    async def scan(self) -> None:
        """Read every task file once; publish the tasks that changed. Raises DependencyUnavailable.

        After a start it waits for the topic: until that is read to its end, tasks are missing or as they were before.
        """
        await self.until_read()
        async with self._scanning:
            await self._scan()

    async def _scan(self) -> None:
        files = await asyncio.to_thread(self._read)
        file_of: dict[str, str] = {}
        invalid: dict[str, str] = {}
        # A task's own file is <task>.yaml, even an invalid one: a copy beside it must not take its place.
        for path, task in sorted(files, key=lambda file: not _is_own(*file)):
            if isinstance(task, ConfigurationError):
                invalid[path.name] = task.reason
                file_of.setdefault(path.stem, path.name)
            elif task.spec.name in file_of:
                name = task.spec.name
                invalid[path.name] = f"{path}: task {name} is already defined in {file_of[name]}"
            else:
                file_of[task.spec.name] = path.name
                self._task_in[path.name] = task.spec.name
                await self._publish(task)
        for name, reason in invalid.items():
            file_of.setdefault(self._task_in.get(name, Path(name).stem), name)
            if self.invalid_files.get(name) != reason:
                logger.error("invalid task file, its task stays as it was:\n%s", reason)
        self.invalid_files, self._file_of = invalid, file_of
        self.scanned = True

    async def scan_forever(self) -> None:
        """Run `scan` at the configured interval, as a background task."""
        while True:
            try:
                await self.scan()
            except DependencyUnavailable as error:
                logger.warning("tasks are not published, retrying in %s s: %s", POLL_SECONDS, error)
            await asyncio.sleep(POLL_SECONDS)

    def _read(self) -> list[tuple[Path, TaskFile | ConfigurationError]]:
        return [(path, self._read_file(path)) for path in sorted(self._settings.tasks_folder.glob("*.yaml"))]

    def _read_file(self, path: Path) -> TaskFile | ConfigurationError:
        """Read a task file, unless it and its golden file are as they were: to parse one takes milliseconds."""
        stamp = _stamp(path)
        known = self._known.pop(path, None)
        if known is not None and known[0] == stamp and self._golden_is_published(known[1]):
            self._known[path] = known
            return known[1]
        try:
            task = read_task_file(path, self._published_set)
        except ConfigurationError as error:
            return error
        except OSError as error:
            return ConfigurationError(f"{path}: cannot be read: {error}")
        if stamp is not None and not task.golden:
            self._known[path] = stamp, task
        return task

    def _golden_is_published(self, task: TaskFile) -> bool:
        if task.golden_path is None:
            return True
        published = self._sets.get(task.spec.name)
        return published is not None and published[0] == _version(task.golden_path, task.spec)

    def _published_set(self, file: Path, spec: TaskSpec) -> GoldenSet | None:
        """Return the set of a golden file that is as it was when its set was published: a large one is read once."""
        version = self._versions[spec.name] = _version(file, spec)
        published = self._sets.get(spec.name)
        return published[1] if published is not None and published[0] == version else None

    async def _publish(self, file: TaskFile) -> None:
        spec = file.spec
        if file.golden and spec.golden_set is not None:
            await self._publish_golden_set(file)
            self._sets[spec.name] = self._versions[spec.name], spec.golden_set
        if self.get(spec.name) == spec:
            self._published.setdefault(spec.name, spec)
            return
        await self._publisher.publish(TaskChanged(task=spec.name, task_revision=spec.revision, spec=spec))
        self._published[spec.name] = spec
        logger.info("task %s is now revision %s", spec.name, spec.revision)

    async def _publish_golden_set(self, file: TaskFile) -> None:
        """Publish the set before the event that names it, and once in each process, should it have been deleted."""
        try:
            await asyncio.to_thread(publish_golden_set, self._artifacts, file.spec.name, file.golden)
        except OSError as error:
            raise DependencyUnavailable(f"the golden set of {file.spec.name} was not written: {error}") from error


def _is_own(path: Path, task: TaskFile | ConfigurationError) -> bool:
    return isinstance(task, ConfigurationError) or task.spec.name == path.stem


def _stamp(file: Path) -> _Stamp | None:
    """Return what differs once a task file was replaced or written to; None: that is not to be told yet."""
    try:
        stat = file.stat()
    except OSError:  # It was deleted this moment; whoever reads it says so.
        return None
    if time.time_ns() - stat.st_mtime_ns < _SETTLED_NANOSECONDS:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _version(file: Path, spec: TaskSpec) -> _Version:
    """Return what differs once a golden file was replaced or written to, or its task reads it differently.

    It is taken before the file is read: what is written meanwhile is another version.
    """
    read_by = spec.model_dump_json(include=_READ_BY)
    try:
        stat = file.stat()
    except OSError:  # It was deleted this moment; whoever reads it says so.
        return 0, 0, 0, read_by
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, read_by
