"""A snapshot of `tasks.changed` on disk, for a start without the broker."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import orjson
from pydantic import ValidationError

from schemas.tasks import TaskChanged
from shared.files import write_atomically
from shared.kafka.latest_by_key import LatestByKey

_POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


def read_snapshot(path: Path) -> list[TaskChanged]:
    """Return the tasks of a snapshot; none if it is missing or broken."""
    try:
        return [TaskChanged.model_validate_json(orjson.dumps(change)) for change in orjson.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, TypeError, ValueError, ValidationError) as error:
        logger.warning("cannot read %s, only Kafka has the tasks: %s", path, error)
        return []


class TaskSnapshot:
    """A file with the tasks of a table, so that a start needs no broker. The topic remains the source of truth."""

    def __init__(self, table: LatestByKey[TaskChanged], path: Path) -> None:
        self._table = table
        self._path = path
        self._written: list[TaskChanged] = []

    async def load(self) -> None:
        """Fill the table from the file. A missing or broken file is skipped."""
        self._written = read_snapshot(self._path)
        for change in self._written:
            await self._table.remember(change.task, change)

    async def sync_forever(self) -> None:
        """Background: write the file within a second of a change."""
        while True:
            if (changes := list(self._table)) != self._written:
                body = b"[" + b",\n".join(change.model_dump_json().encode() for change in changes) + b"]"
                await asyncio.to_thread(write_atomically, self._path, body)
                self._written = changes
            await asyncio.sleep(_POLL_SECONDS)
