"""The tasks: on disk, for a gateway that starts without its broker; and when not to know one means there is none."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import orjson
from pydantic import ValidationError

from schemas.tasks import TaskChanged
from shared.files import write_atomically
from shared.kafka.latest_by_key import READ_SECONDS, LatestByKey

_LOOK_SECONDS = 0.5

logger = logging.getLogger(__name__)


class TaskSnapshot:
    """A table's tasks in a file, so that a start needs no broker to know them. The topic stays the truth."""

    def __init__(self, table: LatestByKey[TaskChanged], path: Path) -> None:
        self._table = table
        self._path = path
        self._written: list[TaskChanged] = []

    async def load(self) -> None:
        """Begin with the tasks known last. A file that is missing or broken is as good as none."""
        try:
            kept = orjson.loads(self._path.read_bytes())
            changes = [TaskChanged.model_validate_json(orjson.dumps(one)) for one in kept]
        except FileNotFoundError:
            return
        except (OSError, TypeError, ValueError, ValidationError) as error:
            logger.warning("%s is of no use, the tasks come from Kafka: %s", self._path, error)
            return
        for change in changes:
            await self._table.put(change.task, change)
        self._written = changes

    async def sync_forever(self) -> None:
        """Background: write the file anew within a second of a change."""
        while True:
            if (now := list(self._table)) != self._written:
                body = b"[" + b",\n".join(change.model_dump_json().encode() for change in now) + b"]"
                await asyncio.to_thread(write_atomically, self._path, body)
                self._written = now
            await asyncio.sleep(_LOOK_SECONDS)


class TaskTable:
    """As the shipper knows them."""

    def __init__(self, table: LatestByKey[TaskChanged]) -> None:
        self._table = table
        self._read = False

    async def wait_until_read(self) -> None:
        """Background that begins when the broker answers: after an outage the topic is not read yet."""
        await asyncio.sleep(READ_SECONDS)
        self._read = True

    async def wait_until_one_redacts(self) -> None:
        """Until there is a task whose texts are to be redacted: for ever, if none is."""
        while not any(change.spec.redaction.enabled for change in self._table):
            await asyncio.sleep(_LOOK_SECONDS)

    def get(self, name: str) -> TaskChanged | None:
        return self._table.get(name)

    def is_missing(self, name: str) -> bool:
        """Whether there surely is no such task."""
        return self._read and self._table.get(name) is None
