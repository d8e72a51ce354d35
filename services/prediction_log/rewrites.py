"""Bounds the memory in which delta-rs rewrites files whose rows are large.

A deletion holds up to 8,192 rows of the files that it rewrites, twice or three times over. That is little where a row
has a kilobyte, but it may have megabytes. So files of large rows are compacted to fewer bytes than others, and a day of
them is deleted from by spans of time, which are few files each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from pyarrow.fs import FileSystem

from services.prediction_log.parquet_files import damage_as_os_error, microseconds

MAX_REWRITE_BYTES = 256 * 1024 * 1024
"""Rows, uncompressed, that one rewrite may hold."""
_HELD_ROWS = 8_192
Span = tuple[int | None, int | None]
"""A first time and the one after the last, in microseconds; None: open."""


@dataclass(frozen=True)
class SizedFile:
    """A file of a table with the size of its rows, uncompressed. `oldest`: its first time (µs), if it is known."""

    path: str
    rows: int
    compressed: int
    uncompressed: int
    oldest: int | None


def sized_files(delta: DeltaTable, fs: FileSystem, partition: Mapping[str, str]) -> list[SizedFile]:
    """Return the files of a partition. Reads their footers. Raises OSError."""
    files = []
    for action in pa.table(delta.get_add_actions(flatten=True)).to_pylist():
        if all(str(action[f"partition.{name}"]) == value for name, value in partition.items()):
            with damage_as_os_error(action["path"]):
                metadata = pq.read_metadata(action["path"], filesystem=fs)
            size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
            oldest = action.get("min.occurred_at")
            files.append(
                SizedFile(
                    action["path"], metadata.num_rows, action["size_bytes"], size,
                    None if oldest is None else microseconds(oldest),
                )
            )  # fmt: skip
    return files


def compacted_bytes(files: Sequence[SizedFile], target: int) -> int:
    """Return how large, compressed, a compacted file may become: `target`, or less if its rows are large."""
    compressed, uncompressed = sum(file.compressed for file in files), sum(file.uncompressed for file in files)
    if not uncompressed or _held_bytes(files, uncompressed * target // max(compressed, 1)) <= MAX_REWRITE_BYTES:
        return target
    return min(target, max(1, MAX_REWRITE_BYTES * compressed // uncompressed))


def rewrite_spans(files: Sequence[SizedFile]) -> Iterator[Span]:
    """Yield spans of time that have all rows of the files, and of few enough files each to rewrite them at once."""
    total = sum(file.uncompressed for file in files)
    if any(file.oldest is None for file in files) or _held_bytes(files, total) <= MAX_REWRITE_BYTES:
        yield None, None
        return
    first, size = None, 0
    by_time = sorted(files, key=attrgetter("oldest"))
    for oldest, beginning in groupby(by_time, key=attrgetter("oldest")):
        added = sum(file.uncompressed for file in beginning)
        if size and size + added > MAX_REWRITE_BYTES:
            yield first, oldest
            first, size = oldest, 0
        size += added
    yield first, None


def _held_bytes(files: Sequence[SizedFile], uncompressed: int) -> int:
    """Return how many of these bytes of such files are held at once."""
    rows, total = sum(file.rows for file in files), sum(file.uncompressed for file in files)
    return min(uncompressed, _HELD_ROWS * total // max(rows, 1))
