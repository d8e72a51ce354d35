"""Collects what comes in one turn of the event loop, so that it is handled together at the end of the turn.

With many requests at once their events are one write then, and a model server on the same machine wakes up once for all
of theirs, not once for each. What is alone does not wait: as long as the turns have one each, it is handled at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_MAX_BYTES = 64 * 1024
"""A batch of more is handled at once: waiting saves nothing then, and the processor still has it in its cache."""

Item = TypeVar("Item")


class TurnBatch(Generic[Item]):
    """`handle` gets the items of a turn in the order in which they came. It must not raise."""

    def __init__(self, handle: Callable[[Sequence[Item]], None]) -> None:
        self._handle = handle
        self._items: list[Item] = []
        self._bytes = 0
        self._in_turn = 0
        """How many have come in this turn."""
        self._was_alone = True
        """Whether no more than one came in the last turn that had any."""

    def comes_alone(self) -> bool:
        """Count one that comes. True: it is to be handled at once. False: it is to be added."""
        self._in_turn += 1
        if self._in_turn > 1:
            return False
        asyncio.get_running_loop().call_soon(self._end_turn)
        return self._was_alone

    def add(self, item: Item, size: int) -> None:
        """Keep an item until the end of the turn. `size`: its bytes."""
        self._items.append(item)
        self._bytes += size
        if self._bytes > _MAX_BYTES:
            self.flush()

    def _end_turn(self) -> None:
        self._was_alone, self._in_turn = self._in_turn == 1, 0
        self.flush()

    def flush(self) -> None:
        """Handle what waits."""
        items, self._items, self._bytes = self._items, [], 0
        if items:
            self._handle(items)
