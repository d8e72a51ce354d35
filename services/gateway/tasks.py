"""The tasks as the shipper knows them, and when not to know one means that there is none."""

from __future__ import annotations

import asyncio

from schemas.tasks import TaskChanged
from shared.tables import READ_SECONDS, LatestByKey

_LOOK_SECONDS = 0.5


class Tasks:
    def __init__(self, table: LatestByKey[TaskChanged]) -> None:
        self._table = table
        self._read = False

    async def wait_until_read(self) -> None:
        """Background, which begins when the broker answers: after an outage the topic is not read yet."""
        await asyncio.sleep(READ_SECONDS)
        self._read = True

    async def wait_until_one_redacts(self) -> None:
        """Until there is a task whose texts are to be redacted: for ever, if none is."""
        while not any(change.spec.redaction.enabled for change in self._table):
            await asyncio.sleep(_LOOK_SECONDS)

    def get(self, name: str) -> TaskChanged | None:
        return self._table.get(name)

    def lacks(self, name: str) -> bool:
        """Whether there surely is no such task."""
        return self._read and self._table.get(name) is None
