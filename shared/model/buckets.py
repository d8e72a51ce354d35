"""Buckets of locality-sensitive hashing: texts that share a key, as compact arrays both ways."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Owners = npt.NDArray[np.int32]
"""Numbers of texts."""


@dataclass(frozen=True)
class Buckets:
    """Texts by bucket and buckets by text. A key that only one text has makes no bucket."""

    owners: Owners
    """The texts of all buckets, one bucket after the other, sorted within it."""
    starts: npt.NDArray[np.int64]
    """Where each bucket starts in `owners`; one more at the end."""
    buckets: npt.NDArray[np.int32]
    """The buckets of all texts, one text after the other."""
    text_starts: npt.NDArray[np.int64]

    @classmethod
    def of_columns(cls, keys: npt.NDArray[np.uint32]) -> Buckets:
        """Build the buckets of a matrix of keys, a row for each text: texts meet in a column."""
        with ThreadPoolExecutor(2) as threads:  # Sorting lets go of the interpreter.
            return cls._joined(list(threads.map(_shared_in_column, keys.T)), len(keys))

    @classmethod
    def of_keys(cls, keys: npt.NDArray[np.uint64], owners: Owners, count: int) -> Buckets:
        """Build the buckets of any number of keys for each of `count` texts."""
        parts = (keys >> np.uint64(61)).astype(np.uint8)  # Sorted in eight parts, which takes an eighth of the memory.
        return cls._joined([_shared(keys[parts == part], owners[parts == part]) for part in range(8)], count)

    @classmethod
    def _joined(cls, parts: list[tuple[Owners, npt.NDArray[np.int64]]], count: int) -> Buckets:
        owners = np.concatenate([owners for owners, _ in parts] or [np.zeros(0, dtype=np.int32)])
        sizes = np.concatenate([sizes for _, sizes in parts] or [np.zeros(0, dtype=np.int64)])
        return cls._from_sizes(owners, sizes, count)

    @classmethod
    def _from_sizes(cls, owners: Owners, sizes: npt.NDArray[np.int64], count: int) -> Buckets:
        order = np.argsort(owners, kind="stable")
        buckets = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
        text_starts = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=count))))
        return cls(owners, np.concatenate(([0], np.cumsum(sizes))), buckets, text_starts)

    def of(self, text: int) -> list[Owners]:
        """Return the texts of each bucket that a text is in."""
        mine = self.buckets[self.text_starts[text] : self.text_starts[text + 1]]
        return [self.owners[self.starts[bucket] : self.starts[bucket + 1]] for bucket in mine]

    def members(self, texts: Owners, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return distinct pairs, sorted: each of `texts` with the members of its buckets, `first` to before `last`."""
        counts = self.text_starts[texts + 1] - self.text_starts[texts]
        mine = self.buckets[ranges(self.text_starts[texts], counts)]
        starts = self.starts[mine] + first
        sizes = np.clip(self.starts[mine + 1] - starts, 0, last - first)
        of = np.repeat(np.repeat(texts, counts), sizes)
        others = self.owners[ranges(starts, sizes)]
        return _unpacked(_packed(of[of != others], others[of != others]))

    def member_counts(self, texts: Owners, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return how many pairs `members` has of each text, those with itself included."""
        sizes = np.concatenate(([0], np.cumsum(np.clip(np.diff(self.starts) - first, 0, last - first)[self.buckets])))
        counts: npt.NDArray[np.int64] = sizes[self.text_starts[texts + 1]] - sizes[self.text_starts[texts]]
        return counts

    def only(self, among: npt.NDArray[np.bool_]) -> Buckets:
        """Return the same buckets with only the texts of the mask in them; every text still knows its buckets."""
        kept = among[self.owners]
        before = np.concatenate(([0], np.cumsum(kept)))
        return Buckets(self.owners[kept], before[self.starts], self.buckets, self.text_starts)

    def largest(self, count: int) -> npt.NDArray[np.int64]:
        """Return the size of each text's largest bucket; 1 for a text in none."""
        largest = np.ones(count, dtype=np.int64)
        np.maximum.at(largest, self.owners, np.repeat(np.diff(self.starts), np.diff(self.starts)))
        return largest

    def pairs(self, all_pairs: int) -> npt.NDArray[np.int64]:
        """Return distinct pairs of texts that share a bucket: all of a bucket of up to `all_pairs`.

        Of a larger one, each text with the next, and with the first.
        """
        sizes = np.diff(self.starts)
        found = [np.zeros(0, dtype=np.int64)]
        for size in range(2, all_pairs + 1):
            rows = self.owners[self.starts[:-1][sizes == size][:, None] + np.arange(size)]
            found += [_packed(rows[:, a], rows[:, b]) for a, b in combinations(range(size), 2)] if len(rows) else []
            if sum(map(len, found)) > _MANY:  # The same pair is in many buckets.
                found = [_distinct(np.concatenate(found))]
        large = np.flatnonzero(sizes > all_pairs)
        for owners in (self.owners[self.starts[bucket] : self.starts[bucket + 1]] for bucket in large):
            found += [_packed(owners[:-1], owners[1:]), _packed(owners[:1], owners[1:])]
        return _unpacked(np.concatenate(found))


_HALF, _LOW = np.int64(32), np.int64(0xFFFFFFFF)
_MANY = 10_000_000
_MARKED = np.uint64(2**22)


def _distinct(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the distinct numbers, sorted: `np.unique` at a fifth of its time."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered


def _packed(left: Owners, right: Owners) -> npt.NDArray[np.int64]:
    """Return pairs as single numbers, which are sorted ten times as fast as rows of two."""
    packed: npt.NDArray[np.int64] = (left.astype(np.int64) << _HALF) | right
    return packed


def _unpacked(packed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the distinct pairs, sorted."""
    distinct = _distinct(packed)
    return np.column_stack((distinct >> _HALF, distinct & _LOW))


def ranges(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the numbers from each start on, as many as its count, one range after the other."""
    before = np.cumsum(counts) - counts
    numbers: npt.NDArray[np.int64] = np.repeat(starts - before, counts) + np.arange(counts.sum())
    return numbers


def _shared_in_column(keys: npt.NDArray[np.uint32]) -> tuple[Owners, npt.NDArray[np.int64]]:
    """Do as `_shared` does, for a key of each text: sorted with its number, which is faster than the order of keys."""
    packed = (keys.astype(np.uint64) << np.uint64(32)) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    return _shared_of_sorted(packed >> np.uint64(32), packed.astype(np.uint32).astype(np.int32))


def _shared(keys: npt.NDArray[np.uint64], owners: Owners) -> tuple[Owners, npt.NDArray[np.int64]]:
    """Return the owners of keys that several have, key by key, and the number of owners of each."""
    taken = _occur_again(keys)
    keys, owners = keys[taken], owners[taken]
    order = np.argsort(keys, kind="stable")
    return _shared_of_sorted(keys[order], owners[order])


def _occur_again(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which keys occur more than once, and a few others: of most texts only they are to be sorted with owners,
    which takes five times as long as to sort keys alone."""
    ordered = np.sort(keys)
    marked = np.zeros(_MARKED, dtype=bool)
    marked[ordered[1:][ordered[1:] == ordered[:-1]] % _MARKED] = True
    found: npt.NDArray[np.bool_] = marked[keys % _MARKED]
    return found


def _shared_of_sorted(keys: npt.NDArray[np.uint64], owners: Owners) -> tuple[Owners, npt.NDArray[np.int64]]:
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, int)
    sizes = np.diff(np.append(starts, len(keys)))
    return owners[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]
