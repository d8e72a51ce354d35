"""A window of the newest ids of a table, in 8 bytes each.

The window is exact for the ids it contains and reports what it does not cover: `horizon` has, per task and day, the
time of the newest row that is in the table and not in the window. A redelivered event has the time it had before. So
a row after the horizon is looked up in the window alone, and only older ones are looked up in the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.prediction_log.tables import TablePartition

IdHashes = NDArray[np.int64]

_MAX_UNMERGED = 65_536
"""Hashes that are added to a small array before they are merged into the large one."""


def hash_ids(tasks: Iterable[str], ids: Iterable[str]) -> IdHashes:
    """Return 64-bit hashes of ids within their tasks. They differ from process to process: never store them."""
    return np.fromiter(map(hash, zip(tasks, ids, strict=True)), np.int64)


@dataclass
class _Generation:
    merged: IdHashes = field(default_factory=lambda: np.empty(0, np.int64))
    unmerged: IdHashes = field(default_factory=lambda: np.empty(0, np.int64))
    newest: dict[TablePartition, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.merged) + len(self.unmerged)

    def add(self, hashes: IdHashes) -> None:
        self.unmerged = np.sort(np.concatenate([self.unmerged, hashes]))
        if len(self.unmerged) >= _MAX_UNMERGED:
            self.merged = np.sort(np.concatenate([self.merged, self.unmerged]))
            self.unmerged = np.empty(0, np.int64)


class IdWindow:
    """Between `capacity` and twice as many of the newest ids: two generations, of which the older is dropped whole."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._young, self._old = _Generation(), _Generation()
        self.horizon: dict[TablePartition, int] = {}
        """Microseconds since 1970 (UTC). A partition without an entry is covered completely."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, hashes: IdHashes, newest: Mapping[TablePartition, int]) -> None:
        """Add ids; `newest`: the latest `occurred_at` among them per partition, in microseconds."""
        if len(self._young) and len(self._young) + len(hashes) > self._capacity:
            self.raise_horizon(self._old.newest)
            self._young, self._old = _Generation(), self._young
        self._young.add(hashes)
        _raise(self._young.newest, newest)

    def raise_horizon(self, newest: Mapping[TablePartition, int]) -> None:
        """Record that the table has rows up to these times that are not in the window."""
        _raise(self.horizon, newest)

    def contains(self, hashes: IdHashes) -> NDArray[np.bool_]:
        """Return which ids are in the window. A different id has the same hash once in 10^13 times."""
        order = np.argsort(hashes)
        ordered, found = hashes[order], np.zeros(len(hashes), np.bool_)
        for generation in (self._young, self._old):
            for part in (generation.merged, generation.unmerged):
                if len(part):
                    positions = np.minimum(np.searchsorted(part, ordered), len(part) - 1)
                    found |= part[positions] == ordered
        in_given_order = np.empty_like(found)
        in_given_order[order] = found
        return in_given_order


def _raise(times: dict[TablePartition, int], to: Mapping[TablePartition, Any]) -> None:
    for partition, time in to.items():
        times[partition] = max(time, times.get(partition, time))
