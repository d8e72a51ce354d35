"""Which facts a table holds already: a window of the newest ids, in 8 bytes each.

The window is exact about itself and says what it does not cover: `horizon` has, per task and day, the time of the
newest row that is in the table and not in the window. A fact that is delivered again has the time it had. So a row
after the horizon is known by the window alone, and only older ones have to be looked up in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.prediction_log.tables import TablePartition

IdHashes = NDArray[np.int64]

_FRESH = 65_536
"""IdHashes that are added to a small array before they are merged into the large one."""


def hash_ids(tasks: Iterable[str], ids: Iterable[str]) -> IdHashes:
    """64-bit hashes of ids within their tasks. They differ from process to process: never store them."""
    return np.fromiter(map(hash, zip(tasks, ids, strict=True)), np.int64)


@dataclass
class _Generation:
    keys: IdHashes = field(default_factory=lambda: np.empty(0, np.int64))
    fresh: IdHashes = field(default_factory=lambda: np.empty(0, np.int64))
    newest: dict[TablePartition, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys) + len(self.fresh)

    def add(self, keys: IdHashes) -> None:
        self.fresh = np.sort(np.concatenate([self.fresh, keys]))
        if len(self.fresh) >= _FRESH:
            self.keys = np.sort(np.concatenate([self.keys, self.fresh]))
            self.fresh = np.empty(0, np.int64)


class IdWindow:
    """Between `capacity` and twice as many of the newest keys: two generations, the elder is let go as a whole."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._young, self._old = _Generation(), _Generation()
        self.horizon: dict[TablePartition, int] = {}
        """Microseconds since 1970 (UTC). A partition that is not named is covered whole."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, keys: IdHashes, newest: Mapping[TablePartition, int]) -> None:
        """Remember keys; `newest`: the latest `occurred_at` among them by partition, in microseconds."""
        if len(self._young) and len(self._young) + len(keys) > self._capacity:
            self.leave_out(self._old.newest)
            self._young, self._old = _Generation(), self._young
        self._young.add(keys)
        _raise(self._young.newest, newest)

    def leave_out(self, newest: Mapping[TablePartition, int]) -> None:
        """The table has rows up to these times that are not in the window."""
        _raise(self.horizon, newest)

    def holds(self, keys: IdHashes) -> NDArray[np.bool_]:
        """Which keys are in the window; a key of another fact is, once in 10^13 times."""
        order = np.argsort(keys)
        ordered, found = keys[order], np.zeros(len(keys), np.bool_)
        for generation in (self._young, self._old):
            for part in (generation.keys, generation.fresh):
                if len(part):
                    places = np.minimum(np.searchsorted(part, ordered), len(part) - 1)
                    found |= part[places] == ordered
        answer = np.empty_like(found)
        answer[order] = found
        return answer


def _raise(times: dict[TablePartition, int], to: Mapping[TablePartition, Any]) -> None:
    for partition, time in to.items():
        times[partition] = max(time, times.get(partition, time))
