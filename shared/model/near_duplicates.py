"""Near-duplicates: texts that differ by a typo, a comma or a word, found by MinHash and confirmed by exact Jaccard.

MinHash proposes candidates (locality-sensitive hashing over character 4-shingles), and the Jaccard similarity decides;
texts too short for that are near-duplicates, too, if they differ by one typo. So no pair is wrong by chance, and the
hashing misses fewer than one in 100,000 at the given similarity. What many texts share as a template does not count.

`NearTexts` takes all texts at once, which is ten times as fast as one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from shared.model.buckets import Buckets, Owners, ranges
from shared.model.sketches import MAX_SHINGLES, Keys, Sketch, Sketches, jaccard, mixed, sketch_folded
from shared.model.templates import find_templates
from shared.model.texts import Hashes, fold

Scalar = TypeVar("Scalar", bound=np.generic)
PERMUTATIONS = 240
_MAX_MISS = 1e-5
_CHUNK = 4_096
_HALF = np.uint64(32)
_LAST_HASH = np.uint32(0xFFFFFFFF)
_MARKS = 256
"""Bits of a text's marks: each shingle sets one. Of two short texts nearly all shingles have a bit of their own."""
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_BLOCK = 512
"""Texts of about one length whose MinHashes are computed together."""
_COMPARED = 65_536
"""Pairs whose marks are compared together."""
_CANDIDATES = 1_000_000
"""Pairs of texts that are looked at together."""
_MOST_PAIRS = 16
_ALL_PAIRS = 32
"""In a larger bucket only neighbours, and each text with the first, are compared: enough to join them."""


