"""Sketches: what of a text is enough to tell whether another one is nearly the same.

A sketch is the set of the text's character 4-shingles, hashed, of a long text the 1,024 smallest of them (bottom-k),
and for a short text the keys by which another one is found that differs by one typo. So it has at most 5 KB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from shared.model.buckets import ranges
from shared.model.templates import Templates
from shared.model.texts import SHINGLE, Hashes, code_points, fold, rolling_hashes

MAX_SHINGLES = 1_024
"""More are estimated from the smallest hashes: an error of 0.0125 at a similarity of 0.8 (one standard deviation)."""
TYPO_LENGTHS = range(12, 65)
"""Characters of a text in which one typo is looked for: of a longer one the shingles tell, in a shorter one a letter
is a word."""
_CHARACTERS, _TEXTS = 1_000_000, 4_096
"""Characters and texts that are sketched at once, at most."""
_LAST_LETTER = 0x2E80
"""From here on, a character is a word or a syllable: another one is no typo."""
_IS_LETTER = np.array([chr(code).isalpha() or chr(code) == " " for code in range(_LAST_LETTER)] + [False])
"""Of each character up to the last letter: letters and spaces. Another digit or sign makes another text."""
_TEXT_BITS = np.uint64(52)
"""Digits of a key that are left where 12 are the number of a text."""
_POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(TYPO_LENGTHS.stop + 1, dtype=np.uint64)

Keys = npt.NDArray[np.uint64]
_Value = TypeVar("_Value", np.uint32, np.uint64)


@dataclass(frozen=True)
class Sketch:
    """`shingles` are sorted and distinct; `typos` are the keys that a text at one typo's distance has, too."""

    shingles: Hashes
    typos: Keys

    def to_bytes(self) -> bytes:
        """Return the sketch as bytes, little-endian."""
        size = np.array([len(self.shingles)], dtype="<u4")
        return size.tobytes() + self.shingles.astype("<u4").tobytes() + self.typos.astype("<u8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Return the sketch that `to_bytes` stored."""
        size = int(np.frombuffer(data, "<u4", count=1)[0])
        shingles = np.frombuffer(data, "<u4", count=size, offset=4).astype(np.uint32)
        return cls(shingles, np.frombuffer(data, "<u8", offset=4 + 4 * size).astype(np.uint64))


@dataclass(frozen=True)
class Sketches:
    """The sketches of some texts in columns, those of one text after those of another.

    `bands`: [texts, bands], if somebody has computed them (`near_duplicates.band_keys`).
    """

    shingles: Hashes
    sizes: npt.NDArray[np.int64]
    typos: Keys
    typo_sizes: npt.NDArray[np.int64]
    bands: Hashes | None = None

    @classmethod
    def of(cls, sketches: Sequence[Sketch]) -> Sketches:
        """Return the columns of at least one sketch."""
        return cls(
            np.concatenate([sketch.shingles for sketch in sketches]),
            np.array([len(sketch.shingles) for sketch in sketches], dtype=np.int64),
            np.concatenate([sketch.typos for sketch in sketches]),
            np.array([len(sketch.typos) for sketch in sketches], dtype=np.int64),
        )

    @classmethod
    def joined(cls, portions: Sequence[Sketches]) -> Sketches:
        """Return the sketches of several portions, in order, as one."""
        none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        bands = [portion.bands for portion in portions if portion.bands is not None]
        return cls(
            np.concatenate([np.zeros(0, dtype=np.uint32), *(portion.shingles for portion in portions)]),
            np.concatenate([none, *(portion.sizes for portion in portions)]),
            np.concatenate([nothing, *(portion.typos for portion in portions)]),
            np.concatenate([none, *(portion.typo_sizes for portion in portions)]),
            np.concatenate(bands) if bands and len(bands) == len(portions) else None,
        )

    def at(self, numbers: npt.NDArray[np.int64]) -> Iterator[Sketches]:
        """Yield the sketches with these numbers, in their order and in portions."""
        starts, typo_starts = np.cumsum(self.sizes) - self.sizes, np.cumsum(self.typo_sizes) - self.typo_sizes
        for first in range(0, len(numbers), _TEXTS):
            part = numbers[first : first + _TEXTS]
            sizes, typo_sizes = self.sizes[part], self.typo_sizes[part]
            yield Sketches(
                self.shingles[ranges(starts[part], sizes)],
                sizes,
                self.typos[ranges(typo_starts[part], typo_sizes)],
                typo_sizes,
                None if self.bands is None else self.bands[part],
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Sketch]:
        shingles = np.split(self.shingles, np.cumsum(self.sizes)[:-1])
        typos = np.split(self.typos, np.cumsum(self.typo_sizes)[:-1])
        return map(Sketch, shingles, typos)


def jaccard(left: Hashes, right: Hashes) -> float:
    """Return the share of shingles that both have, 0 to 1; an estimate where one of them is a sample."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    bound = min((int(side[-1]) for side in (left, right) if len(side) >= MAX_SHINGLES), default=2**32)
    either = np.count_nonzero(left <= bound) + np.count_nonzero(right <= bound) - shared
    return float(shared / either)


def sketch_texts(texts: Sequence[str], templates: Templates) -> Iterator[Sketch]:
    """Yield the sketch of each text, of its own part where it is behind a template."""
    for sketches in sketch_folded([fold(text) for text in texts], templates):
        yield from sketches


def sketch_folded(folded: Sequence[str], templates: Templates) -> Iterator[Sketches]:
    """Yield the sketches of texts that are folded already, in order and in portions."""
    start, size = 0, 0
    for number, text in enumerate(folded, start=1):
        size += len(text)
        if size >= _CHARACTERS or number - start == _TEXTS or number == len(folded):
            yield _sketch_chunk(folded[start:number], templates)
            start, size = number, 0


def _sketch_chunk(texts: Sequence[str], templates: Templates) -> Sketches:
    characters, starts = code_points(texts)
    hashes = rolling_hashes(characters)
    whole = Sketches(*_distinct_shingles(hashes, starts), *_typo_keys(characters, starts))
    own_parts = templates.own_parts(hashes, starts)
    if not own_parts:
        return whole
    shingles = [np.unique(own.shingles)[:MAX_SHINGLES] for own in own_parts.values()]
    places = [own.characters for own in own_parts.values()]
    own_starts = np.cumsum([0, *map(len, places)])
    typos, typo_sizes = _typo_keys(characters[np.concatenate(places)], own_starts)
    numbers, sizes = np.fromiter(own_parts, dtype=np.int64), np.array([*map(len, shingles)], dtype=np.int64)
    return Sketches(
        *_with_own(whole.shingles, whole.sizes, numbers, np.concatenate(shingles), sizes),
        *_with_own(whole.typos, whole.typo_sizes, numbers, typos, typo_sizes),
    )


def _with_own(
    whole: npt.NDArray[_Value],
    whole_sizes: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    own: npt.NDArray[_Value],
    own_sizes: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[_Value], npt.NDArray[np.int64]]:
    """Return the values of all texts, one after the other, with other ones of the texts `numbers`; and how many each
    has."""
    is_own = np.zeros(len(whole_sizes), dtype=bool)
    is_own[numbers] = True
    sizes = whole_sizes.copy()
    sizes[numbers] = own_sizes
    starts = np.cumsum(sizes) - sizes
    values = np.empty(sizes.sum(), dtype=whole.dtype)
    values[ranges(starts[~is_own], sizes[~is_own])] = whole[np.repeat(~is_own, whole_sizes)]
    values[ranges(starts[numbers], own_sizes)] = own
    return values, sizes


def _distinct_shingles(hashes: Hashes, starts: npt.NDArray[np.int64]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Return the sorted and distinct shingles of each text, of many the first, text by text, and their numbers."""
    lengths = np.diff(starts) - SHINGLE + 1
    places = ranges(starts[:-1], lengths)
    keys = (np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths) << np.uint64(32)) | hashes[places]
    keys.sort()
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
    owners = (keys >> np.uint64(32)).astype(np.int64)
    counts = np.bincount(owners, minlength=len(lengths))
    if counts.max() > MAX_SHINGLES:
        rank = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = keys[rank < MAX_SHINGLES]
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), np.minimum(counts, MAX_SHINGLES)


