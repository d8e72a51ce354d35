"""Which rows a table has already: the window of ids, kept in step with the table, and the table itself in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from numpy.typing import NDArray
from pyarrow.fs import FileSystem

from services.prediction_log.deduplication.id_window import IdHashes, IdWindow, hash_ids
from services.prediction_log.parquet_files import File, by_partition, files_of, read, span
from services.prediction_log.tables import TablePartition

_EVER = (-(2**62), 2**62)


class DuplicateFinder:
    """Of one table. It always speaks of the version that `follow` was last given, of whoever's rows."""

    def __init__(self, fs: FileSystem, id_column: str, capacity: int) -> None:
        self._fs = fs
        self._id = id_column
        self._capacity = capacity
        self._seen = IdWindow(capacity)
        self._files: dict[str, File] = {}
        self._followed = False

    def follow(self, delta: DeltaTable) -> None:
        """Take in what is new in the table. Reads files: may raise OSError when one was vacuumed meanwhile."""
        now = {file.path: file for file in files_of(delta)}
        fresh = [file for path, file in now.items() if path not in self._files]
        if not self._followed or sum(file.rows for file in fresh if not self._passed(file)) > 2 * self._capacity:
            self._load(list(now.values()))
        else:
            for file in sorted(fresh, key=lambda file: file.newest):
                self._take(file)
        self._files, self._followed = now, True

    def add(self, rows: pa.Table, files: Iterable[File]) -> None:
        """These rows are in the table now, in these files."""
        for file in files:
            self._files[file.path] = file
        for partition, part in by_partition(rows):
            self._seen.add(self._keys(partition, part), {partition: span(part)[1]})

    def among(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Which of the rows are in the table already, or twice among themselves (all but the first). Exact."""
        ids = rows[self._id].to_pylist()
        tasks = rows["task"].to_pylist()
        keys = hash_ids(tasks, ids)
        doubled = np.zeros(len(keys), np.bool_)
        if len(np.unique(keys)) < len(keys):
            first: set[tuple[str, str]] = set()
            for number, key in enumerate(zip(tasks, ids, strict=True)):
                doubled[number] = key in first
                first.add(key)
        hits = self._seen.holds(keys)
        doubtful = hits | self._before_horizon(rows)
        if doubtful.any():
            doubled[doubtful] |= self._in_table(rows.filter(pa.array(doubtful)), hits[doubtful])
        return doubled

    def _before_horizon(self, rows: pa.Table) -> NDArray[np.bool_]:
        horizon = self._seen.horizon
        old = np.zeros(rows.num_rows, np.bool_)
        if not horizon:
            return old
        partitions = list(zip(rows["task"].to_pylist(), rows["date"].to_pylist(), strict=True))
        known = {partition: horizon.get(partition) for partition in set(partitions)}
        if all(time is None for time in known.values()):
            return old
        limits = np.array([known[one] if known[one] is not None else -(2**63) for one in partitions], np.int64)
        times: NDArray[np.int64] = rows["occurred_at"].cast(pa.int64()).to_numpy()
        return times <= limits

    def _in_table(self, rows: pa.Table, hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Look rows up: first where a row of the same time would lie, then, if its hash is known, in the whole task."""
        numbered = rows.append_column("number", pa.array(range(rows.num_rows)))
        found = np.zeros(rows.num_rows, np.bool_)
        for partition, part in by_partition(numbered):
            first, last = span(part)
            there = self._ids(self._overlapping(partition, first, last), first, last)
            for number, one in zip(part["number"].to_pylist(), part[self._id].to_pylist(), strict=True):
                found[number] = one in there
        strange: dict[str, dict[str, list[int]]] = {}
        for number in np.flatnonzero(hits & ~found):
            row = rows.slice(int(number), 1)
            strange.setdefault(row["task"][0].as_py(), {}).setdefault(row[self._id][0].as_py(), []).append(int(number))
        for task, wanted in strange.items():
            everything = [file for file in self._files.values() if file.partition[0] == task]
            for one in self._ids(everything, *_EVER) & wanted.keys():
                found[wanted[one]] = True
        return found

    def _overlapping(self, partition: TablePartition, first: int, last: int) -> list[File]:
        files = self._files.values()
        return [f for f in files if f.partition == partition and f.oldest <= last and f.newest >= first]

    def _ids(self, files: list[File], first: int, last: int) -> set[str]:
        return {one for table in read(files, self._fs, [self._id], first, last) for one in table[self._id].to_pylist()}

    def _load(self, files: list[File]) -> None:
        """Start the window anew with the newest files."""
        self._seen = IdWindow(self._capacity)
        kept: list[File] = []
        rows = 0
        for file in sorted(files, key=lambda file: file.newest, reverse=True):
            if rows + file.rows > self._capacity and kept:
                self._seen.leave_out({file.partition: file.newest})
            else:
                rows += file.rows
                kept.append(file)
        for file in reversed(kept):
            self._take(file)

    def _take(self, file: File) -> None:
        """Add a file's rows, but for those that the window does not speak of anyway or has."""
        if self._passed(file):
            return
        horizon = self._seen.horizon.get(file.partition)
        first = _EVER[0] if horizon is None else horizon + 1
        for table in read([file], self._fs, [self._id], first, _EVER[1]):
            for part in _slices(table):
                keys = self._keys(file.partition, part)
                new = ~self._seen.holds(keys)
                newest: Mapping[TablePartition, int] = {file.partition: span(part)[1]}
                self._seen.add(keys[new], newest)

    def _passed(self, file: File) -> bool:
        return file.newest <= self._seen.horizon.get(file.partition, _EVER[0])

    def _keys(self, partition: TablePartition, rows: pa.Table) -> IdHashes:
        return hash_ids([partition[0]] * rows.num_rows, rows[self._id].to_pylist())


def _slices(rows: pa.Table, size: int = 100_000) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, size):
        yield rows.slice(start, size)
