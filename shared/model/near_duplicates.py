"""Near-duplicates: texts that differ by a typo, a comma or a word, found by MinHash and confirmed by exact Jaccard.

MinHash proposes candidates (locality-sensitive hashing over character 4-shingles), and the exact Jaccard similarity
decides. So no group is wrong by chance, and the hashing misses fewer than one pair in 100,000 at the given similarity.
A shingle is kept as a number of 64 bits, a tenth of what a set of texts needs: an index of long conversations must fit
into memory. Callers cut very long texts (`shared.conversation.comparable_text`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from rensa import RMinHash, RMinHashLSH

from shared.identity import content_hash

SHINGLE = 4
PERMUTATIONS = 128
_SEED = 20
_MAX_MISS = 1e-5
_NOT_WORDS = re.compile(r"[^\w]+|_+")
# The constants of SplitMix64, xxHash (two) and MurmurHash3: odd and without structure, so that no two runs collide.
_FACTORS = tuple(np.uint64(f) for f in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xFF51AFD7ED558CCD))

Shingles = npt.NDArray[np.uint64]
"""Sorted and distinct: each is the hash of a run of four characters."""


def normalise(text: str) -> str:
    """Return the text in NFKC, case folded, with punctuation and white space as one space. Pure punctuation stays."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_WORDS.sub(" ", folded).strip() or " ".join(folded.split())


def text_hash(text: str) -> str:
    """Return 24 hex digits that are the same for texts that are equal after `normalise`."""
    return content_hash(normalise(text), length=24)


def shingles(text: str) -> Shingles:
    """Return all runs of four characters of the normalised text, hashed; the whole text if it is shorter."""
    padded = normalise(text).ljust(SHINGLE, "\0")
    characters = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    count = len(characters) - SHINGLE + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset, factor in enumerate(_FACTORS):
        hashes += characters[offset : offset + count] * factor
    return np.unique(hashes)


def jaccard(left: Shingles, right: Shingles) -> float:
    """Return the share of shingles that both have, 0 to 1."""
    shared = np.intersect1d(left, right, assume_unique=True).size
    return float(shared / (len(left) + len(right) - shared))


class NearDuplicates:
    """An index of texts that finds the near-duplicates of a text. Not thread-safe."""

    def __init__(self, texts: Iterable[str] = (), similarity: float = 0.8) -> None:
        """`similarity`: the Jaccard similarity of shingles from which two texts are near-duplicates, in (0, 1]."""
        if not 0.0 < similarity <= 1.0:
            raise ValueError(f"similarity must be in (0, 1], not {similarity}")
        self._similarity = similarity
        self._index = RMinHashLSH(similarity * 0.8, PERMUTATIONS, _bands(similarity))
        self._keys: dict[bytes, int] = {}
        self._shingles: list[Shingles] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._shingles)

    def add(self, text: str) -> int:
        """Add a text; returns its key: 0, 1, 2 … in order, or the older key of a text that is in the index already."""
        return self.add_and_match(text)[0]

    def add_and_match(self, text: str) -> tuple[int, list[int]]:
        """Add a text; returns its key and those of its near-duplicates, sorted; none if it is in the index already."""
        pieces = shingles(text)
        digest = _digest(pieces)
        if digest in self._keys:
            return self._keys[digest], []
        sketch = _sketch(pieces)
        near = sorted(key for key in set(self._index.query(sketch)) if self._is_near(pieces, key))
        key = self._keys[digest] = len(self._shingles)
        self._shingles.append(pieces)
        self._index.insert(key, sketch)
        return key, near

    def contains(self, text: str) -> bool:
        """Return True if the index has this text or a near-duplicate of it."""
        pieces = shingles(text)
        if _digest(pieces) in self._keys:
            return True
        return any(self._is_near(pieces, key) for key in self._index.query(_sketch(pieces)))

    def _is_near(self, pieces: Shingles, key: int) -> bool:
        return jaccard(pieces, self._shingles[key]) >= self._similarity


def group_near_duplicates(texts: Iterable[str], similarity: float) -> list[int]:
    """Return each text's group, named by the index of its first member. A chain of near-duplicates is one group."""
    index = NearDuplicates(similarity=similarity)
    firsts: list[int] = []  # Index of the first text of each key.
    keys: list[int] = []
    parents: list[int] = []  # Union-find over keys.
    for number, text in enumerate(texts):
        key, near = index.add_and_match(text)
        keys.append(key)
        if key == len(firsts):
            firsts.append(number)
            parents.append(key)
            for other in near:
                _join(parents, key, other)
    return [firsts[_root(parents, key)] for key in keys]


def _join(parents: list[int], left: int, right: int) -> None:
    low, high = sorted((_root(parents, left), _root(parents, right)))
    parents[high] = low


def _root(parents: list[int], key: int) -> int:
    while parents[key] != key:
        parents[key] = parents[parents[key]]  # Halve the path, so that long chains stay fast.
        key = parents[key]
    return key


def _digest(pieces: Shingles) -> bytes:
    return blake2b(pieces.tobytes(), digest_size=16).digest()


def _sketch(pieces: Shingles) -> RMinHash:
    data = pieces.tobytes()
    sketch = RMinHash(PERMUTATIONS, _SEED)
    sketch.update([data[start : start + 8] for start in range(0, len(data), 8)])
    return sketch


def _bands(similarity: float) -> int:
    """Return the fewest bands (fewest false candidates) that miss a pair with a probability below `_MAX_MISS`."""
    for bands in (16, 32, 64):
        if (1.0 - similarity ** (PERMUTATIONS // bands)) ** bands < _MAX_MISS:
            return bands
    return PERMUTATIONS