def _typo_keys(characters: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Return the hash of each short text, and of each with one letter less, text by text, and their numbers.

    Two texts share a key where one letter was added, left out or replaced, or moved: also past its neighbour.
    """
    lengths = np.diff(starts)
    short = (lengths >= TYPO_LENGTHS.start) & (lengths < TYPO_LENGTHS.stop)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    taken = short[owners]
    owners, letters = owners[taken], characters[taken]
    position = (np.arange(len(characters)) - starts[:-1].repeat(lengths))[taken]
    values = mixed(letters)
    with_it, without = values * _POWERS[position + 1], values * _POWERS[position]
    before = np.cumsum(with_it) - with_it
    after = np.cumsum(without)
    first = np.flatnonzero(position == 0)
    last = np.flatnonzero(np.diff(owners, append=-1))
    text = np.cumsum(position == 0) - 1
    if not len(first):
        return np.zeros(0, dtype=np.uint64), np.zeros(len(lengths), dtype=np.int64)
    whole = (before + with_it)[last] - before[first]
    shorter = before - before[first][text] + after[last][text] - after
    is_letter = _IS_LETTER[np.minimum(letters, _LAST_LETTER)]
    keys = np.concatenate((whole, shorter[is_letter]))
    of_text = np.concatenate((owners[first], owners[is_letter]))
    order = np.argsort((of_text.astype(np.uint64) << _TEXT_BITS) | (keys >> (np.uint64(64) - _TEXT_BITS)))
    keys, of_text = keys[order], of_text[order]
    distinct = np.ones(len(keys), dtype=bool)
    distinct[1:] = (np.diff(keys) != 0) | (np.diff(of_text) != 0)
    counts = np.bincount(of_text[distinct], minlength=len(lengths))
    return keys[distinct], counts


def mixed(numbers: npt.NDArray[np.integer]) -> Keys:
    """Spread numbers over 64 bits (the finalizer of SplitMix64)."""
    spread = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    spread = (spread ^ (spread >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    spread = (spread ^ (spread >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return spread ^ (spread >> np.uint64(31))
