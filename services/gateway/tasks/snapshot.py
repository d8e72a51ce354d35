"""The tasks of `tasks.changed`: a snapshot on disk for a start without the broker, and the shipper's table of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

import orjson
from pydantic import ValidationError

from schemas.tasks import TaskChanged
from shared.errors import DependencyUnavailable
from shared.files import write_atomically
from shared.kafka.clients import describe_topics, end_offsets
from shared.kafka.delivery import TopicPartition
from shared.kafka.latest_by_key import READ_SECONDS, LatestByKey
from shared.settings import Settings

_POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


class TaskSnapshot:
    """A file with the tasks of a table, so that a start needs no broker. The topic remains the source of truth."""

    def __init__(self, table: LatestByKey[TaskChanged], path: Path) -> None:
        self._table = table
        self._path = path
        self._written: list[TaskChanged] = []

    async def load(self) -> None:
        """Fill the table from the file. A missing or broken file is skipped."""
        try:
            saved = orjson.loads(self._path.read_bytes())
            changes = [TaskChanged.model_validate_json(orjson.dumps(change)) for change in saved]
        except FileNotFoundError:
            return
        except (OSError, TypeError, ValueError, ValidationError) as error:
            logger.warning("cannot read %s, waiting for the tasks from Kafka: %s", self._path, error)
            return
        for change in changes:
            await self._table.put(change.task, change)
        self._written = changes

    async def sync_forever(self) -> None:
        """Background: write the file within a second of a change."""
        while True:
            if (changes := list(self._table)) != self._written:
                body = b"[" + b",\n".join(change.model_dump_json().encode() for change in changes) + b"]"
                await asyncio.to_thread(write_atomically, self._path, body)
                self._written = changes
            await asyncio.sleep(_POLL_SECONDS)


class TaskTable:
    """The tasks as the shipper reads them: each in its last version, never in an older one that is read before it."""

    def __init__(self, table: LatestByKey[TaskChanged]) -> None:
        self._table = table
        self._read = asyncio.Event()

    async def read(self, settings: Settings) -> None:
        """Background, started when the broker answers: wait until the topic is read to the end that it has now."""
        topic = self._table.topic
        described = await describe_topics(settings, [topic])
        if topic not in described:
            raise DependencyUnavailable(f"there is no topic {topic} yet", "See which are missing: ratchet topics list")
        partitions = described[topic].partitions
        await self.read_to(await end_offsets(settings, [TopicPartition(topic, number) for number in partitions]))

    async def read_to(self, ends: Mapping[TopicPartition, int]) -> None:
        """Wait until the topic is read to these end offsets.

        The last offset may have no record (compacted, or never stored by tansu): after READ_SECONDS all else is read.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_SECONDS):
                await self._table.wait_until_read(ends)
        self._read.set()

    async def latest(self, name: str) -> TaskChanged | None:
        """Return the task's last version, None if there is none. Waits until the topic is read to its end.

        An older version may have other rules of redaction, and another revision.
        """
        await self._read.wait()
        return self._table.get(name)

    async def wait_until_one_redacts(self) -> None:
        """Return once there is a task whose texts are redacted, which may be never."""
        while not any(change.spec.redaction.enabled for change in self._table):
            await asyncio.sleep(_POLL_SECONDS)