class NearTexts:
    """Sketches of texts, by number, and which of them are near-duplicates. About 1 KB a short text, 5 KB a long one."""

    def __init__(self, sketches: Iterable[Sketches], similarity: float | npt.NDArray[np.float64]) -> None:
        """`sketches`: of all texts, in portions (`sketch_folded`).

        `similarity`: the Jaccard similarity of shingles from which two texts are near-duplicates, in (0, 1]; one for
        each text: of a pair the lower one counts."""
        self._least = float(np.min(similarity, initial=1.0))
        self._of_texts = None if np.all(similarity == self._least) else np.asarray(similarity)
        columns, bands = _sketch_columns(sketches, self._least)
        self._similar = Buckets.of_columns(bands)
        del bands  # It is large.
        numbers = np.arange(len(columns.sizes), dtype=np.int32)
        self._sizes = columns.sizes
        self._starts = np.concatenate(([0], np.cumsum(columns.sizes)))
        self._shingles = columns.shingles
        self._marks = columns.marks
        self._typos = Buckets.of_keys(columns.typos, np.repeat(numbers, columns.typo_sizes), len(numbers))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def near(self, text: int) -> Owners:
        """Return the near-duplicates of a text, sorted, without itself."""
        found = self._similar.of(text)
        candidates = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int32)
        certain = self._typos.of(text)
        near = np.unique(np.concatenate([candidates[self._are_near(text, candidates)], *certain]))
        others: Owners = near[near != text]
        return others

    def crowd(self, text: int, sample: int = 64) -> float:
        """Estimate the number of near-duplicates of a text from a sample of those that share a bucket with it."""
        certain = max((len(owners) for owners in self._typos.of(text)), default=1) - 1
        found = self._similar.of(text)
        candidates = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int32)
        if len(candidates) <= certain + 1:
            return float(certain)
        picked = candidates[:: max(1, len(candidates) // sample)][:sample]
        return max(float(certain), float(np.mean(self._are_near(text, picked)) * len(candidates)) - 1.0)

    def bucket_sizes(self) -> npt.NDArray[np.int64]:
        """Return for each text how many texts its largest bucket has: an upper guess of its near-duplicates."""
        return np.maximum(self._similar.largest(len(self)), self._typos.largest(len(self)))

    def nearest_of(self, queries: Iterable[int], among: npt.NDArray[np.bool_]) -> dict[int, int]:
        """Return a near-duplicate among those of the mask for each of the queries that has one. Stops at the first."""
        similar, typos = self._similar.only(among), self._typos.only(among)
        left = np.fromiter(queries, dtype=np.int32)
        found: dict[int, int] = {}
        # Where all are near, as in a loud mode, the first few of a bucket are enough.
        for buckets, first, last in ((typos, 0, 2), (similar, 0, 1), (similar, 1, 8), (similar, 8, len(self))):
            for texts in _portions(left, buckets.member_counts(left, first, last)):
                pairs = buckets.members(texts, first, last)
                near = pairs[self._pairs_are_near(pairs)] if buckets is similar else pairs
                named, place = np.unique(near[:, 0], return_index=True)
                found.update(zip(named.tolist(), near[place, 1].tolist(), strict=True))
            left = left[[text not in found for text in left.tolist()]]
        return found

    def pairs(self, labels: Sequence[str | None] | None = None) -> npt.NDArray[np.int64]:
        """Return near-duplicates as rows of two numbers, the smaller first; with `labels`, those whose labels differ.

        A text whose label is None is in no pair. In a large bucket each text is compared with its neighbour and with
        the first one, and of a text's near-duplicates only some are looked for, so that no mode that is loud makes
        this quadratic.
        """
        number: dict[str, int] = {}  # An array of texts has the width of the longest one in each row.
        codes = (
            np.array([-1 if label is None else number.setdefault(label, len(number)) for label in labels])
            if labels
            else None
        )
        found = []
        for buckets in (self._similar, self._typos):
            pairs = buckets.pairs(_ALL_PAIRS)
            if codes is not None:
                left, right = codes[pairs].T
                pairs = pairs[(left != right) & (left >= 0) & (right >= 0)]
            near = buckets is self._typos  # Who shares a typo is near without a look.
            found.append(pairs[_rank(pairs) < _MOST_PAIRS] if near else self._some_near(pairs))
        return np.unique(np.concatenate(found), axis=0)

    def _some_near(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of the pairs, which are sorted, that are near: of each first text `_MOST_PAIRS` or a few more.

        Texts of one pattern share buckets with hundreds that are not near, so what counts is what is found.
        """
        pairs = pairs[self._may_be_near(pairs)]
        near, count = [pairs[:0]], np.zeros(len(self), dtype=np.int64)
        rank, last, step = _rank(pairs), _MOST_PAIRS, _MOST_PAIRS
        while len(pairs):
            looked_at = pairs[rank < last]
            near.append(looked_at[self._pairs_are_near(looked_at)])
            count += np.bincount(near[-1][:, 0], minlength=len(self))
            is_left = (rank >= last) & (count[pairs[:, 0]] < _MOST_PAIRS)
            pairs, rank = pairs[is_left], rank[is_left]
            step *= 2  # So that there are few rounds.
            last += step
        return np.concatenate(near)

    def groups(self, among: npt.NDArray[np.bool_] | None = None) -> list[int]:
        """Return for each text the first one that a chain of near-duplicates, all of the mask, joins it with."""
        buckets = (self._typos, self._similar)
        typos, similar = buckets if among is None else (kind.only(among) for kind in buckets)
        firsts = _joined_by(np.arange(len(self)), typos.pairs(_ALL_PAIRS))
        pairs = similar.pairs(_ALL_PAIRS)
        pairs = pairs[self._may_be_near(pairs)]
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            left, right = firsts[chunk].T
            chunk = chunk[left != right]  # In a loud mode nearly all are joined soon.
            firsts = _joined_by(firsts, chunk[self._pairs_are_near(chunk)])
        found: list[int] = firsts.tolist()
        return found

    def _are_near(self, text: int, others: Owners) -> npt.NDArray[np.bool_]:
        return self._pairs_are_near(np.column_stack((np.full(len(others), text), others)))

    def _pairs_are_near(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        near = self._may_be_near(pairs)
        candidates = np.flatnonzero(near)
        for start in range(0, len(candidates), _CHUNK):
            chunk = candidates[start : start + _CHUNK]
            near[chunk] = self._similarities(pairs[chunk], self._sizes[pairs[chunk]]) >= self._needed(pairs[chunk])
        return near

    def _needed(self, pairs: npt.NDArray[np.int64]) -> float | npt.NDArray[np.float64]:
        return self._least if self._of_texts is None else self._of_texts[pairs].min(axis=1)

    def _may_be_near(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which pairs may be near, quickly.

        A mark that only one of them has stands for a shingle that only that one has: so many at least they do not
        share. Of a sample (`MAX_SHINGLES`) this says nothing.
        """
        may_be: npt.NDArray[np.bool_] = np.zeros(len(pairs), dtype=bool)
        for start in range(0, len(pairs), _COMPARED):
            left, right = pairs[start : start + _COMPARED].T
            sizes, others = self._sizes[left], self._sizes[right]
            marks, theirs = self._marks[left], self._marks[right]
            alone = np.bitwise_count(marks & ~theirs).sum(axis=1, dtype=np.int64)
            theirs_alone = np.bitwise_count(theirs & ~marks).sum(axis=1, dtype=np.int64)
            shared = np.minimum(sizes - alone, others - theirs_alone)
            is_sample = np.maximum(sizes, others) >= MAX_SHINGLES
            may_be[start : start + _COMPARED] = (shared / (sizes + others - shared) >= self._least) | is_sample
        return may_be

    def _similarities(self, pairs: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Sort the shingles of both texts together, pair by pair: those that both have are then neighbours."""
        texts, counts = pairs.ravel(), sizes.sum(axis=1)
        firsts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        # Of a sample only what is below its last hash is known, so of the other text no more counts either.
        last = np.where(sizes >= MAX_SHINGLES, self._shingles[self._starts[pairs + 1] - 1], _LAST_HASH)
        pieces = self._shingles[ranges(self._starts[texts], sizes.ravel())].astype(np.uint64)
        known = np.add.reduceat(pieces <= np.repeat(last.min(axis=1), counts), firsts, dtype=np.int64)
        pieces |= np.repeat(np.arange(len(pairs), dtype=np.uint64) << _HALF, counts)
        pieces.sort()
        shared = np.add.reduceat(np.append(pieces[1:] == pieces[:-1], False), firsts, dtype=np.int64)
        similarities: npt.NDArray[np.float64] = shared / (known - shared)
        return similarities


class NearSketches:
    """An index of sketches that says whether a further one is, or nearly is, one of them."""

    def __init__(self, sketches: Iterable[Sketches], similarity: float) -> None:
        """`sketches`, `similarity`: see `NearTexts`."""
        self._similarity = similarity
        columns, bands = _sketch_columns(sketches, similarity)
        self._sets = np.split(columns.shingles, np.cumsum(columns.sizes)[:-1])
        self._typos = np.unique(columns.typos)
        self._order = np.argsort(bands, axis=0, kind="stable").astype(np.int32)
        self._bands = np.take_along_axis(bands, self._order, axis=0)

    def __len__(self) -> int:
        return len(self._bands)

    def contains(self, sketch: Sketch) -> bool:
        """Return True if the index has this sketch or that of a near-duplicate."""
        if np.isin(sketch.typos, self._typos, assume_unique=True).any():
            return True
        seen: set[int] = set()
        for column, key in enumerate(band_keys(Sketches.of([sketch]), self._similarity)[0]):
            first, last = (np.searchsorted(self._bands[:, column], key, side) for side in ("left", "right"))
            for other in self._order[first:last, column].tolist():
                if other not in seen and jaccard(sketch.shingles, self._sets[other]) >= self._similarity:
                    return True
                seen.add(other)
        return False


def near_texts(texts: Sequence[str], similarity: float) -> NearTexts:
    """Return the near-duplicates among some texts."""
    folded = [fold(text) for text in texts]
    return NearTexts(sketch_folded(folded, find_templates(folded)), similarity)


def group_near_duplicates(texts: Iterable[str], similarity: float) -> list[int]:
    """Return each text's group, named by the index of its first member. A chain of near-duplicates is one group."""
    return near_texts(list(texts), similarity).groups()


def _rank(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return of each of sorted pairs how many come before it that have the same first number."""
    return np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])


def join_pairs(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each number below `count` the smallest one that a chain of pairs joins it with."""
    joined: list[int] = _joined_by(np.arange(count), np.array([*pairs], dtype=np.int64).reshape(-1, 2)).tolist()
    return joined


def _joined_by(firsts: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first of each number's group once these pairs join groups, too. `firsts`: without them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return firsts
    edges = coo_array((np.ones(len(pairs), dtype=np.int8), tuple(firsts[pairs].T)), shape=(len(firsts), len(firsts)))
    _, group = connected_components(edges, directed=False)
    _, smallest = np.unique(group, return_index=True)
    joined: npt.NDArray[np.int64] = smallest[group][firsts]
    return joined


@dataclass(frozen=True)
class _Columns:
    """The sketches of all texts, part by part."""

    shingles: Hashes
    sizes: npt.NDArray[np.int64]
    marks: Keys
    """[texts, 4]: see `_MARKS`."""
    typos: Keys
    typo_sizes: npt.NDArray[np.int64]


def _sketch_columns(sketches: Iterable[Sketches], similarity: float) -> tuple[_Columns, Hashes]:
    """Return the parts of all sketches, and their band keys; portion by portion, since what is between is large.

    A second thread computes the keys of a portion while the next one is sketched: numpy lets go of the interpreter.
    """
    if not 0.0 < similarity <= 1.0:
        raise ValueError(f"similarity must be in (0, 1], not {similarity}")
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    shingles, sizes, typos, typo_sizes = [np.zeros(0, dtype=np.uint32)], [none], [nothing], [none]
    marks, keys = [np.zeros((0, _MARKS // 64), dtype=np.uint64)], []
    with ThreadPoolExecutor(1) as thread:
        for portion in sketches:
            keys.append(thread.submit(_bands_of, portion, similarity))
            marks.append(_marks(portion))
            shingles.append(portion.shingles)
            sizes.append(portion.sizes)
            typos.append(portion.typos)
            typo_sizes.append(portion.typo_sizes)
    bands = [np.zeros((0, _band_count(similarity)), dtype=np.uint32), *(future.result() for future in keys)]
    keys.clear()
    columns = _Columns(_joined(shingles), _joined(sizes), _joined(marks), _joined(typos), _joined(typo_sizes))
    return columns, _joined(bands)


def _joined(portions: list[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
    """Return the portions as one array, and empty their list: never is more than one part in memory twice."""
    joined = np.concatenate(portions)
    portions.clear()
    return joined


def _bands_of(sketches: Sketches, similarity: float) -> Hashes:
    """Return the band keys that the sketches have, if they are of as many bands as this similarity needs; else new."""
    if sketches.bands is not None and sketches.bands.shape[1] == _band_count(similarity):
        return sketches.bands
    return band_keys(sketches, similarity)


def with_bands(sketches: Sketches, similarity: float) -> Sketches:
    """Return the sketches with their band keys, so that an index by this similarity need not compute them."""
    return replace(sketches, bands=band_keys(sketches, similarity))


def band_keys(sketches: Sketches, similarity: float) -> Hashes:
    """Return the keys of each sketch, a column for each band: texts that share one are candidates.

    A MinHash is the least of a x + b (`_FACTORS`, `_SUMMANDS`), modulo 2^32, over a text's shingles x; a is odd, so
    that two texts share it only where they share the shingle. Shingles are mixed first: those that differ in a digit
    are near each other, and what is linear keeps them so.
    """
    shingles = _upper_half(mixed(sketches.shingles))
    starts = np.cumsum(sketches.sizes) - sketches.sizes
    count = _band_count(similarity)
    keys = np.empty((len(sketches), count), dtype=np.uint32)
    by_size = np.argsort(sketches.sizes, kind="stable")
    for first in range(0, len(by_size), _BLOCK):
        texts = by_size[first : first + _BLOCK]
        # A column for each text, filled with its last shingle again, which changes no minimum: three times as fast as
        # the minima of runs of different lengths.
        last = sketches.sizes[texts] - 1
        places = starts[texts] + np.minimum(np.arange(last[-1] + 1)[:, np.newaxis], last)
        keys[texts] = _block_keys(shingles[places], count).T
    return keys


def _block_keys(shingles: Hashes, count: int) -> Hashes:
    """Return the keys of texts whose shingles are columns, a row for each of `count` bands."""
    rows = PERMUTATIONS // count
    hashed, least = np.empty_like(shingles), np.empty((rows * count, shingles.shape[1]), dtype=np.uint32)
    for number in range(rows * count):
        np.multiply(shingles, _FACTORS[number], out=hashed)
        hashed += _SUMMANDS[number]
        np.minimum.reduce(hashed, axis=0, out=least[number])
    keys = np.zeros((count, shingles.shape[1]), dtype=np.uint64)
    for row in range(rows):
        keys ^= least[row * count : (row + 1) * count]
        keys *= _MIX
        keys ^= keys >> np.uint64(29)
    return _upper_half(keys)


def _upper_half(numbers: Keys) -> Hashes:
    return (numbers >> _HALF).astype(np.uint32)


_FACTORS = _upper_half(mixed(np.arange(PERMUTATIONS))) | np.uint32(1)
_SUMMANDS = _upper_half(mixed(np.arange(PERMUTATIONS, 2 * PERMUTATIONS)))


def _marks(sketches: Sketches) -> Keys:
    """Return the marks of each sketch: a bit for each shingle, by its last digits."""
    marks = np.zeros((len(sketches), _MARKS), dtype=bool)
    rows = np.repeat(np.arange(len(sketches)), sketches.sizes)
    marks[rows, sketches.shingles % _MARKS] = True
    return np.packbits(marks, axis=1).view(np.uint64)


def _band_count(similarity: float) -> int:
    """Return the fewest bands (fewest false candidates) that miss a pair with a probability below `_MAX_MISS`."""
    for bands in range(1, PERMUTATIONS):
        rows = PERMUTATIONS // bands
        if (1.0 - similarity**rows) ** bands < _MAX_MISS:
            return bands
    return PERMUTATIONS


def _portions(texts: Owners, counts: npt.NDArray[np.int64]) -> Iterator[Owners]:
    """Split texts with candidates, given how many each has, into portions with at most `_CANDIDATES`, or of one."""
    texts, counts = texts[counts > 0], counts[counts > 0]
    ends = np.cumsum(counts)
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _CANDIDATES, side="right")))
        yield texts[start:end]
        start = end
