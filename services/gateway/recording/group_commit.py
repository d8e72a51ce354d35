"""Writes what arrives in one turn of the event loop as one frame of the spool: one encryption, one write.

With many requests at once that is a tenth of a request's processor time. A request that is alone does not wait for the
end of its turn: as long as the turns have one each, it is written at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shared.spool import Record

_MAX_GROUP_BYTES = 64 * 1024
"""A group of more is written at once: waiting saves nothing then, and the processor still has it in its cache."""


class _Waiting(NamedTuple):
    records: Sequence[Record]
    written: asyncio.Future[None]


class GroupCommit:
    """`write`: takes all records, or raises having taken none."""

    def __init__(self, write: Callable[[Sequence[Record]], None]) -> None:
        self._write = write
        self._group: list[_Waiting] = []
        self._bytes = 0
        self._in_turn = 0
        """How many requests have come in this turn."""
        self._was_alone = True
        """Whether no more than one came in the last turn that had any."""

    def append(self, records: Sequence[Record]) -> asyncio.Future[None] | None:
        """Write them now, and return None or raise what `write` raised; or return a future that ends so.

        Cancelling it does not take them back.
        """
        loop = asyncio.get_running_loop()
        self._in_turn += 1
        if self._in_turn == 1:
            loop.call_soon(self._end_turn)
            if self._was_alone:
                self._write(records)
                return None
        written = loop.create_future()
        self._group.append(_Waiting(records, written))
        for record in records:
            self._bytes += len(record.value)
        if self._bytes > _MAX_GROUP_BYTES:
            self.flush()
        return written

    def _end_turn(self) -> None:
        self._was_alone, self._in_turn = self._in_turn == 1, 0
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        group, self._group, self._bytes = self._group, [], 0
        if group:
            self._write_group(group)

    def _write_group(self, group: Sequence[_Waiting]) -> None:
        """Write a group. If that fails each request is tried alone, so that it fails or not on its own."""
        try:
            self._write([record for waiting in group for record in waiting.records])
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            if len(group) > 1:
                for waiting in group:
                    self._write_group([waiting])
            elif not group[0].written.done():
                group[0].written.set_exception(error)
            return
        for _, written in group:
            if not written.done():  # Else its client has left.
                written.set_result(None)
