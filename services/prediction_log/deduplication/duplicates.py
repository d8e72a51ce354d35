"""Finds rows that a table already has: in the window of newest ids, and in doubt in the table itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from numpy.typing import NDArray
from pyarrow.fs import FileSystem

from services.prediction_log.deduplication.id_window import IdHashes, IdWindow, hash_ids
from services.prediction_log.parquet_files import DataFile, data_files, read_columns, split_by_partition, time_range
from services.prediction_log.tables import TablePartition

_ALL_TIMES = (-(2**62), 2**62)


class DuplicateFinder:
    """Knows the ids in one table, as of the version last given to `sync`, whichever process stored the rows."""

    def __init__(self, fs: FileSystem, id_column: str, capacity: int) -> None:
        self._fs = fs
        self._id_column = id_column
        self._capacity = capacity
        self._window = IdWindow(capacity)
        self._files: dict[str, DataFile] = {}
        self._is_synced = False

    def sync(self, delta: DeltaTable) -> None:
        """Add the table's new files. Raises OSError when one of them was vacuumed meanwhile."""
        current = {file.path: file for file in data_files(delta)}
        new = [file for path, file in current.items() if path not in self._files]
        new_rows = sum(file.rows for file in new if not self._is_beyond_horizon(file))
        if not self._is_synced or new_rows > 2 * self._capacity:
            self._rebuild(list(current.values()))
        else:
            for file in sorted(new, key=lambda file: file.newest):
                self._add_file(file)
        self._files, self._is_synced = current, True

    def add(self, rows: pa.Table, files: Iterable[DataFile]) -> None:
        """Add rows that are in the table from now on, in these files."""
        for file in files:
            self._files[file.path] = file
        for partition, part in split_by_partition(rows):
            self._window.add(self._hashes(partition, part), {partition: time_range(part)[1]})

    def find(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Return which rows are in the table already or repeat an earlier one of `rows`. Exact."""
        ids = rows[self._id_column].to_pylist()
        tasks = rows["task"].to_pylist()
        hashes = hash_ids(tasks, ids)
        duplicates = np.zeros(len(hashes), np.bool_)
        if len(np.unique(hashes)) < len(hashes):
            earlier: set[tuple[str, str]] = set()
            for number, key in enumerate(zip(tasks, ids, strict=True)):
                duplicates[number] = key in earlier
                earlier.add(key)
        hits = self._window.contains(hashes)
        doubtful = hits | self._is_before_horizon(rows)
        if doubtful.any():
            duplicates[doubtful] |= self._find_in_table(rows.filter(pa.array(doubtful)), hits[doubtful])
        return duplicates

    def _is_before_horizon(self, rows: pa.Table) -> NDArray[np.bool_]:
        horizon = self._window.horizon
        nowhere = np.zeros(rows.num_rows, np.bool_)
        if not horizon:
            return nowhere
        partitions = list(zip(rows["task"].to_pylist(), rows["date"].to_pylist(), strict=True))
        if horizon.keys().isdisjoint(partitions):
            return nowhere
        limits = np.array([horizon.get(partition, -(2**63)) for partition in partitions], np.int64)
        times: NDArray[np.int64] = rows["occurred_at"].cast(pa.int64()).to_numpy()
        return times <= limits

    def _find_in_table(self, rows: pa.Table, hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Look rows up: first where a row of the same time would lie, then, if its hash is known, in the whole task."""
        numbered = rows.append_column("number", pa.array(range(rows.num_rows)))
        found = np.zeros(rows.num_rows, np.bool_)
        for partition, part in split_by_partition(numbered):
            first, last = time_range(part)
            ids = part[self._id_column].to_pylist()
            stored = self._stored(ids, self._overlapping(partition, first, last), first, last)
            for number, row_id in zip(part["number"].to_pylist(), ids, strict=True):
                found[number] = row_id in stored
        unexplained: dict[str, dict[str, list[int]]] = {}
        for number in np.flatnonzero(hits & ~found):
            row = rows.slice(int(number), 1)
            task, row_id = row["task"][0].as_py(), row[self._id_column][0].as_py()
            unexplained.setdefault(task, {}).setdefault(row_id, []).append(int(number))
        for task, numbers in unexplained.items():
            files = [file for file in self._files.values() if file.partition[0] == task]
            for row_id in self._stored(numbers, files, *_ALL_TIMES):
                found[numbers[row_id]] = True
        return found

    def _overlapping(self, partition: TablePartition, first: int, last: int) -> list[DataFile]:
        files = self._files.values()
        return [f for f in files if f.partition == partition and f.oldest <= last and f.newest >= first]

    def _stored(self, ids: Collection[str], files: Iterable[DataFile], first: int, last: int) -> set[str]:
        """Return which of the ids the files have within [first, last] (µs).

        A task may have billions of other ids, so none of these becomes an object, and files that are older than those
        with the ids are not read: what is sent again was mostly sent a short time ago.
        """
        wanted, found = pa.array(set(ids), pa.string()), set[str]()
        for file in sorted(files, key=attrgetter("newest"), reverse=True):
            for rows in read_columns(file, self._fs, [self._id_column], first, last):
                stored = rows[self._id_column]
                found.update(stored.filter(pc.is_in(stored, wanted)).to_pylist())
            if len(found) == len(wanted):
                break
        return found

    def _rebuild(self, files: list[DataFile]) -> None:
        """Fill a new window with the newest files."""
        self._window = IdWindow(self._capacity)
        newest: list[DataFile] = []
        rows = 0
        for file in sorted(files, key=lambda file: file.newest, reverse=True):
            if rows + file.rows > self._capacity and newest:
                self._window.raise_horizon({file.partition: file.newest})
            else:
                rows += file.rows
                newest.append(file)
        for file in reversed(newest):
            self._add_file(file)

    def _add_file(self, file: DataFile) -> None:
        """Add a file's rows, except those at or before the horizon and those that the window has already."""
        if self._is_beyond_horizon(file):
            return
        horizon = self._window.horizon.get(file.partition)
        first = _ALL_TIMES[0] if horizon is None else horizon + 1
        for rows in read_columns(file, self._fs, [self._id_column], first, _ALL_TIMES[1]):
            hashes = self._hashes(file.partition, rows)
            new = ~self._window.contains(hashes)
            self._window.add(hashes[new], {file.partition: time_range(rows)[1]})

    def _is_beyond_horizon(self, file: DataFile) -> bool:
        return file.newest <= self._window.horizon.get(file.partition, _ALL_TIMES[0])

    def _hashes(self, partition: TablePartition, rows: pa.Table) -> IdHashes:
        return hash_ids([partition[0]] * rows.num_rows, rows[self._id_column].to_pylist())
