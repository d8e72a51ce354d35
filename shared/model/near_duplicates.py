"""Near-duplicates: texts that differ by a typo, a comma or a word, found by MinHash and confirmed by exact Jaccard.

MinHash proposes candidates (locality-sensitive hashing over character 4-shingles), and the exact Jaccard similarity
decides. So no group is wrong by chance, and the hashing misses fewer than one pair in 100,000 at the given similarity.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from rensa import RMinHash, RMinHashLSH

from shared.identity import content_hash

SHINGLE = 4
PERMUTATIONS = 128
_SEED = 20
_MAX_MISS = 1e-5
_NOT_WORDS = re.compile(r"[^\w]+|_+")


def normalise(text: str) -> str:
    """Return the text in NFKC, case folded, with punctuation and white space as one space. Pure punctuation stays."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _NOT_WORDS.sub(" ", folded).strip() or " ".join(folded.split())


def text_hash(text: str) -> str:
    """Return 24 hex digits that are the same for texts that are equal after `normalise`."""
    return content_hash(normalise(text), length=24)


def shingles(text: str) -> frozenset[str]:
    """Return all runs of four characters of the normalised text; the whole text if it is shorter."""
    clean = normalise(text)
    if len(clean) <= SHINGLE:
        return frozenset((clean,))
    return frozenset(clean[i : i + SHINGLE] for i in range(len(clean) - SHINGLE + 1))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Return the share of shingles that both sets have, 0 to 1."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


class NearDuplicates:
    """An index of texts that finds the near-duplicates of a text. Not thread-safe."""

    def __init__(self, texts: Iterable[str] = (), similarity: float = 0.8) -> None:
        """`similarity`: the Jaccard similarity of shingles from which two texts are near-duplicates, in (0, 1]."""
        if not 0.0 < similarity <= 1.0:
            raise ValueError(f"similarity must be in (0, 1], not {similarity}")
        self._similarity = similarity
        self._index = RMinHashLSH(similarity * 0.8, PERMUTATIONS, _bands(similarity))
        self._keys: dict[frozenset[str], int] = {}
        self._shingles: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._shingles)

    def add(self, text: str) -> int:
        """Add a text; returns its key: 0, 1, 2 … in order, or the older key of a text that is in the index already."""
        pieces = shingles(text)
        if pieces in self._keys:
            return self._keys[pieces]
        key = self._keys[pieces] = len(self._shingles)
        self._shingles.append(pieces)
        self._index.insert(key, _sketch(pieces))
        return key

    def contains(self, text: str) -> bool:
        """Return True if the index has this text or a near-duplicate of it."""
        pieces = shingles(text)
        return pieces in self._keys or any(self._is_near(pieces, key) for key in self._index.query(_sketch(pieces)))

    def keys_near(self, text: str) -> list[int]:
        """Return the keys of all near-duplicates of this text, sorted."""
        pieces = shingles(text)
        return sorted(key for key in set(self._index.query(_sketch(pieces))) if self._is_near(pieces, key))

    def _is_near(self, pieces: frozenset[str], key: int) -> bool:
        return jaccard(pieces, self._shingles[key]) >= self._similarity


def group_near_duplicates(texts: Sequence[str], similarity: float) -> list[int]:
    """Return each text's group, named by the index of its first member. A chain of near-duplicates is one group."""
    index = NearDuplicates(similarity=similarity)
    firsts: list[int] = []  # Index of the first text of each key.
    keys: list[int] = []
    parents: list[int] = []  # Union-find over keys.
    for number, text in enumerate(texts):
        key = index.add(text)
        keys.append(key)
        if key == len(firsts):
            firsts.append(number)
            parents.append(key)
            for other in index.keys_near(text):
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


def _sketch(pieces: frozenset[str]) -> RMinHash:
    sketch = RMinHash(PERMUTATIONS, _SEED)
    sketch.update(list(pieces))
    return sketch


def _bands(similarity: float) -> int:
    """Return the fewest bands (fewest false candidates) that miss a pair with a probability below `_MAX_MISS`."""
    for bands in (16, 32, 64):
        if (1.0 - similarity ** (PERMUTATIONS // bands)) ** bands < _MAX_MISS:
            return bands
    return PERMUTATIONS
